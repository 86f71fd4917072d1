"""`scaling export`: law tables, observations, forecasts and the plan as CSV, JSON or Markdown text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis import fit_study, table_of
from orchestrator.finish import forecast_json
from orchestrator.planview import plan_json

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.reading import LedgerReader
    from orchestrator.study import Study

Rows = Sequence[dict[str, Any]]


def exported(study: Study, plan: Plan, ledger: LedgerReader | None, what: str, form: str) -> str:
    """The text of one export. `ledger` may be None for the plan alone. Raises FitError where there is no law."""
    if what == "plan":
        document = plan_json(plan)
        return _json(document) if form == "json" else TABLES[form](_flat_rows(document["runs"]))
    assert ledger is not None, "all but the plan come from the ledger"
    if what == "law":
        from jobs.laws.lawtable import WRITERS

        return WRITERS[form](fit_study(study, table_of(ledger.observations())).fits)
    if what == "observations":
        rows = [row.as_row() for row in ledger.observations()]
        return _json(rows) if form == "json" else TABLES[form](rows)
    forecasts = [json.loads(forecast_json(row)) for row in ledger.forecasts()]
    return _json(forecasts) if form == "json" else TABLES[form](_forecast_rows(forecasts))


def _forecast_rows(forecasts: Rows) -> Rows:
    """One row a target of each forecast, with what came out."""
    rows = []
    for forecast in forecasts:
        outcomes = {target["run"]: target for target in (forecast["score"] or {"targets": []})["targets"]}
        for target in forecast["record"]["targets"]:
            outcome = outcomes.get(target["run"], {})
            rows.append(
                {
                    "digest": forecast["digest"],
                    "blind": forecast["blind"],
                    "run": target["run"],
                    "params": target["params"],
                    "tokens": target["tokens"],
                    "predicted": target["predicted"],
                    "low": target["interval"][0],
                    "high": target["interval"][1],
                    "level": forecast["record"]["level"],
                    "observed": outcome.get("observed"),
                    "relative_error": outcome.get("relative_error"),
                    "inside": outcome.get("inside"),
                }
            )
    return rows


def _flat_rows(rows: Rows) -> Rows:
    """Nested values as dotted columns."""

    def flat(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {name: leaf for key, item in value.items() for name, leaf in flat(item, f"{path}.{key}").items()}
        return {path.lstrip("."): " ".join(map(str, value)) if isinstance(value, list) else value}

    return [flat(row, "") for row in rows]


def _csv(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(
        out, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _markdown(rows: Rows) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


TABLES: dict[str, Callable[[Rows], str]] = {"csv": _csv, "md": _markdown}
