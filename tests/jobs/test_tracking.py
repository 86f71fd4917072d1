import math
import socket
import time
from pathlib import Path

import pytest

from jobs import tracking
from jobs.tracking import Point, Tracker, TrackingConflict, TrackingError, TrackingUnreachable


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    root = tmp_path_factory.mktemp("store")
    return Tracker(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")


def test_experiment_and_run_are_made_once(tracker: Tracker) -> None:
    first = tracker.ensure_experiment("once", {tracking.NOTE_TAG: "before"})
    second = tracker.ensure_experiment("once", {tracking.NOTE_TAG: "after"})
    assert first == second
    parent = tracker.ensure_run(first, "study:once", "once")
    made = tracker.ensure_run(first, "run:1", "n14k-d2M-s0", parent=parent.mlflow_id, tags={"scaling.role": "fit"})
    found = tracker.ensure_run(first, "run:1", "n14k-d2M-s0", parent=parent.mlflow_id)
    assert found.mlflow_id == made.mlflow_id
    assert found.tags[tracking.PARENT_TAG] == parent.mlflow_id
    assert set(tracker.runs(first)) == {"study:once", "run:1"}


def test_a_replay_of_points_adds_nothing(tracker: Tracker) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment("replay"), "run:1", "r")
    points = [Point("train/loss", 5.0 - i / 1000, 1024 * i, 1_750_000_000_000 + i) for i in range(1500)]
    tracker.log_points(run.mlflow_id, points[:1100])
    tracker.log_points(run.mlflow_id, points)
    assert tracker.history(run.mlflow_id, "train/loss") == points


def test_values_that_are_not_finite_are_left_out_and_named(tracker: Tracker) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment("finite"), "run:1", "r")
    points = [Point("train/loss", value, i, i) for i, value in enumerate([2.0, math.nan, math.inf, 1.0])]
    assert tracker.log_points(run.mlflow_id, [*points, Point("grad_norm", 1.0, 0, 0)]) == {"train/loss"}
    assert [point.value for point in tracker.history(run.mlflow_id, "train/loss")] == [2.0, 1.0]


def test_params_accept_the_same_value_and_no_other(tracker: Tracker) -> None:
    experiment = tracker.ensure_experiment("params")
    run = tracker.ensure_run(experiment, "run:1", "r")
    tracker.log_params(run.mlflow_id, {f"p{i}": i / 3 for i in range(150)})
    tracker.log_params(run.mlflow_id, {"p7": 7 / 3})
    with pytest.raises(TrackingConflict, match="immutable"):
        tracker.log_params(run.mlflow_id, {"p7": 0.5})
    assert float(tracker.runs(experiment)["run:1"].params["p7"]) == 7 / 3


def test_status_moves_forward_and_back(tracker: Tracker) -> None:
    experiment = tracker.ensure_experiment("status")
    run = tracker.ensure_run(experiment, "run:1", "r")
    for status in ("SCHEDULED", "RUNNING", "FAILED", "RUNNING", "FINISHED"):
        tracker.set_status(run.mlflow_id, status, end_ms=1_750_000_000_000 if status in tracking.ENDED else None)
        assert tracker.runs(experiment)["run:1"].status == status


def test_artifacts_of_one_name_are_replaced(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment("artifacts"), "run:1", "r")
    for text in ("first", "second"):
        (tmp_path / "law.csv").write_text(text)
        tracker.log_artifact(run.mlflow_id, tmp_path / "law.csv", "laws")
    assert tracker.artifact_root is not None
    stored = list((tracker.artifact_root / "artifacts").rglob("law.csv"))
    assert [path.read_text() for path in stored] == ["second"]


def test_observations_of_an_unknown_study_say_what_to_do(tracker: Tracker) -> None:
    with pytest.raises(TrackingError, match="no experiment 'nowhere'; `scaling run` makes it"):
        tracking.read_observations(tracker, "nowhere")


def test_a_server_that_is_down_costs_seconds() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(TrackingUnreachable, match=f"http://\\*\\*\\*@127.0.0.1:{port} does not answer"):
        Tracker(f"http://user:secret@127.0.0.1:{port}")
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing_costs_seconds() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        began = time.monotonic()
        with pytest.raises(TrackingUnreachable, match="does not answer"):
            Tracker(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - began < 15


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(TrackingError, match=r"refuses.*not a database"):
        Tracker(f"sqlite:///{tmp_path}/mlflow.db")


def test_secrets_in_an_address_are_not_shown() -> None:
    assert tracking.redacted("https://me:token@tracking.example/x") == "https://***@tracking.example/x"
