"""What a study leaves when its runs have ended: a scored forecast, law tables, figures, the report, and a closing text.

Everything is made from the ledger, so it can be made again at any time (`scaling report`).
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.laws import lawtable
from jobs.laws.observations import FitError
from jobs.storage import StudyPaths, write_atomically
from orchestrator.analysis import fit_study, table_of
from orchestrator.forecast import forecast_record, score_record, target_runs
from orchestrator.summary import forecast_lines, law_lines

if TYPE_CHECKING:
    from jobs.laws.mixture import Mixture
    from jobs.observation import Observation
    from orchestrator.launch import Place
    from orchestrator.ledger import Ledger
    from orchestrator.plan import Plan
    from orchestrator.reading import ForecastRow, LedgerReader, RunRow
    from orchestrator.study import Study


@dataclass(frozen=True)
class Finished:
    """The closing text, and whether every run finished and the law is valid."""

    text: str
    valid: bool


def freeze_forecast(study: Study, plan: Plan, ledger: Ledger) -> str:
    """Freeze the forecast of the plan's targets in the ledger; returns its digest. Raises FitError."""
    record = forecast_record(study, plan, ledger.observations())
    return ledger.freeze_forecast(record, [run.name for run in target_runs(plan)], time.time())


def freeze_now(study: Study, place: Place, reader: LedgerReader) -> str:
    """Freeze the forecast by hand, if all fitted runs have ended. Raises ValueError while some wait."""
    from orchestrator.ledger import Ledger
    from orchestrator.plan import build_plan

    waiting = [run.name for run in reader.runs() if run.role == "fit" and run.status == "waiting"]
    if waiting:
        raise ValueError(
            f"{len(waiting)} fitted runs have not ended yet ({', '.join(waiting[:3])}, ...): run the study"
        )
    row = reader.study()
    plan = build_plan(study, row.corpus_digest if row else None)
    return freeze_forecast(study, plan, Ledger.open(place.ledger_url, study_name=study.name))


def finish(study: Study, paths: StudyPaths, plan: Plan, ledger: Ledger) -> Finished:
    """Score what can be scored, fit, and write tables, figures and report below `paths.report`."""
    runs = ledger.runs()
    statuses = {run.name: run.status for run in runs}
    observations = ledger.observations()
    for forecast in ledger.forecasts():
        if forecast.score is None and all(statuses.get(name, "missing") != "waiting" for name in forecast.targets):
            ledger.score_forecast(forecast.digest, score_record(forecast.record, observations, statuses), time.time())
    forecasts = ledger.forecasts()
    lines = _run_lines(runs)
    write_atomically(paths.report / "observations.csv", observations_csv(observations))
    write_atomically(paths.report / "study.json", json.dumps(study.model_dump(mode="json"), indent=1) + "\n")
    try:
        mixture = fit_study(study, table_of(observations))
    except FitError as error:
        return Finished("\n".join([*lines, f"no law yet: {error}"]), valid=False)
    write_law_tables(paths, mixture)
    for forecast in forecasts:
        write_atomically(paths.report / f"forecast-{forecast.digest[:8]}.json", forecast_json(forecast))
    from orchestrator.presentation import write_report

    page = write_report(study, paths, plan, ledger, mixture)
    lines += ["", *law_lines(mixture), ""]
    for number, forecast in enumerate(forecasts):
        lines += [*forecast_lines(forecast, revision=number), ""]
    lines += [
        f"report   {page}",
        f"figures  {paths.report}/*.png",
        f"tables   {paths.report}/law.csv, law.json, law.md",
    ]
    finished = all(run.status == "finished" for run in runs)
    return Finished("\n".join(lines), valid=finished)


def write_law_tables(paths: StudyPaths, mixture: Mixture) -> None:
    """law.csv, law.json and law.md: the same facts in each."""
    for ending, writer in lawtable.WRITERS.items():
        write_atomically(paths.report / f"law.{ending}", writer(mixture.fits))


def forecast_json(forecast: ForecastRow) -> str:
    """A frozen forecast with its digest, and its score once there is one."""
    document = {
        "digest": forecast.digest,
        "blind": forecast.blind,
        "frozen_ms": forecast.frozen_ms,
        "record": forecast.record,
        "score": forecast.score,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def observations_csv(observations: Sequence[Observation]) -> str:
    """One line a finished run; columns `params`, `tokens`, `loss` are what `scaling fit --table` reads."""
    rows = [row.as_row() for row in observations]
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def _run_lines(runs: Sequence[RunRow]) -> list[str]:
    """How many runs ended how, and why those that did not finish."""
    counts = {status: sum(run.status == status for run in runs) for status in ("finished", "failed", "diverged")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "finished")
    return [
        f"{len(runs)} runs: {told}",
        *(f"  {run.name}: {run.status}: {run.reason}" for run in runs if run.status in ("failed", "diverged")),
    ]


def describe_forecasts(ledger: LedgerReader) -> list[str]:
    """All forecasts of a study as text, the scored one first."""
    return [line for number, row in enumerate(ledger.forecasts()) for line in forecast_lines(row, revision=number)]
