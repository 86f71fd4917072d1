"""Laws and forecasts as plain aligned text, for the end of `scaling run` and for `fit` and `forecast`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.frozen import is_revision
from orchestrator.rows import aligned

if TYPE_CHECKING:
    from jobs.laws.fit import Fit
    from jobs.laws.mixture import Mixture
    from orchestrator.reading import ForecastRow

BASELINE_NAMES = {
    "loss_of_dearest_run": "loss of the dearest fitted run",
    "power_law_in_compute": "power law in compute",
}


def fit_lines(fit: Fit) -> list[str]:
    """One law: equation, status with reasons, parameters with intervals, objective and hold-out."""
    lines = [f"{fit.form}: {fit.law.equation}   [{fit.status}]", *(f"  ! {reason}" for reason in fit.reasons)]
    rows = [("", "value", "std. error", f"{fit.level:.0%} interval")]
    for name, value in fit.params.items():
        ends = fit.intervals.get(name)
        rows.append(
            (
                name,
                f"{value:.5g}",
                f"{fit.se[name]:.3g}" if name in fit.se else "-",
                f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-",
            )
        )
    lines += aligned(rows, indent=2)
    delta = "" if fit.objective.delta is None else f", delta {fit.objective.delta:.3g} ({fit.objective.delta_source})"
    lines.append(
        f"  {fit.rows.used} rows; {fit.objective.loss} objective {fit.objective.value:.8g} "
        f"({fit.objective.reduction} over {fit.objective.space} residuals{delta})"
    )
    lines.append(
        f"  bootstrap: {fit.bootstrap.kind}, {fit.bootstrap.certified} of {fit.bootstrap.replicates} certified; "
        f"run noise {fit.noise.sd:.2%} ({fit.noise.source})"
    )
    if fit.holdout is not None:
        held = fit.holdout
        lines.append(
            f"  hold-out {held.rule}: {held.rows} rows, mean error {held.mean_abs_rel_error:.2%}, "
            f"{held.coverage:.0%} inside the {held.interval_level:.0%} interval "
            f"(mean width {held.mean_interval_width:.1%})"
        )
    return lines


def law_lines(mixture: Mixture) -> list[str]:
    """The laws of a study with their weights in the mixture, and the forms that were left out."""
    lines = ["Law table"]
    for fit, weight in zip(mixture.fits, mixture.weights, strict=True):
        first, *rest = fit_lines(fit)
        lines += [f"{first}   weight {weight:.2f}", *rest]
    lines += [f"left out {form}: {reason}" for form, reason in mixture.refused.items()]
    return lines


def forecasts_lines(forecasts: Sequence[ForecastRow]) -> list[str]:
    """All forecasts of a study in the order in which they were frozen, an empty line after each."""
    if not forecasts:
        return ["no forecast is frozen"]
    return [line for row in forecasts for line in [*forecast_lines(row, is_revision(row, forecasts)), ""]]


def forecast_lines(forecast: ForecastRow, revision: bool = False) -> list[str]:
    """A frozen forecast beside what came out, target by target; the headline last."""
    record, score = forecast.record, forecast.score
    kind = "revision: not the one that is scored" if revision else "first: the one that is scored"
    blind = "blind" if forecast.blind else "NOT BLIND: a target had been opened before it was frozen"
    lines = [f"Forecast {forecast.digest[:12]} ({kind}; {blind}), {record['rule']}"]
    outcomes = {target["run"]: target for target in score["targets"]} if score else {}
    rows = [("target", "predicted", f"{record['level']:.0%} interval", "width", "came out", "error", "", "compute")]
    for target in record["targets"]:
        low, high = target["interval"]
        rows.append(
            (
                target["run"],
                f"{target['predicted']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{(high - low) / target['predicted']:.1%}",
                *_outcome(outcomes.get(target["run"])),
                f"{target['extrapolation']['exact_train_flops']:.2f}x",
            )
        )
    lines += aligned(rows, indent=2)
    headline = outcomes.get(record["targets"][-1]["run"])
    if headline and headline["status"] == "scored":
        lines.append("  naive baselines for " + headline["run"] + ": " + _baselines(headline["baselines"]))
    return lines


def _outcome(target: dict[str, Any] | None) -> tuple[str, str, str]:
    """What came out, the forecast's error, and the verdict."""
    if target is None:
        return "not yet", "", ""
    if target["status"] == "void":
        return "void", "", target["reason"]
    return f"{target['observed']:.4f}", f"{target['relative_error']:+.2%}", "inside" if target["inside"] else "OUTSIDE"


def _baselines(baselines: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{BASELINE_NAMES.get(name, name)} {value['predicted']:.4f} (error {value['relative_error']:+.2%})"
        for name, value in baselines.items()
    )
