"""`scaling fit` and `scaling predict`: from rows of a study or of a table to one fit, or one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.laws.fit import check_level
from jobs.laws.fitting import fit_law
from jobs.laws.holdout import hold_out
from jobs.laws.observations import FitError
from jobs.laws.tables import NamedTable, read_table
from jobs.laws.where import parse_where
from jobs.observation import Observation
from orchestrator.analysis import fit_study, table_of, usable
from orchestrator.numbers import parse_number, short_number
from orchestrator.rows import aligned

if TYPE_CHECKING:
    from jobs.laws.fit import Fit
    from jobs.laws.mixture import Mixture
    from orchestrator.study import Study

DEFAULT_FORM = "coupled"
# A hold-out's interval only has to be counted inside or outside.
HOLDOUT_REPLICATES = 200


@dataclass(frozen=True)
class FitRequest:
    """What the command line asks of a fit."""

    table: Path | None = None
    form: str | None = None
    columns: str | None = None
    where: str | None = None
    delta: str = "auto"
    loss: Literal["huber", "mse", "lad"] = "huber"
    bootstrap: int = 1000
    cluster: str | None = None
    level: float = 0.95
    holdout: str | None = None
    seed: int = 0


def fit_request(request: FitRequest, observations: Sequence[Observation] | None, with_targets: bool = False) -> Fit:
    """The fit asked for. Raises FitError where it would have no meaning, ValueError for an option that is wrong."""
    if observations is None:
        assert request.table is not None, "the command line asks for one of the two"
        named = read_table(request.table, columns=request.columns, where=request.where, cluster=request.cluster)
    else:
        named = _study_table(request, observations, with_targets)
    table = named.table
    options: dict[str, Any] = {
        "delta": _delta(request.delta),
        "loss": request.loss,
        "level": request.level,
        "seed": request.seed,
    }
    form = request.form or DEFAULT_FORM
    fitted = fit_law(table, form, bootstrap=request.bootstrap, **options)
    if request.holdout is None:
        return fitted
    return fitted.with_holdout(
        hold_out(
            table,
            form,
            request.holdout,
            columns=named.columns,
            bootstrap=min(request.bootstrap, HOLDOUT_REPLICATES),
            **options,
        )
    )


def _study_table(request: FitRequest, observations: Sequence[Observation], with_targets: bool) -> NamedTable:
    """The study's rows that are asked for, with all their columns for expressions."""
    if request.columns or request.cluster:
        raise ValueError("--columns and --cluster are for --table: a study's rows name their columns and trunks")
    rows = list(observations)
    if request.where:
        where = parse_where(request.where)
        where.check_names(tuple(Observation.model_fields))
        rows = [row for row in rows if where(row.as_row())]
        if observations and not rows:
            raise FitError(f"--where {request.where!r} leaves none of {len(observations)} rows")
    roles = ("fit", "target") if with_targets else ("fit",)
    fitted = [row.as_row() for row in usable(rows, roles)]
    return NamedTable(
        table_of(rows, roles), {name: tuple(row[name] for row in fitted) for name in Observation.model_fields}
    )


def _delta(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"--delta {text}: must be a number above 0 (1e-3 is the published one), or auto")
    return value


def prediction_of(
    study: Study, observations: Sequence[Observation], params: str, tokens: str, level: float | None
) -> dict[str, Any]:
    """Prediction of the study's mixture, and of each form beside it, for a run of `params` and `tokens`."""
    n, d = _count("--params", params), _count("--tokens", tokens)
    wanted = study.forecast.level if level is None else check_level(level)
    mixture: Mixture = fit_study(study, table_of(observations))
    mixed = mixture.predict(n, d, wanted)
    return {
        "params": n,
        "tokens": d,
        "level": wanted,
        "value": mixed.value,
        "mean_interval": list(mixed.mean_interval),
        "prediction_interval": list(mixed.prediction_interval),
        "extrapolation": mixed.extrapolation,
        "note": mixed.note,
        "weights": {fit.form: weight for fit, weight in zip(mixture.fits, mixture.weights, strict=True)},
        "by_form": {
            fit.form: {"value": own.value, "prediction_interval": list(own.prediction_interval), "status": fit.status}
            for fit in mixture.fits
            for own in [fit.predict(n, d, wanted)]
        },
        "conventions": mixture.fits[0].conventions,
    }


def _count(option: str, text: str) -> float:
    try:
        value = float(parse_number(text))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    if value <= 0:
        raise ValueError(f"{option} {text}: must be above 0, like 1.3M")
    return value


def predict_text(document: dict[str, Any]) -> str:
    """`prediction_of` for a person."""
    level = f"{document['level']:.0%}"
    rows = [("", "loss", f"{level} interval of a new run")]
    rows.append(("mixture", f"{document['value']:.4f}", _ends(document["prediction_interval"])))
    for form, own in document["by_form"].items():
        name = f"{form} (weight {document['weights'][form]:.2f}, {own['status']})"
        rows.append((name, f"{own['value']:.4f}", _ends(own["prediction_interval"])))
    return "\n".join(
        [
            f"N {short_number(document['params'])}, D {short_number(document['tokens'])}: {document['note']}",
            *aligned(rows, indent=2),
            f"  {level} confidence interval of the mean: {_ends(document['mean_interval'])}",
        ]
    )


def _ends(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"
