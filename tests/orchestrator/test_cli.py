"""The command line: what each command prints, where, and with which exit code. Nothing is trained here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from jobs.observation import Observation
from orchestrator.cli import cli
from orchestrator.finish import freeze_forecast
from orchestrator.lease import Holder, Lease
from tests.orchestrator.paper_study import PaperStudy


class Shell:
    """Types commands about one study; `home` is SCALING_HOME."""

    def __init__(self, study: PaperStudy, file: str) -> None:
        self.study = study
        self.file = file

    def __call__(self, command: str, *more: str) -> Result:
        return CliRunner().invoke(cli, [command, self.file, *self.study.overrides, *more])

    def document(self, command: str, *more: str) -> object:
        """What a command prints, which must be JSON and nothing else."""
        result = self(command, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch) -> Shell:
    """A study whose fitted and held-out runs have all ended."""
    folder = tmp_path_factory.mktemp("home")
    module_patch.setenv("SCALING_HOME", str(folder))
    module_patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = PaperStudy(folder).finish()
    freeze_forecast(study.study, study.plan, study.ledger)
    return Shell(study.finish(study.runs("target")), study.write_file(folder))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A study that has been planned, and no more."""
    monkeypatch.setenv("SCALING_HOME", str(tmp_path))
    study = PaperStudy(tmp_path)
    return Shell(study, study.write_file(tmp_path))


def test_every_command_has_a_help_text() -> None:
    for name, command in cli.commands.items():
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert command.help, name


def test_json_is_one_document_on_stdout(shell: Shell) -> None:
    assert {run["run"] for run in shell.document("status", "--json")["runs"]} == {  # type: ignore[index]
        run.name for run in shell.study.plan.runs
    }
    assert shell.document("validate", "--json")["valid"] is True  # type: ignore[index]
    assert len(shell.document("plan", "--json")["runs"]) == 20  # type: ignore[index]
    assert shell.document("fit", "--json", "--bootstrap", "0")["form"] == "chinchilla"  # type: ignore[index]
    assert shell.document("predict", "--json", "--params", "1M", "--tokens", "2e7")["tokens"] == 2e7  # type: ignore[index]
    assert shell.document("forecast", "--json")[0]["blind"] is True  # type: ignore[index]
    assert len(shell.document("observations", "--format", "json")) == 20  # type: ignore[arg-type]
    assert shell.document("report", "--json")["valid"] is True  # type: ignore[index]


def test_warnings_go_to_stderr_and_leave_the_document_alone(shell: Shell) -> None:
    result = shell("plan", "model.num_layers=2", "--json")
    assert json.loads(result.stdout)["runs"]
    assert "warning: " in result.stderr


@pytest.mark.parametrize("what", ["law", "observations", "forecast", "plan"])
@pytest.mark.parametrize("form", ["csv", "json", "md"])
def test_everything_can_be_exported_in_every_format(what: str, form: str, shell: Shell) -> None:
    result = shell("export", "--what", what, "--format", form)
    assert result.exit_code == 0, result.output
    if form == "json":
        json.loads(result.stdout)
    first = result.stdout.splitlines()[0]
    assert first.startswith({"csv": "", "json": ("[", "{"), "md": ("|", "#")}[form])  # type: ignore[arg-type]


def test_export_to_a_file_leaves_stdout_empty(shell: Shell, tmp_path: Path) -> None:
    result = shell("export", "--what", "observations", "--format", "csv", "-o", str(tmp_path / "rows.csv"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "rows.csv").read_text().startswith(",".join(Observation.model_fields))


def test_exported_observations_are_a_table_that_fit_reads(shell: Shell, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(shell("observations").stdout)
    options = ["--form", "chinchilla", "--bootstrap", "0", "--json"]
    result = CliRunner().invoke(cli, ["fit", "--table", str(table), "--where", "role == 'fit'", *options])
    own = shell.document("fit", "--bootstrap", "0", "--json")
    assert json.loads(result.stdout)["params"] == own["params"]  # type: ignore[index]


def test_study_that_was_never_run_is_said_to_be_so(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "empty"))
    for command in ("status", "logs", "observations", "forecast", "report", "stop"):
        result = shell(command)
        assert result.exit_code == 2
        assert "has not been run here" in result.stderr
        assert result.stdout == ""
    for command in (("ui",), ("observations", "--from-mlflow")):
        result = shell(*command)
        assert result.exit_code == 2
        assert "there is no tracking store at sqlite:///" in result.stderr
    assert not (tmp_path / "empty").exists()


def test_nothing_finished_means_no_law_and_exit_code_1(fresh: Shell) -> None:
    for command in (("fit",), ("predict", "--params", "1M", "--tokens", "1M"), ("export", "--what", "law")):
        result = fresh(*command)
        assert result.exit_code == 1, result.output
        assert "no fit: none of 0 observations" in result.stderr
    result = fresh("report")
    assert result.exit_code == 1
    assert "no law: " in result.stdout


def test_forecast_is_frozen_by_hand_once_fitted_runs_have_ended(fresh: Shell) -> None:
    result = fresh("forecast")
    assert result.exit_code == 2
    assert "16 fitted runs have not ended yet" in result.stderr
    fresh.study.finish()
    result = fresh("forecast")
    assert result.exit_code == 0
    assert "not yet" in result.stdout
    assert len(fresh.study.ledger.forecasts()) == 1


def test_status_shows_one_document_or_watches(fresh: Shell) -> None:
    result = fresh("status", "--json", "--watch")
    assert result.exit_code == 2
    assert "use one of them" in result.stderr
    # Nobody drives it: there is nothing to watch.
    assert fresh("status", "--watch").stdout.count("study small:") == 1


def test_stop_asks_the_driving_process(fresh: Shell) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        mine = Holder.me()
        started_ms = round(psutil.Process(process.pid).create_time() * 1000)
        holder = Holder(mine.host, process.pid, mine.boot_id, started_ms)
        Lease.take(fresh.study.ledger, time.time(), holder=holder)
        result = fresh("stop")
        assert result.exit_code == 0
        assert f"asked process {process.pid} to stop" in result.stdout
        assert process.wait(10) == -signal.SIGTERM
        assert "is not running" in fresh("stop").stdout
    finally:
        process.kill()


def test_stop_of_a_study_on_another_host_names_it(fresh: Shell) -> None:
    Lease.take(fresh.study.ledger, time.time(), holder=Holder("elsewhere", 7, "boot", 1))
    result = fresh("stop")
    assert result.exit_code == 2
    assert "process 7 on elsewhere drives small: stop it there" in result.stderr


def test_fit_needs_a_study_or_a_table(shell: Shell) -> None:
    for arguments in (["fit"], ["fit", shell.file, "--table", "x.csv"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert "either a study file or --table" in result.stderr


def test_reader_that_leaves_early_sees_no_traceback(shell: Shell) -> None:
    program = f"{Path(sys.executable).with_name('scaling')} plan {shell.file} | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=os.environ)
    assert result.stdout.splitlines()[-1] == "0"
    assert result.stderr == ""


def test_doctor_prints_checks_with_their_way_out() -> None:
    from cluster.doctor import Check
    from orchestrator.checkup import checkup_text, is_broken

    checks = [Check("disk", "ok", "90 GiB free"), Check("ray", "fail", "no answer", "Start it.")]
    assert checkup_text(checks).splitlines() == ["disk    ok  90 GiB free", "ray   fail  no answer", "    -> Start it."]
    assert is_broken(checks)
