"""What a study leaves when its runs have ended: a scored forecast, law tables, figures, the report, and a closing text.

Everything is made from the ledger, so it can be made again at any time (`scaling report`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.laws import lawtable
from jobs.laws.observations import FitError
from jobs.observation import Observation
from jobs.storage import StudyPaths, write_atomically
from orchestrator.analysis import fit_study, table_of
from orchestrator.forecast import forecast_record, score_record, unforecast_targets
from orchestrator.frozen import forecast_document
from orchestrator.isoflops import isoflop_json, isoflop_lines, isoflops_of
from orchestrator.rows import to_csv
from orchestrator.summary import forecasts_lines, law_lines

if TYPE_CHECKING:
    from jobs.laws.isoflop import Isoflop
    from jobs.laws.mixture import Mixture
    from orchestrator.ledger import Ledger
    from orchestrator.place import Place
    from orchestrator.plan import Plan
    from orchestrator.reading import LedgerReader, RunRow
    from orchestrator.study import Study

logger = logging.getLogger(__name__)

ENDINGS = ("finished", "failed", "diverged", "waiting")


@dataclass(frozen=True)
class Finished:
    """The closing text, whether every run finished and there is a law, and the files that were written."""

    text: str
    valid: bool
    files: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        """For `scaling report --json`."""
        return {"valid": self.valid, "files": [str(path) for path in self.files]}


def freeze_forecast(study: Study, plan: Plan, ledger: Ledger) -> str:
    """Freeze the forecast of the plan's targets that have none yet; returns its digest. Raises FitError, ValueError."""
    targets = unforecast_targets(plan, ledger.forecasts())
    record = forecast_record(study, plan, targets, ledger.observations())
    return ledger.freeze_forecast(record, [run.name for run in targets], time.time())


def freeze_or_withhold(study: Study, plan: Plan, ledger: Ledger) -> None:
    """Freeze the forecast, or say why there is none: the controller then withholds the targets."""
    try:
        freeze_forecast(study, plan, ledger)
    except FitError as error:
        text = f"no forecast can be frozen: {error}"
        logger.warning("%s", text)
        ledger.append_event("forecast.refused", {"text": text}, time.time())


def freeze_now(study: Study, place: Place, reader: LedgerReader) -> str:
    """Freeze the forecast by hand, if all fitted runs have ended. Raises ValueError while some wait, FitError."""
    from orchestrator.ledger import Ledger
    from orchestrator.plan import build_plan

    row = reader.study()
    waiting = [run.name for run in reader.runs() if run.role == "fit" and run.status == "waiting"]
    if row is None or waiting:
        shown = ", ".join(waiting[:3]) + (", ..." if len(waiting) > 3 else "")
        raise ValueError(
            f"{len(waiting)} fitted runs have not ended yet ({shown}): `scaling run` trains them, "
            "then freezes the forecast by itself"
            if row
            else f"study {study.name} has not been planned yet: use `scaling run`"
        )
    plan = build_plan(study, row.corpus_digest)
    return freeze_forecast(study, plan, Ledger.open(place.ledger_url, study_name=study.name))


def finish(study: Study, paths: StudyPaths, plan: Plan, ledger: Ledger) -> Finished:
    """Score what can be scored, fit, and write tables, figures and report below `paths.report`."""
    planned = {run.name for run in plan.runs}
    runs = [run for run in ledger.runs() if run.name in planned]
    observations = ledger.observations()
    score_forecasts(ledger, observations)
    forecasts = ledger.forecasts()
    rows = [row.as_row() for row in observations]
    files = {
        "observations.csv": to_csv(rows, tuple(Observation.model_fields)),
        "study.json": json.dumps(study.model_dump(mode="json"), indent=1) + "\n",
    }
    for forecast in forecasts:
        document = json.dumps(forecast_document(forecast), indent=1, sort_keys=True)
        files[f"forecast-{forecast.digest[:8]}.json"] = document + "\n"
    mixture: Mixture | None = None
    try:
        mixture = fit_study(study, table_of(observations))
        files |= {f"law.{ending}": writer(mixture.fits) for ending, writer in lawtable.WRITERS.items()}
        laws = law_lines(mixture)
    except FitError as error:
        laws = [f"no law: {error}"]
    parabolas: list[str] = []
    isoflop: Isoflop | None = None
    try:
        isoflop = isoflops_of(study, observations)
        if isoflop is not None:
            files["isoflop.json"] = isoflop_json(isoflop)
            parabolas = [*isoflop_lines(isoflop), ""]
    except FitError as error:
        parabolas = [f"no IsoFLOP optima: {error}", ""]
    written = [paths.report / name for name in files]
    for path, content in zip(written, files.values(), strict=True):
        write_atomically(path, content)
    lines = [
        *_run_lines(runs, {name for row in forecasts for name in row.targets}),
        "",
        *laws,
        "",
        *parabolas,
        *(forecasts_lines(forecasts) if forecasts else []),
    ]
    if mixture is not None:
        from orchestrator.presentation import write_report

        page = write_report(study, paths, plan, ledger, mixture, isoflop)
        written += [page, *sorted(paths.report.glob("*.png"))]
        lines += [f"report   {page}", f"figures  {paths.report}/*.png", f"tables   {paths.report}/law.csv, .json, .md"]
    text = "\n".join(lines).rstrip("\n")
    write_atomically(summary_path(paths), text + "\n")
    valid = mixture is not None and all(run.status == "finished" for run in runs)
    return Finished(text, valid, (*written, summary_path(paths)))


def summary_path(paths: StudyPaths) -> Path:
    """The closing text as a file: shown again to those who watched, and in MLflow."""
    return paths.report / "summary.txt"


def score_forecasts(ledger: Ledger, observations: Sequence[Observation]) -> None:
    """Score the forecasts whose targets have all ended."""
    statuses = {run.name: run.status for run in ledger.runs()}
    for forecast in ledger.forecasts():
        if forecast.score is None and all(statuses.get(name) != "waiting" for name in forecast.targets):
            ledger.score_forecast(forecast.digest, score_record(forecast.record, observations, statuses), time.time())


def _run_lines(runs: Sequence[RunRow], forecast: set[str]) -> list[str]:
    """How many runs ended how, and why those that did not finish."""
    counts = {status: sum(run.status == status for run in runs) for status in ENDINGS}
    withheld = [run for run in runs if run.status == "waiting" and run.role == "target" and run.name not in forecast]
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "finished")
    return [
        f"{len(runs)} runs: {told}",
        *(f"  {run.name}: {run.status}: {run.reason}" for run in runs if run.status in ("failed", "diverged")),
        *(f"  {run.name}: withheld, its forecast is not frozen" for run in withheld),
    ]
