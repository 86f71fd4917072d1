"""Measured speeds: taken from the curves of the ledger, kept for later plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.journal import JournalLine
from orchestrator.measuring import SPEED_KEY, record_speeds
from orchestrator.throughput import load_throughput
from tests.orchestrator.paper_study import PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    return PaperStudy(tmp_path)


def add_speeds(study: PaperStudy, curve_id: str, *speeds: float) -> None:
    lines = [
        JournalLine(
            kind="metrics", curve_id=curve_id, step=1000 + step, tokens=step, time_ms=step, data={SPEED_KEY: speed}
        )
        for step, speed in enumerate(speeds)
    ]
    study.ledger.record_points(curve_id, lines)


def test_median_speed_of_each_shape_is_kept(study: PaperStudy) -> None:
    first, *_, last = study.runs()
    study.finish([first, last])
    start = max(study.ledger.heads().values())
    for run, speeds in ((first, (1.0, 900.0, 1000.0, 1100.0, 9999.0)), (last, (500.0,))):
        add_speeds(study, study.plan.segments[run.segments[0]].segment.curve_id, *speeds)
    record_speeds(study.ledger, study.home.calibration, start)
    measured = {row.shape.width: row.tokens_per_s for row in load_throughput(study.home.calibration).measurements}
    assert measured == {first.spec.shape.width: 1000.0, last.spec.shape.width: 500.0}


def test_points_from_before_are_not_counted_again(study: PaperStudy) -> None:
    study.finish()
    record_speeds(study.ledger, study.home.calibration, max(study.ledger.heads().values()))
    assert not study.home.calibration.exists()


def test_curve_that_no_attempt_of_the_plan_covers_is_left_out(study: PaperStudy) -> None:
    add_speeds(study, "a curve of nobody", 7.0)
    record_speeds(study.ledger, study.home.calibration, 0)
    assert not study.home.calibration.exists()
