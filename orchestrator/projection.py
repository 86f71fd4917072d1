"""What the ledger shows to MLflow: one parent for the study, one child a trunk and a run, each with its whole curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.accounting import count_parameters, train_flops_per_token
from jobs.observation import Observation
from jobs.spec import RunSpec
from jobs.storage import sha256_of_file
from jobs.tracking import (
    COMPUTE_C,
    PARAMETERS_N,
    TOKENS_D,
    VALIDATION_BITS_PER_BYTE,
    VALIDATION_LOSS,
    VALIDATION_LOSS_SE,
    Dataset,
    RunStatus,
)
from orchestrator.frozen import first_forecasts
from orchestrator.reading import AttemptRow, ForecastRow, LedgerReader, PointRow, RunRow, SegmentRow
from orchestrator.shipper import ArtifactFile, Child, Ending, Stretch, StudyCard

RUN_STATUS: Mapping[str, RunStatus] = {
    "waiting": "SCHEDULED",
    "open": "RUNNING",
    "finished": "FINISHED",
    "accepted": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
}

# Of a scored target, as metrics of the parent run.
HEADLINE = ("predicted", "observed", "relative_error")


class LedgerSource:
    """The study in a ledger, and the files in its report folder, as the shipper reads them."""

    def __init__(
        self, ledger: LedgerReader, note: str, params: Mapping[str, Any], report_dir: Path, dataset: Dataset | None
    ) -> None:
        self._ledger = ledger
        self._note = note
        self._params = params
        self._report_dir = report_dir
        self._dataset = dataset

    def identity(self) -> str:
        study = self._ledger.study()
        return study.counting if study else ""

    def study(self) -> StudyCard:
        study = self._ledger.study()
        assert study is not None, "the plan is registered before anything is shipped"
        runs = self._ledger.runs()
        open_runs = [run for run in runs if run.status == "waiting"]
        forecasts = first_forecasts(self._ledger.forecasts())
        return StudyCard(
            name=study.name,
            digest=study.digest,
            note=self._note,
            created_ms=study.created_ms,
            params=self._params,
            tags={
                "scaling.corpus_digest": study.corpus_digest,
                "scaling.forecast_digest": forecasts[0].digest if forecasts else "",
                "scaling.runs_finished": f"{sum(run.status == 'finished' for run in runs)} of {len(runs)}",
            },
            metrics=_forecast_metrics(forecasts),
            status="RUNNING" if open_runs else "FINISHED",
            dataset=self._dataset,
        )

    def children(self) -> Sequence[Child]:
        segments = self._ledger.segments()
        observations = {observation.name: observation for observation in self._ledger.observations()}
        attempts = {state_id: attempt for attempt in self._ledger.attempts() for state_id in attempt.state_ids}
        runs = self._ledger.runs()
        trunks: dict[str, Child] = {}
        children = []
        for run in runs:
            path = [segments[state_id] for state_id in run.state_ids]
            spec = RunSpec.model_validate(run.spec)
            for segment in path:
                if segment.kind == "trunk" and segment.curve_id not in trunks:
                    trunks[segment.curve_id] = _trunk(segment, segments, spec, attempts)
                    children.append(trunks[segment.curve_id])
            children.append(_run(run, path, spec, observations.get(run.name), attempts))
        return children

    def heads(self) -> Mapping[str, int]:
        return self._ledger.heads()

    def points_after(self, curve_ids: Sequence[str], sequence: int, limit: int) -> Sequence[PointRow]:
        return self._ledger.points_after(sequence, limit, curve_ids)

    def artifacts(self) -> Sequence[ArtifactFile]:
        if not self._report_dir.is_dir():
            return []
        files = sorted(path for path in self._report_dir.iterdir() if path.is_file() and path.suffix != ".tmp")
        return [ArtifactFile(path, sha256_of_file(path)) for path in files]


def _forecast_metrics(forecasts: Sequence[ForecastRow]) -> dict[str, float]:
    """What the parent run shows of the newest headline that was scored."""
    headlines = [forecast.score["targets"][-1] for forecast in forecasts if forecast.score]
    scored = [target for target in headlines if target["status"] == "scored"]
    return {f"forecast/{name}": scored[-1][name] for name in HEADLINE} if scored else {}


def _shape_params(spec: RunSpec) -> dict[str, Any]:
    """Identity as MLflow params: short names, plain values."""
    count = count_parameters(spec.shape)
    return {
        "N": count.matmul,
        "N_total": count.total,
        "N_non_embedding": count.non_embedding,
        **{f"shape.{name}": getattr(spec.shape, name) for name in type(spec.shape).model_fields},
        **{f"recipe.{name}": getattr(spec.recipe, name) for name in type(spec.recipe).model_fields},
        "parametrization": spec.parametrization.kind,
        "parametrization.base_width": spec.parametrization.base_width,
        "parametrization.base_layers": spec.parametrization.base_layers,
        "precision": spec.precision,
        "seed": spec.seed,
        "data_seed": spec.data_seed,
        "corpus_digest": spec.corpus_digest,
    }


def _execution_tags(attempt: AttemptRow | None) -> dict[str, str]:
    """How the last attempt was carried out: it may change, so it goes into tags."""
    if attempt is None:
        return {}
    execution = {f"scaling.execution.{name}": str(value) for name, value in attempt.execution.items()}
    ended = "" if attempt.outcome in ("open", "finished") else f"{attempt.outcome}: {attempt.cause}"[:500]
    # Written empty as well: a tag of an earlier attempt would stay.
    return {
        **execution,
        "scaling.gang": attempt.gang_id,
        "scaling.attempt": str(attempt.number),
        "scaling.cause": ended,
    }


def _trunk(
    segment: SegmentRow, segments: Mapping[str, SegmentRow], spec: RunSpec, attempts: Mapping[str, AttemptRow]
) -> Child:
    pieces = [other for other in segments.values() if other.curve_id == segment.curve_id]
    statuses = {piece.status for piece in pieces}
    status = next((RUN_STATUS[word] for word in ("failed", "diverged", "open") if word in statuses), None)
    if status is None:
        status = "FINISHED" if statuses == {"accepted"} else "SCHEDULED" if statuses == {"waiting"} else "RUNNING"
    last = max(pieces, key=lambda piece: piece.end_step)
    return Child(
        run_id=f"trunk-{segment.curve_id}",
        name=f"{segment.name.split(' ')[0]} trunk",
        role="trunk",
        stretches=(Stretch(segment.curve_id),),
        params={**_shape_params(spec), "fingerprint": segment.curve_id},
        tags=_execution_tags(attempts.get(last.state_id)),
        status=status,
        train_flops_per_token=float(train_flops_per_token(spec.shape)),
    )


def _run(
    run: RunRow,
    path: Sequence[SegmentRow],
    spec: RunSpec,
    observation: Observation | None,
    attempts: Mapping[str, AttemptRow],
) -> Child:
    flops_per_token = float(train_flops_per_token(spec.shape))
    status = RUN_STATUS[run.status]
    if status == "SCHEDULED" and any(segment.status in ("open", "accepted") for segment in path):
        status = "RUNNING"
    ending = None
    if observation is not None:
        ending = Ending(
            tokens=spec.horizon_tokens,
            time_ms=run.changed_ms,
            metrics={
                VALIDATION_LOSS: observation.loss,
                VALIDATION_LOSS_SE: observation.loss_se,
                VALIDATION_BITS_PER_BYTE: observation.bits_per_byte,
                PARAMETERS_N: float(observation.params),
                TOKENS_D: float(observation.tokens),
                COMPUTE_C: float(observation.train_flops),
            },
            observation=observation.as_row(),
        )
    return Child(
        run_id=f"run-{run.state_ids[-1]}",
        name=run.name,
        role=run.role,
        stretches=tuple(Stretch(piece.curve_id, piece.start_step, piece.end_step) for piece in path),
        params={
            **_shape_params(spec),
            "D": spec.horizon_tokens,
            "C": flops_per_token * spec.horizon_tokens,
            "total_steps": spec.total_steps,
            "fingerprint": run.state_ids[-1],
        },
        tags={
            **_execution_tags(attempts.get(run.state_ids[-1])),
            "scaling.status": run.status,
            **({"scaling.reason": run.reason[:500]} if run.reason else {}),
        },
        status=status,
        train_flops_per_token=flops_per_token,
        ending=ending,
    )
