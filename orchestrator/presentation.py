"""Turns a study's ledger and laws into figures and the report page."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.spec import RunSpec
from jobs.storage import StudyPaths, write_atomically
from jobs.tracking import TRAIN_LOSS
from orchestrator.drawing import save
from orchestrator.figures import curves_figure, isoflop_figure, residual_figure
from orchestrator.frozen import first_forecasts
from orchestrator.isoflops import figure_rows
from orchestrator.law_figure import law_figure
from orchestrator.numbers import short_number
from orchestrator.report import Baseline, ForecastSummary, LawSummary, Report, ReportFigure, render_report
from orchestrator.summary import BASELINE_NAMES

if TYPE_CHECKING:
    from jobs.laws.fit import Fit
    from jobs.laws.isoflop import Isoflop
    from jobs.laws.mixture import Mixture
    from jobs.observation import Observation
    from orchestrator.plan import Plan
    from orchestrator.reading import ForecastRow, LedgerReader, RunRow
    from orchestrator.study import Study

SHOWN_VERSIONS = ("scaling", "torch", "deepspeed", "ray", "datasets", "mlflow", "numpy")


def write_report(
    study: Study, paths: StudyPaths, plan: Plan, ledger: LedgerReader, mixture: Mixture, isoflop: Isoflop | None
) -> Path:
    """Write the figures and report.html below `paths.report`; returns the page."""
    observations, runs, forecasts = ledger.observations(), ledger.runs(), first_forecasts(ledger.forecasts())
    figures = _figures(study, paths, ledger, mixture, isoflop, observations, runs, forecasts)
    report = Report(
        study=study.name,
        question=study.question,
        summary=_summary(forecasts, mixture),
        plan=_plan_facts(plan),
        laws=[_law(fit, weight) for fit, weight in zip(mixture.fits, mixture.weights, strict=True)],
        forecasts=[summary for row in forecasts for summary in _forecast_summaries(row)],
        figures=figures,
        runs=[_run_row(run, {row.name: row for row in observations}) for run in runs],
        excluded=[(run.name, f"{run.status}: {run.reason}") for run in runs if run.status in ("failed", "diverged")],
        versions=_versions(),
        study_yaml=json.dumps(study.model_dump(mode="json"), indent=1),
        created=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    )
    page = paths.report / "report.html"
    write_atomically(page, render_report(report))
    return page


def _figures(
    study: Study,
    paths: StudyPaths,
    ledger: LedgerReader,
    mixture: Mixture,
    isoflop: Isoflop | None,
    observations: Sequence[Observation],
    runs: Sequence[RunRow],
    forecasts: Sequence[ForecastRow],
) -> list[ReportFigure]:
    level = study.forecast.level
    # Bars show the noise of a run: the error of the evaluation set is common to all runs and moves them together.
    noise = mixture.best.noise.sd
    rows = [
        {
            "name": row.name,
            "role": row.role,
            "params": row.params,
            "tokens": row.tokens,
            "compute": row.train_flops,
            "loss": row.loss,
            "loss_se": noise * row.loss,
        }
        for row in observations
    ]
    predict = _predictor(mixture, level)
    forecast_rows = [row for forecast in forecasts for row in _forecast_rows(forecast)]
    drawn = [
        (
            "law",
            law_figure(rows, predict, forecast_rows, level=level),
            "The law and its forecast",
            f"Lines: the mixture of fitted forms; bands: its {level:.0%} interval for a new run.",
        ),
        (
            "residuals",
            residual_figure(rows, predict),
            "Residuals",
            "Observed loss over the law's value. Held-out runs were not fitted.",
        ),
    ]
    if isoflop is not None:
        drawn.append(
            (
                "isoflop",
                isoflop_figure(*figure_rows(study, isoflop, observations)),
                "IsoFLOP parabolas",
                "Loss against parameters at each compute budget; stars are the best sizes.",
            )
        )
    curves = _curves(ledger, runs)
    if curves:
        drawn.append(
            ("curves", curves_figure(curves), "Loss curves", "Training loss over tokens; thick where a run decays.")
        )
    return [ReportFigure(title, caption, save(figure, paths.report, stem)[0]) for stem, figure, title, caption in drawn]


def _predictor(mixture: Mixture, level: float) -> Callable[[float, float], tuple[float, float, float]]:
    def predict(params: float, tokens: float) -> tuple[float, float, float]:
        prediction = mixture.predict(params, tokens, level)
        return (prediction.value, *prediction.prediction_interval)

    return predict


def _curves(ledger: LedgerReader, runs: Sequence[RunRow]) -> list[dict[str, Any]]:
    """Training loss of every run from step 0, trunk points included."""
    segments = ledger.segments()
    curves = []
    for run in runs:
        spec = RunSpec.model_validate(run.spec)
        path = [segments[state_id] for state_id in run.state_ids]
        points: dict[int, float] = {}
        for segment in path:
            for point in ledger.points_after(0, 1_000_000, [segment.curve_id]):
                if point.key == TRAIN_LOSS and segment.start_step < point.step <= segment.end_step:
                    points[point.tokens] = point.value
        if points:
            tokens = sorted(points)
            fork = path[-1].start_step * spec.batch_tokens
            losses = [points[token] for token in tokens]
            params = run_params(spec)
            curves.append({"name": run.name, "params": params, "fork_tokens": fork, "tokens": tokens, "loss": losses})
    return curves


def run_params(spec: RunSpec) -> int:
    """N by the default convention."""
    from jobs.accounting import count_parameters

    return count_parameters(spec.shape).matmul


def _forecast_rows(forecast: ForecastRow) -> list[dict[str, Any]]:
    """The forecast as the law figure draws it."""
    outcomes = _outcomes(forecast)
    return [
        {
            "name": target["run"],
            "params": target["params"],
            "tokens": target["tokens"],
            "value": target["predicted"],
            "lo": target["interval"][0],
            "hi": target["interval"][1],
            "level": forecast.record["level"],
            "blind": forecast.blind,
            "outcome": outcomes.get(target["run"], {}).get("observed"),
        }
        for target in forecast.record["targets"]
    ]


def _outcomes(forecast: ForecastRow) -> dict[str, Mapping[str, Any]]:
    return {target["run"]: target for target in forecast.score["targets"]} if forecast.score else {}


def _forecast_summaries(forecast: ForecastRow) -> list[ForecastSummary]:
    outcomes = _outcomes(forecast)
    summaries = []
    for target in forecast.record["targets"]:
        outcome = outcomes.get(target["run"], {})
        factor = target["extrapolation"]["exact_train_flops"]
        summaries.append(
            ForecastSummary(
                name=target["run"],
                value=target["predicted"],
                lo=target["interval"][0],
                hi=target["interval"][1],
                level=forecast.record["level"],
                blind=forecast.blind,
                outcome=outcome.get("observed"),
                outcome_se=outcome.get("observed_standard_error"),
                verdict=outcome.get("reason", ""),
                extrapolation=f"{factor:.3g}x the compute of the dearest fitted run",
                baselines=[
                    Baseline(BASELINE_NAMES.get(name, name), value) for name, value in target["baselines"].items()
                ],
            )
        )
    return summaries


def _summary(forecasts: Sequence[ForecastRow], mixture: Mixture) -> str:
    best = mixture.best
    law = f"Best law: {best.form} ({best.status}), fitted to {best.rows.used} runs."
    scored = [forecast for forecast in forecasts if forecast.score]
    if not scored or scored[-1].score is None:
        return law
    target = scored[-1].score["targets"][-1]
    if target["status"] == "void":
        return f"{law} The forecast of {target['run']} is void: {target['reason']}."
    frozen = "frozen before it started" if scored[-1].blind else "frozen after some of it had been trained"
    return (
        f"{law} The forecast of {target['run']}, {frozen}, was {target['predicted']:.4f}; "
        f"{target['observed']:.4f} came out ({target['relative_error']:+.2%}, "
        f"{'inside' if target['inside'] else 'outside'} the {scored[-1].record['level']:.0%} interval)."
    )


def _law(fit: Fit, weight: float) -> LawSummary:
    nothing = (float("nan"), float("nan"))
    facts = {
        "weight in the mixture": f"{weight:.2f}",
        "objective": f"{fit.objective.value:.8g} ({fit.objective.loss}, {fit.objective.reduction})",
        "bootstrap": f"{fit.bootstrap.kind}; {fit.bootstrap.certified} of {fit.bootstrap.replicates} certified",
        "noise of a run": f"{fit.noise.sd:.2%} ({fit.noise.source})",
        "rows hash": fit.rows.hash,
        **{f"convention of {name}": text for name, text in fit.conventions.items()},
    }
    if fit.holdout is not None:
        facts["hold-out"] = (
            f"{fit.holdout.rule}: mean error {fit.holdout.mean_abs_rel_error:.2%} over {fit.holdout.rows} rows"
        )
    return LawSummary(
        form=fit.form,
        equation=fit.law.equation,
        status=fit.status,
        reasons=fit.reasons,
        parameters=[(name, value, *fit.intervals.get(name, nothing)) for name, value in fit.params.items()],
        level=fit.level,
        rows_used=fit.rows.used,
        facts=facts,
    )


def _plan_facts(plan: Plan) -> dict[str, str]:
    share = plan.shared_flops / plan.from_scratch_flops
    return {
        "runs": str(len(plan.runs)),
        "held out": str(sum(run.role == "target" for run in plan.runs)),
        "training FLOPs": f"{plan.shared_flops:.3g}",
        "from scratch it would be": f"{plan.from_scratch_flops:.3g} ({share:.0%} of it is spent)",
        "corpus digest": plan.corpus_digest,
        "study digest": plan.study_digest,
    }


def _run_row(run: RunRow, observations: Mapping[str, Observation]) -> dict[str, Any]:
    row = observations.get(run.name)
    spec = RunSpec.model_validate(run.spec)
    return {
        "run": run.name,
        "role": run.role,
        "status": run.status,
        "N": short_number(run_params(spec)),
        "D": short_number(spec.horizon_tokens),
        "C (FLOPs)": f"{row.train_flops:.3g}" if row else None,
        "loss (nats/token)": round(row.loss, 5) if row else None,
        "standard error": round(row.loss_se, 5) if row else None,
        "bits per byte": round(row.bits_per_byte, 5) if row else None,
        "quality": row.quality if row else None,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in SHOWN_VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
