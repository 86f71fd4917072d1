"""A whole study, trained for real with DeepSpeed on the inline launcher: from a text file to the last observation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cluster.launchers.inline import InlineLauncher
from jobs.checkpoints import verify_state
from tests.integration.tiny import Tiny

RUNS = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two fitted sizes and a held-out one at two budgets, trained to the end."""
    tiny = Tiny(tmp_path_factory.mktemp("inline"))
    launcher = InlineLauncher()
    try:
        outcome = tiny.run(launcher)
    finally:
        launcher.close()
    assert len(outcome.finished) == RUNS, outcome
    return tiny


def test_every_run_has_one_observation_with_its_conventions(finished: Tiny) -> None:
    rows = finished.ledger.observations()
    assert [row.name for row in rows] == [run.name for run in finished.plan.runs]
    for row, run in zip(rows, finished.plan.runs, strict=True):
        assert (row.params, row.tokens, row.train_flops) == (run.params.matmul, run.tokens, run.train_flops)
        assert row.evaluation_tokens == finished.study.evaluation.tokens
        assert 0 < row.loss < 5.6
        assert 0 < row.loss_se < 0.2


def test_loss_falls_with_tokens_at_every_size(finished: Tiny) -> None:
    losses = finished.losses()
    for size in ("6k", "12k", "22k"):
        assert losses[f"n{size}-d10k-s0"] < losses[f"n{size}-d6k-s0"]


def test_shared_trunks_are_trained_once(finished: Tiny) -> None:
    placed = Counter(state_id for attempt in finished.ledger.attempts() for state_id in attempt.state_ids)
    assert set(placed.values()) == {1}
    assert len(placed) == len(finished.plan.segments)


def test_every_accepted_state_verifies(finished: Tiny) -> None:
    for row in finished.ledger.segments().values():
        assert row.path is not None
        manifest = verify_state(Path(row.path), row.manifest_digest)
        assert (manifest.state_id, manifest.step) == (row.state_id, row.end_step)


def test_curve_of_a_run_reaches_from_its_first_step_to_its_last(finished: Tiny) -> None:
    points = finished.ledger.points_after(limit=100_000)
    for run in finished.plan.runs:
        steps = set()
        for state_id in run.segments:
            segment = finished.plan.segments[state_id].segment
            steps |= {
                point.step
                for point in points
                if point.curve_id == segment.curve_id
                and point.key == "train/loss"
                and segment.start_step < point.step <= segment.end_step
            }
        assert steps == set(range(1, run.spec.total_steps + 1))


def test_targets_began_after_their_forecast_was_frozen(finished: Tiny) -> None:
    forecast = finished.ledger.forecasts()[0]
    assert forecast.blind
    for attempt in finished.ledger.attempts():
        if finished.plan.segments[attempt.state_ids[0]].role == "target":
            assert attempt.began_ms >= forecast.frozen_ms


def test_same_command_again_trains_nothing(finished: Tiny) -> None:
    before = (finished.losses(), len(finished.ledger.attempts()))
    launcher = InlineLauncher()
    try:
        outcome = finished.run(launcher)
    finally:
        launcher.close()
    assert len(outcome.finished) == RUNS
    assert (finished.losses(), len(finished.ledger.attempts())) == before
