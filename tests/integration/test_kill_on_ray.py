"""kill -9 of a rank and of the driver on real Ray: the study ends with the losses of an undisturbed one, each once.

Gangs have two ranks, so that a rank's death is felt by another, and execution is pinned, so that losses are equal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.launchers.inline import InlineLauncher
from jobs.journal import JournalLine
from jobs.tracking import OBSERVATION_TAG, Tracker, read_observations
from orchestrator.adoption import read_journal
from tests.integration.tiny import Tiny

TOKENS = "[50k, 80k]"
RANKS = 2
# Ray and two sets of imports on a busy machine; a calm one takes a tenth.
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Final losses of the study with nothing in its way."""
    tiny = Tiny(tmp_path_factory.mktemp("undisturbed"), tokens=TOKENS, ranks=RANKS)
    launcher = InlineLauncher()
    try:
        tiny.run(launcher)
    finally:
        launcher.close()
    assert len(tiny.losses()) == len(tiny.plan.runs)
    return tiny.losses()


@contextmanager
def driver(folder: Path, tracking: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program that a user would start, on a Ray of its own."""
    command = [sys.executable, "-m", "tests.integration.tiny", str(folder), "ray", TOKENS, str(RANKS), tracking]
    with (folder / "driver.log").open("ab") as log:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        log = (folder / "driver.log").read_text()[-3000:]
        assert process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.02)


def journals(tiny: Tiny) -> dict[str, list[JournalLine]]:
    """Journals of all attempts so far, by folder name."""
    folders = sorted(tiny.paths.attempts.glob("*")) if tiny.paths.attempts.exists() else []
    return {folder.name: read_journal(folder) for folder in folders}


def in_the_middle(tiny: Tiny) -> JournalLine | None:
    """The first line of an attempt that has committed a checkpoint inside a segment and goes on."""
    for lines in journals(tiny).values():
        kinds = [line.kind for line in lines]
        if "checkpoint" in kinds and "end" not in kinds:
            return lines[0]
    return None


def assert_equal(losses: dict[str, float], undisturbed: dict[str, float]) -> None:
    assert losses.keys() == undisturbed.keys()
    assert losses == pytest.approx(undisturbed, abs=1e-6)


def test_killed_rank_costs_its_gang_a_resume_and_nothing_else(tmp_path: Path, undisturbed: dict[str, float]) -> None:
    tiny = Tiny(tmp_path, tokens=TOKENS, ranks=RANKS)
    with driver(tmp_path, "untracked") as process:
        wait_for(lambda: in_the_middle(tiny) is not None, process, tmp_path)
        begin = in_the_middle(tiny)
        assert begin is not None
        rank_0 = psutil.Process(begin.data["pid"])
        # The other ranks of the attempt are children of the same fork server.
        rank_1 = next(child for child in rank_0.parent().children() if child.pid != rank_0.pid)
        rank_1.kill()
        assert process.wait(PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert_equal(tiny.losses(), undisturbed)
    killed = next(attempt for attempt in tiny.ledger.attempts() if attempt.outcome != "finished")
    assert (killed.outcome, killed.cause) == ("infrastructure", "rank 1: killed by SIGKILL")
    resumed = next(row for row in tiny.ledger.attempts() if row.number > killed.number and row.start_step > 0)
    assert resumed.state_ids[0] == killed.charged_state_id


def test_killed_driver_is_answered_by_the_same_command(tmp_path: Path, undisturbed: dict[str, float]) -> None:
    tiny = Tiny(tmp_path, tokens=TOKENS, ranks=RANKS)
    with driver(tmp_path, "tracked") as process:
        wait_for(lambda: in_the_middle(tiny) is not None, process, tmp_path)
        begin = in_the_middle(tiny)
        assert begin is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    gone, alive = psutil.wait_procs([psutil.Process(begin.data["pid"])], timeout=20) if _runs(begin) else ([], [])
    assert not alive, f"a rank outlived its driver: {gone}, {alive}"
    with driver(tmp_path, "tracked") as process:
        assert process.wait(PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert_equal(tiny.losses(), undisturbed)
    assert "driver_lost" in [attempt.outcome for attempt in tiny.ledger.attempts()]
    assert_each_run_once_in_mlflow(tiny, undisturbed)


def _runs(line: JournalLine) -> bool:
    return bool(psutil.pid_exists(line.data["pid"]))


def assert_each_run_once_in_mlflow(tiny: Tiny, undisturbed: dict[str, float]) -> None:
    """Every run of the plan stands in MLflow once, finished, with its whole curve and the loss of the ledger."""
    tracker = Tracker(tiny.tracking_uri, tiny.home.mlflow_artifacts)
    rows = read_observations(tracker, tiny.study.name)
    assert {row["name"]: row["loss"] for row in rows} == tiny.losses()
    experiment = tracker.experiment_of(tiny.study.name)
    assert experiment is not None
    runs = [run for run in tracker.runs(experiment).values() if OBSERVATION_TAG in run.tags]
    assert sorted(run.name for run in runs) == sorted(undisturbed)
    points = tiny.ledger.points_after(limit=1_000_000)
    for run in runs:
        planned = next(each for each in tiny.plan.runs if each.name == run.name)
        expected = []
        for state_id in planned.segments:
            segment = tiny.plan.segments[state_id].segment
            expected += [
                (point.tokens, point.value)
                for point in points
                if point.curve_id == segment.curve_id
                and point.key == "train/loss"
                and segment.start_step < point.step <= segment.end_step
            ]
        found = [(point.step, point.value) for point in tracker.history(run.mlflow_id, "train/loss")]
        assert sorted(found) == sorted(expected)
