from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import tracking
from jobs.tracking import Point, Tracker, TrackingError, TrackingUnreachable
from orchestrator.shipper import Child, Shipper, Stretch, follow, ship_once
from tests.small_study import BATCH_TOKENS, SmallStudy, attach, finished_study, planned_study

ONE_SIZE = {"n14k": 14_000}
TWO_BUDGETS = {"d500k": 512_000, "d1M": 1_024_000}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    root = tmp_path_factory.mktemp("store")
    return Tracker(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")


def small(name: str, make: Callable[..., SmallStudy] = finished_study) -> SmallStudy:
    study = make(ONE_SIZE, TWO_BUDGETS)
    study.name = name
    return study


def runs_of(tracker: Tracker, study: SmallStudy) -> dict[str, tracking.TrackedRun]:
    experiment = tracker.experiment_of(study.name)
    assert experiment is not None
    return tracker.runs(experiment)


def curve(tracker: Tracker, study: SmallStudy, run_id: str, key: str = "train/loss") -> list[Point]:
    return tracker.history(runs_of(tracker, study)[run_id].mlflow_id, key)


class FailingTracker:
    """A store whose connection breaks at the n-th write."""

    def __init__(self, tracker: Tracker, fail_at_write: int) -> None:
        self._tracker = tracker
        self._writes_left = fail_at_write

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._tracker, name)
        if not name.startswith(("log_", "set_", "ensure_")):
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._writes_left -= 1
            if self._writes_left == 0:
                # The answer is lost, not the write: the hardest case for what must not be doubled.
                method(*args, **kwargs)
                raise TrackingUnreachable("the connection broke")
            return method(*args, **kwargs)

        return counted


def test_every_run_has_its_whole_curve_over_tokens(tracker: Tracker) -> None:
    study = small("whole")
    ship_once(study, tracker)
    points = curve(tracker, study, "run:n14k-d1M")
    fork = 800 * BATCH_TOKENS
    assert [point.step for point in points] == [25 * BATCH_TOKENS * i for i in range(1, 41)]
    trunk = {point.step: point.value for point in curve(tracker, study, "trunk:n14k")}
    assert all(point.value == trunk[point.step] for point in points if point.step <= fork)
    assert max(trunk) == fork
    steps = curve(tracker, study, "run:n14k-d1M", tracking.OPTIMIZER_STEP)
    assert [point.value for point in steps] == [point.step / BATCH_TOKENS for point in points]
    assert curve(tracker, study, "run:n14k-d1M", tracking.TRAIN_FLOPS)[-1].value == 6.0 * 14_000 * 1_024_000


def test_runs_are_nested_named_and_ended(tracker: Tracker) -> None:
    study = small("nested")
    ship_once(study, tracker)
    runs = runs_of(tracker, study)
    parent = runs.pop("study:nested")
    assert {run.name for run in runs.values()} == {"n14k-s0 trunk", "n14k-d500k-s0", "n14k-d1M-s0"}
    assert {run.tags[tracking.PARENT_TAG] for run in runs.values()} == {parent.mlflow_id}
    assert {run.status for run in runs.values()} | {parent.status} == {"FINISHED"}
    assert runs["run:n14k-d1M"].params["learning_rate"] == "0.012"
    assert runs["run:n14k-d1M"].metrics["C"] == 6.0 * 14_000 * 1_024_000


def test_observations_come_back_to_the_last_digit(tracker: Tracker) -> None:
    study = small("rows")
    ship_once(study, tracker)
    sent = [child.ending.observation for child in study.runs if child.ending is not None]
    assert tracking.read_observations(tracker, "rows") == sorted(sent, key=lambda row: str(row["name"]))


def test_a_second_pass_sends_nothing(tracker: Tracker) -> None:
    study = small("twice")
    first = ship_once(study, tracker)
    assert first.points > 0
    assert first.runs_made == 4
    again = ship_once(study, tracker)
    assert (again.points, again.runs_made, again.artifacts) == (0, 0, 0)


def test_points_arrive_as_they_are_recorded(tracker: Tracker) -> None:
    study, shipper = small("live", planned_study), Shipper(tracker)
    shipper.ship(study)
    assert runs_of(tracker, study)["run:n14k-d1M"].status == "SCHEDULED"
    for step in (25, 50, 75):
        study.record("n14k-trunk", "train/loss", step, step * BATCH_TOKENS, 5.0 - step / 100)
        shipper.ship(study)
        assert len(curve(tracker, study, "run:n14k-d1M")) == step // 25


def test_a_run_that_joins_a_finished_trunk_gets_its_points_from_the_beginning(tracker: Tracker) -> None:
    study, shipper = small("joins"), Shipper(tracker)
    late = study.runs.pop()
    shipper.ship(study)
    study.runs.append(late)
    assert shipper.ship(study).runs_made == 1
    assert len(curve(tracker, study, late.run_id)) == 40


def test_a_rebuilt_ledger_is_sent_again_without_doubling(tracker: Tracker) -> None:
    study = small("rebuilt")
    ship_once(study, tracker)
    before = curve(tracker, study, "run:n14k-d1M")
    study.counted_by = "ledger-2"
    assert ship_once(study, tracker).points > 0
    assert curve(tracker, study, "run:n14k-d1M") == before


@pytest.mark.parametrize("fail_at_write", [1, 2, 4, 7, 9, 12, 16, 23])
def test_a_connection_that_breaks_anywhere_loses_and_doubles_nothing(tracker: Tracker, fail_at_write: int) -> None:
    study = small(f"breaks-{fail_at_write}")
    shipper = Shipper(FailingTracker(tracker, fail_at_write))  # type: ignore[arg-type]
    with pytest.raises(TrackingUnreachable):
        shipper.ship(study)
    shipper.ship(study)
    runs = runs_of(tracker, study)
    assert len(runs) == 4
    for child in study.runs:
        expected = [
            row.tokens
            for row in study.rows
            if row.key == "train/loss" and any(stretch.holds(row.curve_id, row.step) for stretch in child.stretches)
        ]
        assert [point.step for point in tracker.history(runs[child.run_id].mlflow_id, "train/loss")] == expected
        assert runs[child.run_id].status == "FINISHED"


def test_a_run_deleted_over_there_is_made_again(tracker: Tracker) -> None:
    study, shipper = small("deleted"), Shipper(tracker)
    shipper.ship(study)
    tracker._client.delete_run(runs_of(tracker, study)["run:n14k-d1M"].mlflow_id)
    assert ship_once(study, tracker).runs_made == 1
    assert len(curve(tracker, study, "run:n14k-d1M")) == 40


def test_a_param_that_differs_is_told_and_stops_nothing(tracker: Tracker) -> None:
    study = small("conflict")
    ship_once(study, tracker)
    study.change("run:n14k-d500k", params={"learning_rate": 0.02})
    study.runs.append(Child("run:new", "n14k-d3M-s0", "fit", (Stretch("n14k-trunk", through_step=100),)))
    shipped = ship_once(study, tracker)
    assert shipped.conflicts == ("n14k-d500k-s0: learning_rate is 0.012 in MLflow and 0.02 here",)
    assert len(curve(tracker, study, "run:new")) == 4


def test_a_setting_of_the_study_that_an_extension_changed_goes_into_a_tag(tracker: Tracker) -> None:
    study = small("extended", planned_study)
    ship_once(study, tracker)
    study.params = {"design": "grid, one more budget"}
    assert ship_once(study, tracker).conflicts == ()
    parent = runs_of(tracker, study)["study:extended"]
    assert (parent.params["design"], parent.tags["scaling.study.design"]) == ("grid", "grid, one more budget")


def test_a_headline_value_that_changes_is_shown_with_its_new_value(tracker: Tracker) -> None:
    study = small("headline", planned_study)
    for value in (0.02, 0.01, 0.01):
        study.metrics = {"forecast/relative_error": value}
        ship_once(study, tracker)
    parent = runs_of(tracker, study)["study:headline"]
    assert parent.metrics == {"forecast/relative_error": 0.01}
    assert len(tracker.history(parent.mlflow_id, "forecast/relative_error")) == 2


def test_values_that_are_not_finite_are_told_in_a_tag(tracker: Tracker) -> None:
    study = small("diverged", planned_study)
    study.record("n14k-trunk", "train/loss", 25, 25 * BATCH_TOKENS, float("inf"))
    study.change("run:n14k-d1M", status="FAILED", tags={"scaling.status": "diverged at step 25"})
    ship_once(study, tracker)
    run = runs_of(tracker, study)["run:n14k-d1M"]
    assert (run.status, run.tags["scaling.non_finite"]) == ("FAILED", "train/loss")


def test_an_artifact_is_sent_when_its_content_changes(tracker: Tracker, tmp_path: Path) -> None:
    study, shipper = small("files", planned_study), Shipper(tracker)
    table = tmp_path / "law.csv"
    for text, sent in (("first", 1), ("first", 0), ("second", 1)):
        table.write_text(text)
        study.files = []
        attach(study, table, "laws")
        assert shipper.ship(study).artifacts == sent


def test_follow_waits_longer_after_every_failure_and_then_catches_up(tracker: Tracker) -> None:
    study, waits, openings = small("follow"), [], 0

    def open_tracker() -> Tracker:
        nonlocal openings
        openings += 1
        if openings < 5:
            raise TrackingUnreachable("nobody there")
        return tracker

    done = follow(study, open_tracker, should_stop=lambda: len(waits) >= 6, wait=waits.append)
    assert done
    assert waits == [2.0, 4.0, 8.0, 16.0, 2.0, 2.0]
    assert len(curve(tracker, study, "run:n14k-d1M")) == 40


def test_follow_says_when_its_last_pass_could_not_be_made() -> None:
    def open_tracker() -> Tracker:
        raise TrackingError("wrong password")

    assert not follow(small("never"), open_tracker, should_stop=lambda: True, wait=lambda seconds: None)
