"""Carries a study out: asks `decide`, performs, reads what the gangs report, and writes it down.

    while not done:
        poll the gangs     -> journal lines into the ledger, endings classified
        decide(...)        -> open, assign, stop, close

Everything that must outlive this process is in the ledger or in the attempts' folders; a kill -9 at any moment is
answered by running the same study again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.placement import refuse_if_never
from cluster.resources import ClusterUnreachable, Gang, GangLost, GangReport, Launcher
from jobs.journal import decode_lines
from jobs.spec import ChainPayload, EvaluationSpec
from jobs.storage import StudyPaths
from orchestrator.adoption import adopt_open_attempts, highest_attempt, read_journal
from orchestrator.chains import is_over, needed_segments
from orchestrator.clock import Clock, SystemClock
from orchestrator.crew import Crew, Member, Work
from orchestrator.decide import Assign, CloseGang, OpenGang, Stop, decide
from orchestrator.events import OnEvent, ignore
from orchestrator.failures import Ending, classify
from orchestrator.gang_requests import gang_request
from orchestrator.intake import Claim, Taken, drop_checkpoints, take_in
from orchestrator.ledger import Ledger
from orchestrator.narrator import Narrator, ranks_text
from orchestrator.outcome import StudyOutcome
from orchestrator.plan import Plan
from orchestrator.state import History, StudyState, segment_states
from orchestrator.verdicts import conclude, examine, last_word

# Young attempts may end any moment; older ones are asked less often.
SHORTEST_PAUSE_S = 0.03
LONGEST_PAUSE_S = 0.25
PAUSE_GROWTH = 1.3
# Points wait this long for others before they are written: the ledger commits about once a second.
STORE_EVERY_S = 1.0
# Without news the decision is taken anew this often: devices may have become free outside, a pause may be over.
DECIDE_EVERY_S = 1.0
# Ranks whose neighbour died get this long to say what they saw.
LAST_WORDS_S = 5.0
# After a request to leave: one step, one checkpoint. Then the gang is killed, and resumes from the checkpoint before.
LEAVING_S = 60.0
FAILED_OPENINGS_IN_A_ROW = 8
LONGEST_OPENING_PAUSE_S = 60.0

Freeze = Callable[[Ledger, Plan], object]


def run_study(
    plan: Plan,
    ledger: Ledger,
    launcher: Launcher,
    paths: StudyPaths,
    corpus_dir: Path,
    evaluation: EvaluationSpec,
    freeze: Freeze,
    *,
    clock: Clock | None = None,
    on_event: OnEvent = ignore,
    stop: threading.Event | None = None,
    checkpoint_interval_s: float = 60.0,
) -> StudyOutcome:
    """Carry a registered plan out to its end, or until `stop` is set; whatever was done before is kept.

    `freeze(ledger, plan)` is called once, when every fitted run has ended and targets wait: it freezes their forecast
    in the ledger, or leaves it, and then they are withheld. Raises ValueError for a gang that never fits,
    ClusterUnreachable, and LeaseLost when another controller has taken over. Gangs are closed in every case.
    """
    controller = Controller(
        plan,
        ledger,
        launcher,
        _Place(paths, corpus_dir, evaluation, checkpoint_interval_s),
        freeze,
        clock or SystemClock(),
        on_event,
        stop or threading.Event(),
    )
    return controller.run()


@dataclass(frozen=True)
class _Place:
    """What every attempt is told about where it runs."""

    paths: StudyPaths
    corpus_dir: Path
    evaluation: EvaluationSpec
    checkpoint_interval_s: float


class Controller:
    """One process's work at a study."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        launcher: Launcher,
        place: _Place,
        freeze: Freeze,
        clock: Clock,
        on_event: OnEvent,
        stop: threading.Event,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._launcher = launcher
        self._place = place
        self._freeze = freeze
        self._clock = clock
        self._narrator = Narrator(ledger, clock, on_event)
        self._stop = stop
        self._crew = Crew(launcher)
        self._news = True
        self._decided_at = 0.0
        self._stored_at = 0.0
        self._taken_numbers = 0
        self._asked_to_freeze = False
        self._stopping = False
        self._openings_failed = 0
        self._open_not_before = 0.0
        self._pause_s = SHORTEST_PAUSE_S

    def run(self) -> StudyOutcome:
        """Work until nothing is left to do."""
        for execution in {planned.execution for planned in self._plan.segments.values()}:
            refuse_if_never(gang_request("gang", execution), self._launcher.inventory())
        self._adopt()
        try:
            while not self._turn():
                self._clock.wait(threading.Event() if self._stopping else self._stop, self._pause_s)
        finally:
            self._crew.close_all()
        outcome = StudyOutcome.read(self._plan, self._ledger, self._stopping)
        self._narrator.over(self._plan.study_name, outcome, len(self._plan.runs))
        return outcome

    def _turn(self) -> bool:
        """One turn of the loop. True when the study is over."""
        self._welcome()
        for member, gang, work in self._crew.busy():
            self._attend(member, gang, work)
        self._store_points()
        if self._stop.is_set() and not self._stopping:
            self._stopping = self._news = True
            self._narrator.tell(
                "study.stopping", f"study {self._plan.study_name}: stopping, gangs checkpoint and leave"
            )
        self._pause_s = SHORTEST_PAUSE_S if self._news else min(self._pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)
        if not self._news and self._clock.monotonic_s() - self._decided_at < DECIDE_EVERY_S:
            return False
        return self._advance()

    def _advance(self) -> bool:
        """Decide and perform. True when the study is over."""
        self._news = False
        self._decided_at = self._clock.monotonic_s()
        state = self._state()
        if self._crew.busy():
            over = False
        elif self._stopping:
            over = True
        else:
            over = is_over(self._plan, state)
            if over and self._ask_to_freeze(state):
                self._news = True
                return False
        if over:
            return True
        inventory = self._launcher.inventory()
        for action in decide(self._plan, state, inventory, self._clock.wall_s()):
            self._perform(action, state)
        return False

    def _state(self) -> StudyState:
        history = History.read(self._ledger)
        planned = {run.name for run in self._plan.runs}
        return StudyState(
            segments=segment_states(self._plan, history),
            waiting_runs=tuple(run.name for run in history.runs if run.status == "waiting" and run.name in planned),
            frozen_targets=history.frozen_targets,
            gangs=self._crew.states(),
            next_gang=self._crew.next_gang,
            stopping=self._stopping,
            open_not_before=self._open_not_before,
        )

    def _ask_to_freeze(self, state: StudyState) -> bool:
        """Once no fitted run is left to train: let the forecast of waiting targets be frozen. True if it was asked."""
        if self._asked_to_freeze or not needed_segments(self._plan, state):
            return False
        self._asked_to_freeze = True
        known = len(self._ledger.forecasts())
        self._freeze(self._ledger, self._plan)
        self._narrator.frozen(self._ledger.forecasts()[known:])
        return True

    def _adopt(self) -> None:
        # Folders that a ledger which is gone knew of are not written into again.
        self._taken_numbers = highest_attempt(self._place.paths.attempts)
        for adopted in adopt_open_attempts(self._ledger, self._plan, self._clock.wall_s()):
            self._narrator.adopted(adopted)

    def _welcome(self) -> None:
        for member, error in self._crew.arrived(self._clock.wall_s()):
            self._news = True
            if error is None:
                self._openings_failed = 0
                self._narrator.tell("gang.opened", f"{member.gang_id}: up, {ranks_text(member.request.world_size)}")
                continue
            self._openings_failed += 1
            if self._openings_failed >= FAILED_OPENINGS_IN_A_ROW:
                raise ClusterUnreachable(
                    f"{self._openings_failed} gangs in a row could not be opened; the last: {error}"
                ) from error
            pause_s = min(2.0**self._openings_failed, LONGEST_OPENING_PAUSE_S)
            self._open_not_before = self._clock.wall_s() + pause_s
            self._narrator.tell(
                "gang.failed", f"{member.gang_id}: could not be opened ({error}); again in {pause_s:.0f} s"
            )

    def _perform(self, action: OpenGang | Assign | Stop | CloseGang, state: StudyState) -> None:
        match action:
            case OpenGang(request):
                self._crew.open(request)
            case Assign():
                self._assign(action, state)
            case Stop(gang_id):
                self._ask_to_leave(self._crew[gang_id])
            case CloseGang(gang_id, reason):
                self._crew.close(gang_id)
                self._news = True
                self._narrator.tell("gang.closed", f"{gang_id}: closed ({reason})")

    def _assign(self, action: Assign, state: StudyState) -> None:
        member = self._crew[action.gang_id]
        assert member.gang is not None, "only a gang that is up is assigned"
        head, last = (self._plan.segments[action.state_ids[index]] for index in (0, -1))
        now = self._clock.wall_s()
        number = self._ledger.claim_attempt(
            action.state_ids,
            action.gang_id,
            now,
            execution=action.execution,
            folder_of=lambda number: str(self._place.paths.attempt(last.folder_name, number).root),
            start_step=action.resume.step if action.resume is not None else 0,
            above=self._taken_numbers,
        )
        paths = self._place.paths.attempt(last.folder_name, number)
        payload = ChainPayload(
            spec=last.spec,
            segments=tuple(self._plan.segments[state_id].segment for state_id in action.state_ids),
            final_segments=tuple(state_id for state_id in action.state_ids if self._plan.segments[state_id].is_final),
            execution=action.execution,
            attempt=number,
            attempt_dir=str(paths.root),
            resume=action.resume,
            corpus_dir=str(self._place.corpus_dir),
            evaluation=self._place.evaluation,
            checkpoint_interval_s=self._place.checkpoint_interval_s,
        )
        member.work = Work(
            claim=Claim(number, action.state_ids, action.execution.world_size),
            subject=f"run {last.runs[0]}" if last.is_final else last.name,
            paths=paths,
            resume=action.resume,
            end_step=last.segment.end_step,
            expected_end=now + sum(self._plan.segments[state_id].estimated_s for state_id in action.state_ids),
        )
        paths.logs.mkdir(parents=True, exist_ok=True)
        self._narrator.placed(member.work, payload, state.segments[head.segment.state_id], action.gang_id)
        try:
            member.gang.assign(paths.root.name, payload.model_dump(mode="json"), str(paths.journal), str(paths.logs))
        except GangLost as error:
            self._lose(member, member.work, error)
        except OSError as error:
            self._end(member, member.work, Ending("infrastructure", f"could not start: {error}"))

    def _ask_to_leave(self, member: Member) -> None:
        assert member.gang is not None
        assert member.work is not None, "only a busy gang can leave"
        member.work.leaving_since = self._clock.monotonic_s()
        try:
            member.gang.leave()
        except GangLost as error:
            self._lose(member, member.work, error)

    def _attend(self, member: Member, gang: Gang, work: Work) -> None:
        """Read one gang's report and act on what it says."""
        try:
            report = self._poll(gang, work)
            if any(line.kind != "metrics" for line in work.unread):
                self._store(work)
            self._narrator.progress(work)
            ending = self._ending(gang, work, report)
        except GangLost as error:
            self._lose(member, work, error)
            return
        if ending is not None:
            self._end(member, work, ending)

    def _poll(self, gang: Gang, work: Work) -> GangReport:
        report = gang.poll(work.offset)
        work.offset = report.next_offset
        lines = decode_lines(report.journal_text)
        work.unread += lines
        work.end = next((line for line in lines if line.kind == "end"), work.end)
        work.step = max([work.step, *(rank.step for rank in report.ranks)])
        work.watch.see(work.step, self._clock.monotonic_s())
        return report

    def _ending(self, gang: Gang, work: Work, report: GangReport) -> Ending | None:
        """How the attempt has ended, if it has; ranks that can only wait for each other are killed first."""
        now = self._clock.monotonic_s()
        failure = classify(report)
        if report.finished:
            # What rank 0 wrote between this poll's reading of the journal and its leaving.
            self._poll(gang, work)
            return failure or last_word(work, self._stopping)
        if failure is not None:
            work.failed_at = work.failed_at or now
            if now - work.failed_at < LAST_WORDS_S:
                return None
            return self._kill(gang, work, failure)
        if work.leaving_since is not None and now - work.leaving_since > LEAVING_S:
            return self._kill(gang, work, Ending("stopped", f"did not leave within {LEAVING_S:.0f} s"))
        still = [rank for rank in report.ranks if rank.exit_code is None]
        slowest = max(still, key=lambda rank: rank.seconds_since_progress, default=None)
        if slowest is None or slowest.seconds_since_progress <= work.watch.limit_s:
            return None
        cause = f"rank {slowest.rank}: no progress for {slowest.seconds_since_progress:.0f} s at step {slowest.step}"
        return self._kill(gang, work, Ending("hang", cause, log_path=slowest.log_path))

    def _kill(self, gang: Gang, work: Work, ending: Ending) -> Ending:
        gang.kill()
        self._poll(gang, work)
        return ending

    def _store_points(self) -> None:
        """Once in a while the points of all gangs, in one transaction."""
        if self._clock.monotonic_s() - self._stored_at < STORE_EVERY_S:
            return
        self._stored_at = self._clock.monotonic_s()
        waiting = [work for _, _, work in self._crew.busy() if work.unread]
        if waiting:
            with self._ledger.transaction():
                for work in waiting:
                    self._store(work)

    def _store(self, work: Work) -> None:
        """Take in what has been read of a journal."""
        lines, work.unread = work.unread, []
        if lines:
            self._note(work, take_in(self._ledger, self._plan, work.claim, lines, self._clock.wall_s()))

    def _note(self, work: Work, taken: Taken) -> None:
        work.accepted.update(taken.accepted)
        work.refused += taken.refused
        if taken.accepted:
            # Siblings that fork from an accepted state can start now.
            self._news = True
            drop_checkpoints(self._ledger, taken.accepted)
        self._narrator.taken(taken)

    def _lose(self, member: Member, work: Work, error: GangLost) -> None:
        """The gang is gone: what it had committed is read from its folder, then it is given back whole."""
        work.unread = []
        lines = read_journal(work.paths.root)
        work.end = next((line for line in lines if line.kind == "end"), None)
        self._note(work, take_in(self._ledger, self._plan, work.claim, lines, self._clock.wall_s(), verify_files=True))
        finished = not work.unaccepted
        self._end(member, work, Ending("finished", "") if finished else Ending("node_lost", str(error)))
        self._crew.close(member.gang_id)
        self._narrator.tell("gang.lost", f"{member.gang_id}: lost ({error})")

    def _end(self, member: Member, work: Work, ending: Ending) -> None:
        """Close the attempt, and its segment if its class allows no further try."""
        self._store(work)
        if ending.outcome == "finished" and work.unaccepted:
            ending = Ending("damaged_state", "; ".join(work.refused) or "its last states were not committed")
        now = self._clock.wall_s()
        log_path = ending.log_path or str(work.paths.log(0))
        closed = conclude(self._ledger, self._plan, work, ending, log_path, now)
        member.work = None
        member.idle_since = now
        self._news = True
        if ending.outcome == "finished":
            return
        self._narrator.ended(work, ending, log_path, closed)
        finding = examine(self._ledger, work.resume, now) if ending.outcome == "damaged_state" else ""
        if finding:
            self._narrator.tell("state.damaged", f"{work.subject}: {finding}")
