"""Tells the story of a study, one event a line: to the log, the ledger and whoever watches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from jobs.spec import ChainPayload
from orchestrator.adoption import Adopted
from orchestrator.clock import Clock
from orchestrator.crew import Work
from orchestrator.events import PROGRESS, Event, OnEvent
from orchestrator.failures import Ending
from orchestrator.intake import Taken
from orchestrator.ledger import Ledger, frozen_text
from orchestrator.outcome import StudyOutcome
from orchestrator.reading import ForecastRow
from orchestrator.state import SegmentState

logger = logging.getLogger(__name__)

# How often the live view hears of one gang's steps.
TELL_EVERY_S = 0.5


class Narrator:
    """Every event of a controller passes here."""

    def __init__(self, ledger: Ledger, clock: Clock, on_event: OnEvent) -> None:
        self._ledger = ledger
        self._clock = clock
        self._on_event = on_event

    def tell(self, kind: str, text: str, **content: Any) -> None:
        """One event: a line in the log, a row in the ledger, a call to whoever watches."""
        now = self._clock.wall_s()
        logger.info("%s", text)
        self._ledger.append_event(kind, {"text": text, **content}, now)
        self._on_event(Event(kind, text, round(now * 1000), content))

    def placed(self, work: Work, payload: ChainPayload, known: SegmentState, gang_id: str) -> None:
        """A chain was given to a gang."""
        after = f", after {known.last_outcome.replace('_', ' ')}" if known.tries and known.last_outcome else ""
        start = payload.resume.step if payload.resume is not None else payload.segments[0].start_step
        self.tell(
            "attempt.placed",
            f"{work.subject}: placed on {ranks_text(payload.execution.world_size)} (attempt {known.tries + 1}{after}), "
            f"steps {start} to {work.end_step}",
            attempt=work.claim.attempt,
            gang=gang_id,
            segments=list(work.claim.state_ids),
        )

    def frozen(self, forecasts: Sequence[ForecastRow]) -> None:
        """Forecasts were frozen; the ledger has written that down itself."""
        for row in forecasts:
            text = frozen_text(row.digest, row.targets)
            logger.info("%s", text)
            self._on_event(Event("forecast.frozen", text, row.frozen_ms, {"digest": row.digest}))

    def adopted(self, adopted: Adopted) -> None:
        """Work of a controller that died was taken over."""
        self.tell(
            "attempt.adopted",
            f"attempt {adopted.attempt}: its controller was lost; {len(adopted.accepted)} states adopted, "
            f"goes on from step {adopted.step}",
            attempt=adopted.attempt,
            accepted=list(adopted.accepted),
        )
        self.taken(Taken(adopted.accepted, adopted.finished, adopted.refused))

    def taken(self, taken: Taken) -> None:
        """What a journal brought: finished runs, and states that are not what their line says."""
        for observation in taken.finished:
            self.tell(
                "run.finished",
                f"run {observation.name}: finished, held-out loss {observation.loss:.4f} +- {observation.loss_se:.4f}",
                run=observation.name,
                loss=observation.loss,
            )
        for sentence in taken.refused:
            self.tell("state.refused", f"not accepted: {sentence}")

    def ended(self, work: Work, ending: Ending, log_path: str, closed: Sequence[str]) -> None:
        """An attempt did not finish its chain; `closed` runs end with it."""
        word = ending.outcome.replace("_", " ")
        content = {"attempt": work.claim.attempt, "outcome": ending.outcome, "log": log_path}
        self.tell("attempt.ended", f"{work.subject}: {word} at step {work.step} ({ending.cause})", **content)
        if closed:
            status = "diverged" if ending.outcome == "diverged" else "failed"
            text = f"run {', '.join(closed)}: {status} ({ending.cause}); log: {log_path}\n{ending.error}"
            self.tell(f"run.{status}", text.rstrip(), runs=list(closed), **content)

    def progress(self, work: Work) -> None:
        """A gang has reached a step: told to the watcher alone, not too often."""
        now = self._clock.monotonic_s()
        if now - work.told_at < TELL_EVERY_S:
            return
        work.told_at = now
        content = {
            "attempt": work.claim.attempt,
            "state_id": work.unaccepted[0] if work.unaccepted else work.claim.state_ids[-1],
            "step": work.step,
            "end_step": work.end_step,
        }
        text = f"{work.subject}: step {work.step} of {work.end_step}"
        self._on_event(Event(PROGRESS, text, round(self._clock.wall_s() * 1000), content))

    def over(self, study_name: str, outcome: StudyOutcome, num_runs: int) -> None:
        """The controller returns with something left undone."""
        if outcome.interrupted:
            left = len(outcome.waiting) + len(outcome.withheld)
            self.tell(
                "study.stopped",
                f"study {study_name}: stopped with {left} of {num_runs} runs to go; the same command goes on from here",
            )
        elif outcome.withheld:
            names = ", ".join(outcome.withheld)
            self.tell("study.withheld", f"targets withheld, their forecast is not frozen: {names}")


def ranks_text(world_size: int) -> str:
    """A number of ranks in words."""
    return f"{world_size} rank{'s' if world_size > 1 else ''}"
