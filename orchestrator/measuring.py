"""Keeps the speed at which each shape was trained, so that later plans estimate time from measurements."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from jobs.spec import Execution, RunSpec
from orchestrator.throughput import Measurement, record

if TYPE_CHECKING:
    from orchestrator.reading import LedgerReader

SPEED_KEY = "train/tokens_per_s"


def record_speeds(ledger: LedgerReader, calibration: Path, after_sequence: int) -> None:
    """Record the median tokens per second of each shape and execution, from points beyond a sequence."""
    speeds: dict[str, list[float]] = {}
    while rows := ledger.points_after(after_sequence, 10_000):
        after_sequence = rows[-1].sequence
        for row in rows:
            if row.key == SPEED_KEY:
                speeds.setdefault(row.curve_id, []).append(row.value)
    segments = ledger.segments()
    executions = {
        segments[state_id].curve_id: Execution.model_validate(attempt.execution)
        for attempt in ledger.attempts()
        for state_id in attempt.state_ids
        if state_id in segments
    }
    specs = {
        segments[state_id].curve_id: RunSpec.model_validate(run.spec)
        for run in ledger.runs()
        for state_id in run.state_ids
    }
    pooled: dict[tuple[str, str], tuple[RunSpec, Execution, list[float]]] = {}
    for curve_id, values in speeds.items():
        if curve_id not in specs or curve_id not in executions:
            # A budget that was taken out of the study while its curve was trained.
            continue
        spec, execution = specs[curve_id], executions[curve_id]
        key = (spec.shape.model_dump_json(), execution.model_dump_json())
        pooled.setdefault(key, (spec, execution, []))[2].extend(values)
    for spec, execution, values in pooled.values():
        measurement = Measurement(
            shape=spec.shape,
            device=execution.device,
            world_size=execution.world_size,
            threads_per_rank=execution.threads_per_rank,
            batch_tokens=spec.batch_tokens,
            tokens_per_s=median(values),
        )
        record(calibration, measurement)
