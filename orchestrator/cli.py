"""The command line: `scaling --help`. Each command reads its arguments and calls one function; nothing is decided here.

Exit codes: 0 done, 1 failed runs or no valid fit, 2 usage or configuration, 3 cluster or tracking unreachable,
130 interrupted. `--json` prints one document on stdout and nothing else; progress and logs go to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.console import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandFailed,
    configure_logging,
    exit_codes,
    say,
    say_json,
    tell,
)

if TYPE_CHECKING:
    from orchestrator.place import Place
    from orchestrator.plan import Plan
    from orchestrator.reading import LedgerReader
    from orchestrator.study import Study

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
STUDY_ARGUMENTS = (
    click.argument("study_file", metavar="STUDY"),
    click.argument("overrides", nargs=-1, metavar="[a.b=c]..."),
)


def study_command(function: Any) -> Any:
    """Adds STUDY and its overrides to a command."""
    for decorate in reversed(STUDY_ARGUMENTS):
        function = decorate(function)
    return function


class CommandLine(click.Group):
    """The commands, each ending with one message and the exit code of what happened."""

    def invoke(self, ctx: click.Context) -> Any:
        with exit_codes():
            return super().invoke(ctx)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("scaling"), prog_name="scaling")
def cli() -> None:
    """Scaling studies: one study file to a fitted law and a forecast that is frozen before the big run starts."""


@cli.command()
@study_command
@JSON_OPTION
def validate(study_file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Check a study file: every error with its line, value, bound and way out."""
    from orchestrator.planview import plan_json, plan_warnings, validate_text

    study = _study(study_file, overrides)
    plan = _plan(study)
    if as_json:
        say_json(
            {"study": study.name, "valid": True, "warnings": list(plan_warnings(study, plan)), "plan": plan_json(plan)}
        )
        return
    say(validate_text(plan, study, study_file))


@cli.command()
@study_command
@JSON_OPTION
def plan(study_file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Show every run with its shape, N, D, C, batch, memory and time, and what trunk sharing saves."""
    from orchestrator.planview import plan_json, plan_text

    study = _study(study_file, overrides)
    planned = _plan(study)
    if as_json:
        say_json(plan_json(planned))
        return
    say(plan_text(planned, study))


@cli.command()
@study_command
@click.option("--address", help="Ray cluster to use (ray://... or host:port); otherwise RAY_ADDRESS, otherwise local.")
@click.option("--verbose", is_flag=True, help="Log more.")
def run(study_file: str, overrides: Sequence[str], address: str | None, verbose: bool) -> None:
    """Train what is missing, freeze and score the forecast, fit, report. Safe to repeat at any time."""
    from orchestrator.launch import run as run_study

    configure_logging(verbose)
    sys.exit(run_study(_study(study_file, overrides), (study_file, *overrides), address))


@cli.command()
@study_command
@JSON_OPTION
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the study is over.")
def status(study_file: str, overrides: Sequence[str], as_json: bool, watch: bool) -> None:
    """Show how every run stands, who drives the study, and what failed."""
    import time

    from orchestrator.standing import standing, standing_text

    if as_json and watch:
        raise CommandFailed(EXIT_USAGE, "--json prints one document and --watch many: use one of them")
    ledger = _ledger(_study(study_file, overrides))
    while True:
        document = standing(ledger)
        is_read = say_json(document) if as_json else say(standing_text(document))
        if not (watch and is_read and document["driver"]):
            return
        time.sleep(2.0)


@cli.command()
@study_command
@click.option("--run", "run_name", help="The run whose last log is shown; otherwise the study's events.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
def logs(study_file: str, overrides: Sequence[str], run_name: str | None, rank: int) -> None:
    """Print the events of a study, or the log of a run's last attempt."""
    from orchestrator.standing import event_lines, last_log

    ledger = _ledger(_study(study_file, overrides))
    if run_name is None:
        say("\n".join(event_lines(ledger)))
        return
    path = last_log(ledger, run_name, rank)
    tell(str(path))
    say(path.read_text(encoding="utf-8", errors="replace").rstrip("\n"))


@cli.command()
@study_command
def stop(study_file: str, overrides: Sequence[str]) -> None:
    """Ask the process that drives a study to checkpoint and leave. `scaling run` goes on later."""
    import os
    import signal
    import time

    from orchestrator.lease import Holder, current_holder

    study = _study(study_file, overrides)
    holder = current_holder(_ledger(study), time.time())
    if holder is None:
        say(f"study {study.name} is not running")
        return
    if holder.host != Holder.me().host:
        raise CommandFailed(EXIT_USAGE, f"process {holder.pid} on {holder.host} drives {study.name}: stop it there")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        say(f"study {study.name} has just ended")
        return
    except PermissionError as error:
        raise CommandFailed(
            EXIT_USAGE, f"process {holder.pid} belongs to another user: stop it as that user"
        ) from error
    say(f"asked process {holder.pid} to stop: gangs checkpoint and leave")


@cli.command()
@study_command
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@click.option("--from-mlflow", is_flag=True, help="Read them from the tracking store alone.")
def observations(study_file: str, overrides: Sequence[str], form: str, from_mlflow: bool) -> None:
    """Print one row for each finished run: N, D, C, held-out loss, standard error, quality."""
    from jobs.observation import Observation
    from orchestrator.rows import WRITERS

    study = _study(study_file, overrides)
    if from_mlflow:
        from jobs.tracking import read_observations

        tracker = _place(study).store.open_for_reading()
        rows = [Observation.model_validate(row) for row in read_observations(tracker, study.name)]
    else:
        rows = _ledger(study).observations()
    say(WRITERS[form]([row.as_row() for row in rows], tuple(Observation.model_fields)), end="")


@cli.command()
@click.argument("study_file", metavar="[STUDY]", required=False)
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...")
@click.option("--table", type=click.Path(path_type=Path), help="A CSV of runs instead of a study.")
@click.option("--form", help="chinchilla, coupled, ... [default: the study's, else coupled]")
@click.option("--columns", help="Which column is what: params=N,tokens=D,loss=L")
@click.option("--where", help="Rows to fit, e.g. \"split == 'train' and params > 1e7\"")
@click.option("--delta", help="Huber's delta, or auto [default: the study's, else auto]")
@click.option("--loss", type=click.Choice(["huber", "mse", "lad"]), default="huber", show_default=True)
@click.option("--bootstrap", type=click.IntRange(min=0), help="Replicates [default: the study's, else 1000]")
@click.option("--cluster", help="Column whose equal values are resampled together.")
@click.option("--level", type=float, default=0.95, show_default=True)
@click.option("--holdout", help="compute:0.2 (the dearest fifth), or an expression like --where.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--with-targets", is_flag=True, help="Fit a study's held-out runs too.")
@JSON_OPTION
def fit(**options: Any) -> None:
    """Fit a law to a study's runs or to a table, with intervals, status and hold-out."""
    from orchestrator.fitting import FitRequest, fit_request
    from orchestrator.summary import fit_lines

    as_json = options.pop("as_json")
    study_file, overrides = options.pop("study_file"), options.pop("overrides")
    with_targets = options.pop("with_targets")
    if (study_file is None) == (options["table"] is None):
        raise CommandFailed(EXIT_USAGE, "name either a study file or --table runs.csv")
    if with_targets and study_file is None:
        raise CommandFailed(EXIT_USAGE, "--with-targets is for a study: a table's rows are chosen with --where")
    given = {name: value for name, value in options.items() if value is not None}
    rows = None
    if study_file is not None:
        study = _study(study_file, overrides)
        given = {"form": study.fit.form, "delta": str(study.fit.delta), "bootstrap": study.fit.bootstrap, **given}
        rows = _ledger(study).observations()
    fitted = fit_request(FitRequest(**given), rows, with_targets)
    if as_json:
        say_json(fitted.document())
    else:
        say("\n".join(fit_lines(fitted)))
    if not fitted.converged:
        sys.exit(EXIT_FAILED)


@cli.command()
@study_command
@click.option("--params", required=True, help="N of the run to predict, e.g. 1.3M.")
@click.option("--tokens", required=True, help="D of the run to predict, e.g. 26M.")
@click.option("--level", type=float, help="Level of the intervals [default: the study's].")
@JSON_OPTION
def predict(
    study_file: str, overrides: Sequence[str], params: str, tokens: str, level: float | None, as_json: bool
) -> None:
    """Predict the loss of a run from the study's laws: value, interval of the mean, interval of a new run."""
    from orchestrator.fitting import predict_text, prediction_of

    study = _study(study_file, overrides)
    document = prediction_of(study, _ledger(study).observations(), params, tokens, level)
    if as_json:
        say_json(document)
    else:
        say(predict_text(document))


@cli.command()
@study_command
@JSON_OPTION
def forecast(study_file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Show the frozen forecasts and their scores; freeze one now if all fitted runs have ended and none exists."""
    from orchestrator.finish import freeze_now
    from orchestrator.frozen import forecast_document
    from orchestrator.summary import forecasts_lines

    study = _study(study_file, overrides)
    ledger = _ledger(study)
    if not ledger.forecasts():
        freeze_now(study, _place(study), ledger)
    forecasts = ledger.forecasts()
    if as_json:
        say_json([forecast_document(row) for row in forecasts])
    else:
        say("\n".join(forecasts_lines(forecasts)))


@cli.command()
@study_command
@click.option(
    "--what", type=click.Choice(["law", "observations", "forecast", "plan"]), default="law", show_default=True
)
@click.option("--format", "form", type=click.Choice(["csv", "json", "md"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write; otherwise stdout.")
def export(study_file: str, overrides: Sequence[str], what: str, form: str, output: Path | None) -> None:
    """Export law tables, observations, forecasts or the plan."""
    from jobs.storage import write_atomically
    from orchestrator.exporting import exported

    study = _study(study_file, overrides)
    text = exported(study, _plan(study), None if what == "plan" else _ledger(study), what, form)
    if output is None:
        say(text, end="")
        return
    write_atomically(output, text)
    tell(f"wrote {output}")


@cli.command()
@study_command
@JSON_OPTION
def report(study_file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Make law tables, figures and the report page again from the ledger."""
    from orchestrator.finish import finish
    from orchestrator.ledger import Ledger

    study = _study(study_file, overrides)
    _ledger(study)
    place = _place(study)
    ledger = Ledger.open(place.ledger_url, study_name=study.name)
    finished = finish(study, place.paths, _plan(study), ledger)
    if as_json:
        say_json(finished.document())
    else:
        say(finished.text)
    sys.exit(EXIT_DONE if finished.valid else EXIT_FAILED)


@cli.command()
@study_command
@click.option("--port", type=click.IntRange(0, 65535), help="Port on 127.0.0.1 [default: 5000, or the next free one].")
def ui(study_file: str, overrides: Sequence[str], port: int | None) -> None:
    """Start the MLflow UI on the study's store and print the link."""
    from orchestrator.opening import open_ui

    sys.exit(open_ui(_study(study_file, overrides), port))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from orchestrator.study import study_schema

    say_json(study_schema())


@cli.command()
@click.option("--address", help="Ray cluster to check; otherwise RAY_ADDRESS, otherwise this machine alone.")
@JSON_OPTION
def doctor(address: str | None, as_json: bool) -> None:
    """Check this machine, and a cluster if there is one. Exit code 3 if something is broken."""
    from orchestrator.checkup import checkup, checkup_text, is_broken

    checks = checkup(address)
    if as_json:
        say_json([check.__dict__ for check in checks])
    else:
        say(checkup_text(checks))
    sys.exit(EXIT_UNREACHABLE if is_broken(checks) else EXIT_DONE)


def _study(study_file: str, overrides: Sequence[str]) -> Study:
    from orchestrator.loading import load_study

    study = load_study(study_file, overrides)
    for warning in study.warnings:
        tell(f"warning: {warning}")
    return study


def _place(study: Study) -> Place:
    from orchestrator.place import Place

    return Place.of(study)


def _plan(study: Study) -> Plan:
    """The plan as it can be known without the corpus: its digest is the ledger's, once there is one."""
    from orchestrator.plan import build_plan
    from orchestrator.throughput import load_throughput

    place = _place(study)
    digest = None
    if place.paths.ledger.exists():
        row = _ledger(study).study()
        digest = row.corpus_digest if row else None
    return build_plan(study, digest, throughput=load_throughput(place.home.calibration))


def _ledger(study: Study) -> LedgerReader:
    """The ledger of a study that has been run before, for reading."""
    from orchestrator.reading import LedgerReader

    place = _place(study)
    if not place.paths.ledger.exists():
        raise CommandFailed(
            EXIT_USAGE,
            f"study {study.name} has not been run here (no {place.paths.ledger}): use `scaling run`, "
            "or set SCALING_HOME to where it was",
        )
    return LedgerReader.open(place.ledger_url, study_name=study.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    cli(args=None if arguments is None else list(arguments), prog_name="scaling")
