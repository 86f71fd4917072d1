"""Takes over what a controller that died has left: its open attempts are fenced off, then read to their last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.journal import JournalLine, decode_lines
from jobs.observation import Observation
from jobs.spec import Execution
from jobs.storage import AttemptPaths
from orchestrator.intake import Claim, take_in
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.reading import AttemptRow


@dataclass(frozen=True)
class Adopted:
    """What was taken over from one attempt."""

    attempt: int
    accepted: tuple[str, ...]
    finished: tuple[Observation, ...]
    refused: tuple[str, ...]
    step: int
    """The newest step of which the ledger has a state; where the attempt began, if it left none."""


def read_journal(folder: Path) -> list[JournalLine]:
    """Whole lines of an attempt's journal; none if it never wrote."""
    try:
        return decode_lines(AttemptPaths(folder).journal.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []


def highest_attempt(attempts: Path) -> int:
    """The highest number of an attempt that has a folder; 0 if none has."""
    names = (path.name.rpartition("-a")[2] for path in attempts.glob("*-a*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def adopt_open_attempts(ledger: Ledger, plan: Plan, now: float) -> list[Adopted]:
    """Take over every attempt that is still open: nobody drives it any more.

    First a higher number is claimed for its segments, so that workers which may still live change nothing. Then every
    state that their journals tell of and whose files verify is accepted.
    """
    return [_adopt(ledger, plan, attempt, now) for attempt in ledger.attempts(outcome="open")]


def _adopt(ledger: Ledger, plan: Plan, attempt: AttemptRow, now: float) -> Adopted:
    segments = ledger.segments(attempt.state_ids)
    held = [
        state_id
        for state_id in attempt.state_ids
        if segments[state_id].status == "open" and segments[state_id].attempt == attempt.number
    ]
    # A plan from which runs were taken away no longer knows their segments.
    known = all(state_id in plan.segments for state_id in attempt.state_ids)
    if not held or not known:
        ledger.end_attempt(attempt.number, "driver_lost", now, cause="the controller was lost")
        return Adopted(attempt.number, (), (), (), attempt.start_step)
    execution = Execution.model_validate(attempt.execution)
    fence = ledger.claim_attempt(
        held,
        "takeover",
        now,
        execution=execution,
        folder_of=lambda number: attempt.folder,
        start_step=attempt.start_step,
    )
    lines = read_journal(Path(attempt.folder))
    taken = take_in(
        ledger,
        plan,
        # The whole chain: a line that tells of a segment accepted before is no stranger.
        Claim(fence, attempt.state_ids, execution.world_size),
        lines,
        now,
        verify_files=True,
    )
    with ledger.transaction():
        ledger.end_attempt(attempt.number, "driver_lost", now, cause="the controller was lost")
        ledger.end_attempt(fence, "adopted", now)
    return Adopted(attempt.number, taken.accepted, taken.finished, taken.refused, _newest_step(lines, attempt))


def _newest_step(lines: Sequence[JournalLine], attempt: AttemptRow) -> int:
    steps = [line.step for line in lines if line.kind in ("checkpoint", "state")]
    return max([attempt.start_step, *steps])
