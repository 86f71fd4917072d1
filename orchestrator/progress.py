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
    from rich.console import Console
    from rich.progress import TaskID

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
        self._segments = plan.segments
        self._paths = {run.name: run.segments for run in plan.runs}
        accepted = {state_id for state_id, row in ledger.segments().items() if row.status == "accepted"}
        self._done_flops = {
            state_id: planned.train_flops if state_id in accepted else 0.0
            for state_id, planned in plan.segments.items()
        }
        self._total_flops = sum(planned.train_flops for planned in plan.segments.values())
        self._began = now
        self._done_before = self.done_flops

    @property
    def done_flops(self) -> float:
        return sum(self._done_flops.values())

    @property
    def share(self) -> float:
        """Trained share of the plan's FLOPs."""
        return self.done_flops / self._total_flops if self._total_flops else 1.0

    def reach(self, state_id: str, step: int) -> None:
        """A gang has reached an optimizer step of the path to a state."""
        while state_id in self._segments:
            planned = self._segments[state_id]
            segment = planned.segment
            done = min(1.0, max(0.0, (step - segment.start_step) / segment.num_steps))
            self._done_flops[state_id] = max(self._done_flops[state_id], done * planned.train_flops)
            if segment.parent_id is None:
                return
            state_id = segment.parent_id

    def finish(self, run_name: str) -> None:
        """A run has finished, and with it every segment on its way."""
        for state_id in self._paths.get(run_name, ()):
            self._done_flops[state_id] = self._segments[state_id].train_flops

    def eta_s(self, now: float) -> float | None:
        """Seconds to the end at the mean speed since the start; None before there is one."""
        gained = self.done_flops - self._done_before
        elapsed = now - self._began
        if gained <= 0 or elapsed <= 0:
            return None
        return (self._total_flops - self.done_flops) / gained * elapsed


@contextmanager
def live_view(plan: Plan, ledger: LedgerReader) -> Iterator[OnEvent]:
    """A callback that shows what the controller tells; the view ends with the block."""
    remaining = Remaining(plan, ledger, time.monotonic())
    if is_interactive():
        from rich.console import Console

        with terminal_view(remaining, Console(stderr=True)) as on_event:
            yield on_event
    else:
        yield PlainView(remaining)


class PlainView:
    """Progress as a log line now and then; events are logged by the controller itself."""

    def __init__(self, remaining: Remaining, interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._remaining = remaining
        self._interval_s = interval_s
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        _follow(self._remaining, event)
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return
        self._last = now
        logger.info("%s", progress_text(self._remaining, now))


@contextmanager
def terminal_view(remaining: Remaining, console: Console) -> Iterator[OnEvent]:
    """A bar for the study with a line for each gang that works below it; log lines are printed above."""
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[told]}"))
    root = logging.getLogger()
    handlers = root.handlers[:]
    with Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("training", total=1.0, told="no estimate yet")
        # Through the bar's own console, so that lines do not run through the bar.
        plain = NullHighlighter()
        root.handlers = [RichHandler(console=console, show_path=False, show_level=False, highlighter=plain)]
        lines: dict[object, tuple[TaskID, float]] = {}

        def on_event(event: Event) -> None:
            _follow(remaining, event)
            now = time.monotonic()
            progress.update(whole, completed=remaining.share, told=progress_text(remaining, now))
            if event.kind == PROGRESS:
                attempt, step, end_step = (event.content[name] for name in ("attempt", "step", "end_step"))
                line, _ = lines.get(attempt) or (progress.add_task("", total=float(end_step), told=""), now)
                description = event.text.partition(":")[0]
                progress.update(line, description=description, completed=float(step), told=f"step {step} of {end_step}")
                lines[attempt] = (line, now)
            for attempt, (line, told_at) in list(lines.items()):
                if now - told_at > SHOWN_FOR_S:
                    progress.remove_task(line)
                    del lines[attempt]

        try:
            yield on_event
        finally:
            root.handlers = handlers


def _follow(remaining: Remaining, event: Event) -> None:
    match event:
        case Event(kind=kind, content={"state_id": str(state_id), "step": int(step)}) if kind == PROGRESS:
            remaining.reach(state_id, step)
        case Event(kind="run.finished", content={"run": str(run_name)}):
            remaining.finish(run_name)


def progress_text(remaining: Remaining, now: float) -> str:
    """How much is done, and when the rest may be."""
    eta = remaining.eta_s(now)
    return f"{remaining.share:.0%} of the training FLOPs, " + (
        "no estimate yet" if eta is None else f"about {duration(eta)} left"
    )
