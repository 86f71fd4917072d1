"""`scaling export`: law tables, observations, forecasts and the plan as CSV, JSON or Markdown text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.observation import Observation
from orchestrator.frozen import forecast_document
from orchestrator.planview import plan_json
from orchestrator.rows import WRITERS, as_json, flat

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.reading import ForecastRow, LedgerReader
    from orchestrator.study import Study


def exported(study: Study, plan: Plan, ledger: LedgerReader | None, what: str, form: str) -> str:
    """The text of one export. `ledger` may be None for the plan alone. Raises FitError where there is no law."""
    if what == "plan":
        document = plan_json(plan)
        return as_json(document) if form == "json" else WRITERS[form]([flat(run) for run in document["runs"]], ())
    assert ledger is not None, "all but the plan come from the ledger"
    if what == "law":
        from jobs.laws import lawtable
        from orchestrator.analysis import fit_study, table_of

        return lawtable.WRITERS[form](fit_study(study, table_of(ledger.observations())).fits)
    if what == "observations":
        return WRITERS[form]([row.as_row() for row in ledger.observations()], tuple(Observation.model_fields))
    forecasts = ledger.forecasts()
    if form == "json":
        return as_json([forecast_document(row) for row in forecasts])
    return WRITERS[form]([row for forecast in forecasts for row in _target_rows(forecast)], TARGET_COLUMNS)


TARGET_COLUMNS = ("digest", "blind", "run", "params", "tokens", "predicted", "low", "high", "level")
OUTCOME_COLUMNS = ("status", "observed", "relative_error", "inside")


def _target_rows(forecast: ForecastRow) -> list[dict[str, Any]]:
    """One row a target, with what came out."""
    outcomes = {target["run"]: target for target in forecast.score["targets"]} if forecast.score else {}
    rows = []
    for target in forecast.record["targets"]:
        low, high = target["interval"]
        values = (
            *(forecast.digest, forecast.blind, target["run"], target["params"], target["tokens"]),
            *(target["predicted"], low, high, forecast.record["level"]),
        )
        outcome = outcomes.get(target["run"], {})
        row = dict(zip(TARGET_COLUMNS, values, strict=True))
        rows.append({**row, **{name: outcome.get(name) for name in OUTCOME_COLUMNS}})
    return rows
