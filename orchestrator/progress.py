"""The live view of a study: a bar for all training tokens and a line a gang on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.console import is_interactive
from orchestrator.events import PROGRESS, Event, OnEvent
from orchestrator.planview import duration

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.reading import LedgerReader

logger = logging.getLogger(__name__)

# Without a terminal one line of progress now and then, so that a log stays readable.
PLAIN_INTERVAL_S = 30.0
# An attempt that has told nothing for so long has ended.
SHOWN_FOR_S = 3.0


class Remaining:
    """How much of a study is trained, weighed by FLOPs, and how long the rest will take at the speed seen so far."""

    def __init__(self, plan: Plan, ledger: LedgerReader, now: float) -> None:
        self._flops_per_step = {
            state_id: planned.train_flops / planned.segment.num_steps for state_id, planned in plan.segments.items()
        }
        self._start_step = {state_id: planned.segment.start_step for state_id, planned in plan.segments.items()}
        accepted = {state_id for state_id, row in ledger.segments().items() if row.status == "accepted"}
        self._done_steps = {
            state_id: planned.segment.num_steps if state_id in accepted else 0
            for state_id, planned in plan.segments.items()
        }
        self._total = sum(planned.train_flops for planned in plan.segments.values())
        self._began = now
        self._done_before = self.done_flops

    @property
    def done_flops(self) -> float:
        return sum(steps * self._flops_per_step[state_id] for state_id, steps in self._done_steps.items())

    @property
    def share(self) -> float:
        """Trained share of the plan's FLOPs."""
        return self.done_flops / self._total if self._total else 1.0

    def reach(self, state_id: str, step: int) -> None:
        """A gang has reached an optimizer step inside a segment."""
        if state_id in self._done_steps:
            done = step - self._start_step[state_id]
            self._done_steps[state_id] = max(self._done_steps[state_id], done)

    def eta_s(self, now: float) -> float | None:
        """Seconds to the end at the mean speed since the start; None before there is one."""
        gained = self.done_flops - self._done_before
        elapsed = now - self._began
        if gained <= 0 or elapsed <= 0:
            return None
        return (self._total - self.done_flops) / gained * elapsed


@contextmanager
def live_view(plan: Plan, ledger: LedgerReader) -> Iterator[OnEvent]:
    """A callback that shows what the controller tells; the view ends with the block."""
    remaining = Remaining(plan, ledger, time.monotonic())
    if is_interactive():
        with _terminal_view(remaining) as on_event:
            yield on_event
    else:
        yield _PlainView(remaining)


class _PlainView:
    """Progress as a log line now and then; events are logged by the controller itself."""

    def __init__(self, remaining: Remaining) -> None:
        self._remaining = remaining
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        _follow(self._remaining, event)
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL_S:
            return
        self._last = now
        logger.info("%s", _progress_text(self._remaining, now))


@contextmanager
def _terminal_view(remaining: Remaining) -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    root = logging.getLogger()
    handlers = root.handlers[:]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=1.0, told="")
        # Log lines are printed above the bar instead of through it.
        root.handlers = [RichHandler(console=console, show_path=False, show_level=False, markup=False)]
        seen: dict[object, tuple[float, str]] = {}

        def on_event(event: Event) -> None:
            _follow(remaining, event)
            now = time.monotonic()
            if event.kind == PROGRESS:
                seen[event.content["attempt"]] = (now, event.text)
            working = [text for told_at, text in seen.values() if now - told_at < SHOWN_FOR_S]
            told = "  ".join([_progress_text(remaining, now), *working])
            progress.update(task, completed=remaining.share, told=told)

        try:
            yield on_event
        finally:
            root.handlers = handlers


def _follow(remaining: Remaining, event: Event) -> None:
    state_id, step = event.content.get("state_id"), event.content.get("step")
    if event.kind == PROGRESS and state_id is not None and step is not None:
        remaining.reach(str(state_id), int(step))


def _progress_text(remaining: Remaining, now: float) -> str:
    eta = remaining.eta_s(now)
    return f"{remaining.share:.0%} of the training FLOPs, " + (
        "no estimate yet" if eta is None else f"about {duration(eta)} left"
    )
