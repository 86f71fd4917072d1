"""Speeds: measured where there are measurements, else a guess that says so."""

from pathlib import Path

import pytest

from jobs.accounting import train_flops_per_token
from jobs.spec import Execution
from orchestrator.plan import build_plan
from orchestrator.throughput import Measurement, Throughput, load_throughput, record
from tests.conftest import make_shape
from tests.studies import small_study

EXECUTION = Execution(micro_batch_sequences=8)


def measured(width: int, tokens_per_s: float, world_size: int = 1) -> Measurement:
    return Measurement(
        shape=make_shape(width=width),
        device="cpu",
        world_size=world_size,
        threads_per_rank=1,
        batch_tokens=128,
        tokens_per_s=tokens_per_s,
    )


def test_without_measurements_the_estimate_is_a_guess() -> None:
    estimate = Throughput().estimate(make_shape(), EXECUTION, 128)
    assert estimate.source == "guess"
    assert estimate.tokens_per_s > 0


def test_the_guess_is_slower_for_more_work() -> None:
    speeds = [Throughput().estimate(make_shape(width=width), EXECUTION, 1024).tokens_per_s for width in (16, 64, 512)]
    assert speeds == sorted(speeds, reverse=True)


def test_the_nearest_shape_is_scaled_by_flops() -> None:
    throughput = Throughput((measured(16, 90_000), measured(64, 20_000)))
    estimate = throughput.estimate(make_shape(width=72), EXECUTION, 128)
    ratio = train_flops_per_token(make_shape(width=64)) / train_flops_per_token(make_shape(width=72))
    assert estimate.source == "measured"
    assert estimate.tokens_per_s == pytest.approx(20_000 * ratio)


def test_another_gang_is_not_measured_by_this_one() -> None:
    assert Throughput((measured(16, 9e4, world_size=2),)).estimate(make_shape(), EXECUTION, 128).source == "guess"


def test_measurements_are_stored_and_averaged(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert load_throughput(path) == Throughput()
    record(path, measured(16, 80_000))
    record(path, measured(32, 40_000))
    record(path, measured(16, 100_000))
    assert {m.shape.width: m.tokens_per_s for m in load_throughput(path).measurements} == {16: 90_000, 32: 40_000}


@pytest.mark.parametrize("text", ["{", "[]", '{"measurements": [{"shape": 3}]}'])
def test_a_damaged_table_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="Delete it; the next run measures them anew"):
        load_throughput(path)


def test_a_plan_says_where_its_times_come_from() -> None:
    study = small_study()
    assert build_plan(study).estimate_source == "guess"
    shape = build_plan(study).runs[0].spec.shape
    known = measured(16, 50_000).model_copy(update={"shape": shape, "batch_tokens": 1024})
    plan = build_plan(study, throughput=Throughput((known,)))
    assert plan.estimate_source == "measured"
    first = next(iter(plan.segments.values()))
    assert first.estimated_s == pytest.approx(390 * 1024 / 50_000)
