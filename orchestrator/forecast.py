"""Freezes what the target runs will reach before any of them opens, and scores it afterwards. Pure.

The record holds everything that the prediction came from: target fingerprints, rows and their hash, the gate that
chose them, the rule that chose the forms, the laws, the prediction with its interval, and the naive baselines it has
to beat. The ledger keeps it under the digest of its content and lets no target open without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.laws.fitting import fit_law
from jobs.laws.observations import FitError, Table
from jobs.observation import Observation
from orchestrator.analysis import fit_study, table_of, usable

if TYPE_CHECKING:
    from orchestrator.plan import Plan, PlannedRun
    from orchestrator.reading import ForecastRow
    from orchestrator.study import Study

GATE = "role fit, quality ok, finished before the forecast"


def forecast_record(
    study: Study, plan: Plan, targets: Sequence[PlannedRun], observations: Sequence[Observation]
) -> dict[str, Any]:
    """The forecast of target runs of a plan from the finished fitted runs. Raises FitError, and ValueError without any.

    The rule of forms is fixed by the study file: the mixture (jobs.laws.mixture) of `forecast.forms` at the study's
    level. The last target is the headline.
    """
    if not targets:
        raise ValueError("there is no run to forecast: set forecast.hold_out to largest_size or {size: ...}")
    table = table_of(observations)
    mixture = fit_study(study, table, study.forecast.forms)
    rows = usable(observations)
    described = []
    for run in targets:
        prediction = mixture.predict(run.params.matmul, run.tokens, study.forecast.level)
        described.append(
            {
                "run": run.name,
                "state_id": run.segments[-1],
                "params": run.params.matmul,
                "tokens": run.tokens,
                "train_flops": run.train_flops,
                "predicted": prediction.value,
                "interval": list(prediction.prediction_interval),
                "mean_interval": list(prediction.mean_interval),
                "extrapolation": {
                    **prediction.extrapolation,
                    "exact_train_flops": run.train_flops / max(row.train_flops for row in rows),
                },
                "by_form": {
                    fit.form: {"predicted": own.value, "interval": list(own.prediction_interval)}
                    for fit in mixture.fits
                    for own in [fit.predict(run.params.matmul, run.tokens, study.forecast.level)]
                },
                "baselines": naive_losses(table, run.params.matmul, run.tokens),
            }
        )
    return {
        "study": study.name,
        "study_digest": study.digest,
        "corpus_digest": plan.corpus_digest,
        "level": study.forecast.level,
        "rule": f"mixture of {', '.join(study.forecast.forms)}, fixed in the study file",
        "weights": {fit.form: weight for fit, weight in zip(mixture.fits, mixture.weights, strict=True)},
        "weights_rule": mixture.rule,
        "refused_forms": mixture.refused,
        "gate": GATE,
        "rows": [
            {"run": row.name, "state_id": row.state_id, "params": row.params, "tokens": row.tokens, "loss": row.loss}
            for row in rows
        ],
        "rows_hash": table.digest,
        "conventions": table.conventions,
        "laws": [fit.document() for fit in mixture.fits],
        "targets": described,
    }


def naive_losses(table: Table, params: float, tokens: float) -> dict[str, float]:
    """What a person without a law would say: the loss of the dearest fitted run, and a power law in C alone."""
    naive = {"loss_of_dearest_run": float(table.loss[table.train_flops.argmax()])}
    try:
        power = fit_law(table, "power_no_floor", bootstrap=0)
    except FitError:
        return naive
    return {**naive, "power_law_in_compute": power.predict(params, tokens).value}


def target_runs(plan: Plan) -> list[PlannedRun]:
    """The runs that are held out, by N and then D: the headline last."""
    return sorted((run for run in plan.runs if run.role == "target"), key=lambda run: (run.params.matmul, run.tokens))


def unforecast_targets(plan: Plan, forecasts: Iterable[ForecastRow]) -> list[PlannedRun]:
    """The target runs that no forecast covers yet: all at first, later those that a longer study adds."""
    covered = {name for forecast in forecasts for name in forecast.targets}
    return [run for run in target_runs(plan) if run.name not in covered]


def score_record(
    record: Mapping[str, Any], observations: Iterable[Observation], endings: Mapping[str, str]
) -> dict[str, Any]:
    """How a frozen forecast came out.

    `endings` gives the status of each target run ("finished", "diverged", "failed", ...). A target that did not
    finish, or whose final state is another than the one forecast, is void, with its reason; it is shown all the same.
    """
    found = {row.name: row for row in observations}
    targets = [_score_target(target, found.get(target["run"]), endings) for target in record["targets"]]
    scored = [target for target in targets if target["status"] == "scored"]
    return {
        "status": "scored" if scored else "void",
        "targets": targets,
        "headline": targets[-1]["run"],
        "inside": sum(target["inside"] for target in scored),
        "scored": len(scored),
    }


def _score_target(
    target: Mapping[str, Any], observation: Observation | None, endings: Mapping[str, str]
) -> dict[str, Any]:
    described = {name: target[name] for name in ("run", "params", "tokens", "predicted", "interval", "extrapolation")}
    ending = endings.get(target["run"], "missing")
    if observation is None or ending != "finished":
        return {**described, "status": "void", "reason": f"the target run is {ending}"}
    if observation.state_id != target["state_id"]:
        reason = f"the run was altered: forecast for state {target['state_id']}, finished as {observation.state_id}"
        return {**described, "status": "void", "reason": reason}
    low, high = target["interval"]
    return {
        **described,
        "status": "scored",
        "observed": observation.loss,
        "observed_standard_error": observation.loss_se,
        "relative_error": target["predicted"] / observation.loss - 1.0,
        "inside": low <= observation.loss <= high,
        "relative_width": (high - low) / target["predicted"],
        "baselines": {
            name: {"predicted": value, "relative_error": value / observation.loss - 1.0}
            for name, value in target["baselines"].items()
        },
    }
