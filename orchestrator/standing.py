"""How a study stands, from its ledger alone: the value behind `scaling status`, as text and as JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.lease import current_holder
from orchestrator.numbers import short_number
from orchestrator.rows import aligned

if TYPE_CHECKING:
    from orchestrator.reading import LedgerReader


def standing(ledger: LedgerReader) -> dict[str, Any]:
    """Runs with their progress, attempts that ended badly, forecasts, and who drives the study."""
    from jobs.spec import RunSpec

    observations = {row.name: row for row in ledger.observations()}
    segments, reached = ledger.segments(), ledger.latest_steps()
    holder = current_holder(ledger, time.time())
    runs = []
    for run in ledger.runs():
        spec = RunSpec.model_validate(run.spec)
        path = [segments[state_id] for state_id in run.state_ids]
        known = [min(reached.get(piece.curve_id, 0), piece.end_step) for piece in path if piece.curve_id in reached]
        accepted = [piece.end_step for piece in path if piece.status == "accepted"]
        status: str = run.status
        if status == "waiting" and any(piece.status == "open" for piece in path):
            status = "running"
        row = observations.get(run.name)
        runs.append(
            {
                "run": run.name,
                "role": run.role,
                "status": status,
                "step": max([0, *known, *accepted]),
                "total_steps": spec.total_steps,
                "loss": row.loss if row else None,
                "loss_se": row.loss_se if row else None,
                "reason": run.reason,
            }
        )
    attempts = [
        {"attempt": row.number, "outcome": row.outcome, "cause": row.cause, "log": row.log_path}
        for row in ledger.attempts()
        if row.outcome not in ("open", "finished", "adopted")
    ]
    forecasts = [
        {"digest": row.digest, "blind": row.blind, "targets": list(row.targets), "scored": row.score is not None}
        for row in ledger.forecasts()
    ]
    counts: dict[str, int] = {}
    for described in runs:
        counts[str(described["status"])] = counts.get(str(described["status"]), 0) + 1
    return {
        "study": ledger.study_name,
        "driver": f"process {holder.pid} on {holder.host}" if holder else None,
        "counts": counts,
        "runs": runs,
        "ended_attempts": attempts,
        "forecasts": forecasts,
    }


def standing_text(document: dict[str, Any]) -> str:
    """`standing` for a person."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(document["counts"].items()))
    told = counts or "nothing is planned yet (its corpus is prepared first)"
    lines = [f"study {document['study']}: {told}; driven by {document['driver'] or 'nobody'}"]
    if not document["runs"]:
        return lines[0]
    lines.append("")
    rows = [("run", "role", "status", "steps", "loss", "std. error")]
    for run in document["runs"]:
        loss = "-" if run["loss"] is None else f"{run['loss']:.4f}"
        error = "-" if run["loss_se"] is None else f"{run['loss_se']:.4f}"
        steps = f"{short_number(run['step'])} of {short_number(run['total_steps'])}"
        rows.append((run["run"], run["role"], run["status"], steps, loss, error))
    lines += aligned(rows)
    lines += [f"  {run['run']}: {run['reason']}" for run in document["runs"] if run["reason"]]
    for attempt in document["ended_attempts"]:
        lines.append(f"attempt {attempt['attempt']}: {attempt['outcome']}: {attempt['cause']}  log: {attempt['log']}")
    for forecast in document["forecasts"]:
        state = "scored" if forecast["scored"] else "frozen, not scored yet"
        lines.append(f"forecast {forecast['digest'][:12]} of {', '.join(forecast['targets'])}: {state}")
    return "\n".join(lines)


def event_lines(ledger: LedgerReader) -> list[str]:
    """The story of a study, one event a line, in local time."""
    lines = []
    sequence = 0
    while events := ledger.events_after(sequence):
        sequence = events[-1].sequence
        for event in events:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_ms / 1000))
            lines.append(f"{when} {event.content.get('text', event.kind)}")
    return lines


def last_log(ledger: LedgerReader, run_name: str, rank: int) -> Path:
    """The log of one rank in the last attempt that trained for a run. Raises ValueError where there is none."""
    from jobs.storage import AttemptPaths

    runs = {row.name: row for row in ledger.runs()}
    if run_name not in runs:
        raise ValueError(f"study {ledger.study_name} has no run {run_name!r}; it has {', '.join(runs) or 'none yet'}")
    path = runs[run_name].state_ids
    attempts = [row for row in ledger.attempts() if not set(row.state_ids).isdisjoint(path)]
    if not attempts:
        raise ValueError(f"run {run_name} has not been started yet")
    paths = AttemptPaths(Path(attempts[-1].folder))
    if not paths.log(rank).exists():
        ranks = sorted(path.stem for path in paths.logs.glob("rank-*.log"))
        raise ValueError(f"there is no {paths.log(rank)}; that attempt has {', '.join(ranks) or 'no logs'}")
    return paths.log(rank)
