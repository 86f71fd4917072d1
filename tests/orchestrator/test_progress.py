"""The live view: how much is done, how long it takes, and that logging is as before once it ends."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.events import PROGRESS, Event
from orchestrator.progress import PlainView, Remaining, progress_text, terminal_view
from tests.orchestrator.paper_study import PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    return PaperStudy(tmp_path)


def at_step(state_id: str, step: int) -> Event:
    content: dict[str, Any] = {"attempt": 1, "state_id": state_id, "step": step, "end_step": 400}
    return Event(PROGRESS, f"run n1: step {step} of 400", 0, content)


def test_share_is_of_flops_and_counts_what_a_step_stands_upon(study: PaperStudy) -> None:
    remaining = Remaining(study.plan, study.ledger, 0.0)
    assert remaining.share == 0.0
    run = study.runs()[-1]
    final = study.plan.segments[run.segments[-1]].segment
    remaining.reach(run.segments[-1], final.start_step)
    trunk_flops = sum(study.plan.segments[state_id].train_flops for state_id in run.segments[:-1])
    assert remaining.done_flops == pytest.approx(trunk_flops)


def test_steps_beyond_a_segment_count_once(study: PaperStudy) -> None:
    remaining = Remaining(study.plan, study.ledger, 0.0)
    state_id = study.runs()[0].segments[0]
    remaining.reach(state_id, 10**6)
    remaining.reach(state_id, 1)
    assert remaining.done_flops == pytest.approx(study.plan.segments[state_id].train_flops)


def test_study_whose_runs_have_finished_is_done(study: PaperStudy) -> None:
    remaining = Remaining(study.plan, study.ledger, 0.0)
    for run in study.plan.runs:
        remaining.finish(run.name)
    assert remaining.share == pytest.approx(1.0)
    assert remaining.eta_s(5.0) == pytest.approx(0.0)


def test_what_was_done_before_does_not_shorten_the_estimate(study: PaperStudy) -> None:
    study.finish(study.runs()[:8])
    remaining = Remaining(study.plan, study.ledger, now=100.0)
    assert 0 < remaining.share < 1
    assert remaining.eta_s(101.0) is None
    assert progress_text(remaining, 101.0).endswith("no estimate yet")
    before = remaining.done_flops
    remaining.finish(study.runs()[8].name)
    speed = (remaining.done_flops - before) / 10.0
    total = sum(planned.train_flops for planned in study.plan.segments.values())
    assert remaining.eta_s(110.0) == pytest.approx((total - remaining.done_flops) / speed)


def test_plain_view_tells_now_and_then(study: PaperStudy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    quiet = PlainView(Remaining(study.plan, study.ledger, 0.0))
    quiet(at_step(study.runs()[0].segments[0], 10))
    assert caplog.messages == []
    PlainView(Remaining(study.plan, study.ledger, 0.0), interval_s=0.0)(at_step(study.runs()[0].segments[0], 10))
    assert "of the training FLOPs" in caplog.messages[0]


def test_terminal_shows_a_line_a_gang_and_logs_above(study: PaperStudy) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.INFO)
    try:
        with terminal_view(Remaining(study.plan, study.ledger, 0.0), console) as on_event:
            on_event(at_step(study.runs()[0].segments[0], 37))
            logging.getLogger("some.part").info("run n1: [placed] on 1 rank")
    finally:
        root.setLevel(level)
    assert root.handlers == handlers
    shown = screen.getvalue()
    assert "step 37 of 400" in shown
    assert "of the training FLOPs" in shown
    assert "[placed] on 1 rank" in shown


def test_no_color_takes_the_colours_and_leaves_the_view(study: PaperStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = io.StringIO()
    with terminal_view(
        Remaining(study.plan, study.ledger, 0.0), Console(file=screen, force_terminal=True, width=120)
    ) as on_event:
        on_event(at_step(study.runs()[0].segments[0], 37))
    assert "step 37 of 400" in screen.getvalue()
    assert "\x1b[3" not in screen.getvalue()
