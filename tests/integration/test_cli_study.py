"""One tiny study through `scaling run`, as a person types it: trained, forecast, fitted, shipped, repeated, extended.

Everything is real but small: three sizes by four budgets of 25 to 80 steps, on texts written here. Two forms are asked
for, of which one needs more sizes than there are: a law is made of the other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.journal import JournalLine
from jobs.observation import Observation
from jobs.tracking import OBSERVATION_TAG, PARENT_TAG, ROLE_TAG, TRAIN_LOSS, TrackedRun, Tracker
from orchestrator.adoption import read_journal
from orchestrator.database import sqlite_url
from orchestrator.reading import LedgerReader
from tests.integration.tiny import write_texts

SCALING = str(Path(sys.executable).with_name("scaling"))
STUDY = """\
name: tiny
question: "What loss does the held-out size reach?"
design: {{kind: grid, sizes: [3k, 7k, 12k], tokens: [6400, 10k, 16k, 20480]}}
model: {{base_width: 16, head_dim: 8, num_layers: 1, sequence_length: 32}}
corpus: {{source: files, path: {texts}, validation_fraction: 0.1}}
recipe: {{learning_rate: 0.01, batch_tokens: 256, warmup_steps: 8, decay_fraction: 0.25}}
evaluation: {{tokens: 4k}}
forecast: {{hold_out: largest_size, forms: [power_no_floor, chinchilla]}}
fit: {{forms: [power_no_floor, chinchilla], form: power_no_floor, bootstrap: 50}}
execution: {{launcher: inline, checkpoint_interval_s: 0.5}}
"""
RUNS = 12
TRUNKS = 3
# A quiet machine takes a tenth.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Shell:
    """A folder with a study file and a home, in which commands are typed."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        # As in an activated environment: the shell finds `scaling` by name.
        path = os.pathsep.join([str(Path(SCALING).parent), os.environ["PATH"]])
        return {**inherited, "SCALING_HOME": str(self.home), "PATH": path}

    def start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCALING, command, "study.yaml", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, command: str, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """What a command prints on stdout and stderr; its exit code must be `code`."""
        return ended(self.start(command, *arguments, **environment), code)

    def document(self, command: str, *arguments: str) -> Any:
        return json.loads(self.type(command, *arguments)[0])

    @property
    def ledger(self) -> LedgerReader:
        return LedgerReader.open(sqlite_url(self.home / "studies" / "tiny" / "ledger.sqlite"))

    def observations(self) -> dict[str, Observation]:
        return {row.name: row for row in self.ledger.observations()}

    def copy(self, folder: Path) -> Shell:
        """The same study in another place, with what it has trained. States keep their paths: the original stays."""
        shutil.copytree(self.home, folder / "home")
        shutil.copy(self.folder / "study.yaml", folder)
        return Shell(folder)


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def write_study(folder: Path, texts: Path) -> Shell:
    (folder / "study.yaml").write_text(STUDY.format(texts=texts))
    return Shell(folder)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> tuple[Shell, str, str]:
    """The study trained from nothing, with what was printed."""
    shell = write_study(tmp_path_factory.mktemp("study"), texts)
    return (shell, *shell.type("run"))


@pytest.fixture(scope="module")
def shell(first_run: tuple[Shell, str, str]) -> Shell:
    return first_run[0]


# The first run


def test_results_are_on_stdout_and_the_story_on_stderr(first_run: tuple[Shell, str, str]) -> None:
    shell, out, err = first_run
    assert out.startswith(f"{RUNS} runs: {RUNS} finished\n")
    assert "power_no_floor: " in out
    assert "left out chinchilla: " in out
    assert "first: the one that is scored; blind" in out
    assert f"report   {shell.home}/studies/tiny/report/report.html" in out
    assert out.rstrip().endswith("MLflow   scaling ui study.yaml")
    assert "run n12k-d20.48k-s0: finished, held-out loss" in err


def test_targets_begin_after_the_forecast(shell: Shell) -> None:
    (forecast,) = shell.ledger.forecasts()
    segments = shell.ledger.segments()
    began = [attempt.began_ms for attempt in shell.ledger.attempts() if segments[attempt.state_ids[0]].role == "target"]
    assert min(began) >= forecast.frozen_ms
    assert forecast.score is not None
    assert forecast.score["scored"] == 4


def test_every_reading_command_shows_the_study(shell: Shell) -> None:
    assert shell.document("status", "--json")["counts"] == {"finished": RUNS}
    assert len(shell.document("observations", "--format", "json")) == RUNS
    assert shell.document("fit", "--json")["form"] == "power_no_floor"
    assert shell.document("predict", "--json", "--params", "100k", "--tokens", "1M")["note"].startswith("extrapolates")
    assert shell.document("forecast", "--json")[0]["score"]["status"] == "scored"
    assert "power_no_floor" in shell.type("export", "--format", "md")[0]
    assert shell.document("report", "--json")["valid"]
    assert "finished at step 80" in shell.type("logs", "--run", "n12k-d20.48k-s0")[0]
    assert "is not running" in shell.type("stop")[0]


def test_same_command_again_trains_nothing_and_says_why_in_one_line(
    first_run: tuple[Shell, str, str],
) -> None:
    shell, out, _ = first_run
    before = len(shell.ledger.attempts())
    began = time.monotonic()
    again, err = shell.type("run")
    assert again == out
    told = [line for line in err.splitlines() if "no training" in line]
    assert len(told) == 1
    assert f"{RUNS} of {RUNS} runs of tiny have ended before" in told[0]
    assert len(shell.ledger.attempts()) == before
    assert time.monotonic() - began < 120.0


# MLflow


@pytest.fixture(scope="module")
def tracker(shell: Shell) -> Tracker:
    return Tracker(f"sqlite:///{shell.home / 'mlflow.db'}")


@pytest.fixture(scope="module")
def tracked(shell: Shell, tracker: Tracker) -> dict[str, TrackedRun]:
    experiment_id = tracker.experiment_of("tiny")
    assert experiment_id is not None
    return {run.name: run for run in tracker.runs(experiment_id).values()}


def test_one_parent_and_one_child_a_run_and_trunk(tracked: dict[str, TrackedRun]) -> None:
    roles = [run.tags[ROLE_TAG] for run in tracked.values()]
    assert {role: roles.count(role) for role in roles} == {"study": 1, "trunk": TRUNKS, "fit": 8, "target": 4}
    (parent,) = [run for run in tracked.values() if run.tags[ROLE_TAG] == "study"]
    assert {run.tags.get(PARENT_TAG) for run in tracked.values()} == {None, parent.mlflow_id}
    assert {run.status for run in tracked.values()} == {"FINISHED"}


def test_every_run_has_its_whole_curve_over_tokens(
    shell: Shell, tracker: Tracker, tracked: dict[str, TrackedRun]
) -> None:
    for row in shell.observations().values():
        curve = tracker.history(tracked[row.name].mlflow_id, TRAIN_LOSS)
        assert [point.step for point in curve] == list(range(256, row.tokens + 1, 256))
    long, short = (
        {point.step: point.value for point in tracker.history(tracked[name].mlflow_id, TRAIN_LOSS)}
        for name in ("n12k-d20.48k-s0", "n12k-d6.4k-s0")
    )
    fork = round(0.75 * 25) * 256
    assert all(long[step] == value for step, value in short.items() if step <= fork)


def test_params_tags_metrics_and_artifacts_are_there(
    shell: Shell, tracker: Tracker, tracked: dict[str, TrackedRun]
) -> None:
    row = shell.observations()["n12k-d20.48k-s0"]
    run = tracked[row.name]
    assert (run.params["N"], run.params["D"]) == (str(row.params), str(row.tokens))
    assert run.params["fingerprint"] == row.state_id
    assert run.metrics["val/loss"] == row.loss
    assert run.tags["scaling.execution.world_size"] == "1"
    assert Observation.model_validate_json(run.tags[OBSERVATION_TAG]) == row
    (parent,) = [other for other in tracked.values() if other.tags[ROLE_TAG] == "study"]
    assert parent.params["recipe.learning_rate"] == "0.01"
    names = {path.name for path in (shell.home / "mlartifacts").rglob("*")}
    assert {"law.json", "law.csv", "report.html", "law.png", "observations.csv", "summary.txt"} <= names


def test_observations_from_mlflow_are_the_rows_of_the_ledger(shell: Shell) -> None:
    own = shell.document("observations", "--format", "json")
    shipped = shell.document("observations", "--format", "json", "--from-mlflow")
    assert shipped == sorted(own, key=lambda row: row["name"])


# Extending a finished study


def extended(shell: Shell, folder: Path, tokens: str) -> tuple[Shell, str]:
    """A copy of the finished study, run with other budgets; and what it told."""
    longer = shell.copy(folder)
    return longer, longer.type("run", f"design.tokens={tokens}")[1]


def test_inserted_budget_trains_only_its_decay_and_renames_nothing(shell: Shell, tmp_path: Path) -> None:
    before, attempts = shell.observations(), len(shell.ledger.attempts())
    longer, _ = extended(shell, tmp_path, "[6400, 10k, 13k, 16k, 20480]")
    after = longer.observations()
    assert len(after) == RUNS + 3
    assert {name: after[name] for name in before} == before
    segments = longer.ledger.segments()
    new = [segments[state_id] for row in longer.ledger.attempts()[attempts:] for state_id in row.state_ids]
    # The fork lies inside a trunk segment that was trained whole: its state is trained to, from the fork before.
    assert {segment.kind for segment in new} == {"trunk", "decay"}
    assert sum(segment.end_step - segment.start_step for segment in new if segment.kind == "decay") == 3 * 13
    assert all(segment.start_step >= 29 for segment in new)


def test_longer_horizon_continues_the_trunk(shell: Shell, tmp_path: Path) -> None:
    before, attempts = shell.observations(), len(shell.ledger.attempts())
    longer, _ = extended(shell, tmp_path, "[6400, 10k, 16k, 20480, 25600]")
    after = longer.observations()
    assert {name: after[name] for name in before} == before
    assert len(after) == RUNS + 3
    new = longer.ledger.attempts()[attempts:]
    assert {row.start_step for row in new} == {60}
    # The trunk of the new target had been trained: its forecast is its own, and is not blind.
    assert [row.blind for row in longer.ledger.forecasts()] == [True, False]
    assert longer.ledger.forecasts()[1].targets == ("n12k-d25.6k-s0",)


def test_tracking_server_that_is_down_loses_nothing(shell: Shell, tmp_path: Path) -> None:
    other = shell.copy(tmp_path)
    design = "design.tokens=[6400, 10k, 16k, 18k, 20480]"
    _, err = other.type("run", design, code=3, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9 has not taken everything: nothing is lost" in err
    assert len(other.observations()) == RUNS + 3
    trained = len(other.ledger.attempts())
    # The same command later, when the store answers.
    _, err = other.type("run", design)
    assert "no training" in err
    assert len(other.ledger.attempts()) == trained
    shipped = other.document("observations", design, "--from-mlflow", "--format", "json")
    assert {row["name"]: row["loss"] for row in shipped} == {
        name: row.loss for name, row in other.observations().items()
    }


# Interruptions and company


def journals(shell: Shell) -> list[JournalLine]:
    folder = shell.home / "studies" / "tiny" / "attempts"
    return [line for path in (folder.glob("*") if folder.exists() else ()) for line in read_journal(path)]


def test_interrupted_study_goes_on_and_a_second_command_watches_it(shell: Shell, tmp_path: Path, texts: Path) -> None:
    other = write_study(tmp_path, texts)
    # The prepared corpus is the same: only training is of interest here.
    shutil.copytree(shell.home / "corpora", other.home / "corpora")
    process = other.start("run")
    wait_for(lambda: any(line.kind == "metrics" and line.step > 5 for line in journals(other)), process)
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 130)
    assert "stopping: gangs checkpoint and leave" in err
    assert "go on with: scaling run study.yaml" in err
    assert 0 <= len(other.observations()) < RUNS

    driver = other.start("run")
    wait_for(lambda: other.document("status", "--json")["driver"] is not None, driver)
    watcher = other.start("run")
    watched, told = ended(watcher, 0)
    out, _ = ended(driver, 0)
    assert "is driven by process" in told
    assert "finished, held-out loss" in told
    assert watched == out[: out.index("MLflow   ")]
    assert {name: row.loss for name, row in other.observations().items()} == {
        name: pytest.approx(row.loss, abs=1e-6) for name, row in shell.observations().items()
    }


@pytest.mark.parametrize("moment", ["preparing the corpus", "opening gangs", "closing"])
def test_interruption_outside_training_is_clean_too(moment: str, shell: Shell, tmp_path: Path, texts: Path) -> None:
    other = shell.copy(tmp_path) if moment == "closing" else write_study(tmp_path, texts)
    studies = other.home / "studies" / "tiny"
    if moment == "opening gangs":
        shutil.copytree(shell.home / "corpora", other.home / "corpora")
    (studies / "shipping.json").unlink(missing_ok=True)
    process = other.start("run")
    # What is written first at each moment.
    sign = other.home / "corpora" if moment == "preparing the corpus" else studies / "shipping.json"
    wait_for(sign.exists, process)
    process.send_signal(signal.SIGTERM if moment == "closing" else signal.SIGINT)
    _, err = ended(process, 130)
    assert "go on with: scaling run study.yaml" in err
    assert other.document("status", "--json")["driver"] is None


def test_second_interruption_does_not_wait_for_gangs(shell: Shell, tmp_path: Path, texts: Path) -> None:
    other = write_study(tmp_path, texts)
    shutil.copytree(shell.home / "corpora", other.home / "corpora")
    process = other.start("run")
    wait_for(lambda: any(line.kind == "metrics" for line in journals(other)), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 130)
    assert time.monotonic() - asked < 20.0
    assert "go on with: scaling run study.yaml" in err
