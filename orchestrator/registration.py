"""Brings a plan into the ledger: what is new is added, what is there keeps its name, what differs is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from jobs.identity import canonical, differing_fields, state_identity
from orchestrator import schema
from orchestrator.database import LedgerError
from orchestrator.writing import LedgerWriter, milliseconds

if TYPE_CHECKING:
    from orchestrator.plan import Plan, PlannedRun


def register(ledger: LedgerWriter, plan: Plan, now: float) -> None:
    """Add the plan's runs and segments that are new; rename nothing.

    Raises LedgerError where a run of the same name is stored with another identity, naming the fields that differ.
    """
    if ledger.study_name and ledger.study_name != plan.study_name:
        raise LedgerError(f"this ledger keeps study {ledger.study_name!r}, the plan is of {plan.study_name!r}")
    ledger.study_name = plan.study_name
    with ledger.transaction() as connection:
        _register_study(ledger, connection, plan, now)
        _register_runs(ledger, connection, plan, now)
        _register_segments(ledger, connection, plan, now)


def _register_study(ledger: LedgerWriter, connection: Connection, plan: Plan, now: float) -> None:
    table = schema.study
    stored = ledger.study()
    if stored is None:
        connection.execute(
            table.insert().values(
                name=plan.study_name,
                digest=plan.study_digest,
                corpus_digest=plan.corpus_digest,
                counting=uuid.uuid4().hex,
                created_ms=milliseconds(now),
            )
        )
    elif stored.digest != plan.study_digest:
        connection.execute(
            table.update()
            .where(table.c.name == plan.study_name)
            .values(digest=plan.study_digest, corpus_digest=plan.corpus_digest)
        )
        text = f"study {plan.study_name}: its file has changed; runs that are the same keep what they have"
        ledger.append_event("study.changed", {"text": text, "from": stored.digest, "to": plan.study_digest}, now)


def _register_runs(ledger: LedgerWriter, connection: Connection, plan: Plan, now: float) -> None:
    table = schema.run
    # A run that is added later and leads through a segment which was given up is given up with it.
    closed = {row.state_id: row for row in ledger.segments().values() if row.status in ("failed", "diverged")}
    stored = {row.name: row for row in ledger.runs()}
    for position, run in enumerate(plan.runs):
        known = stored.get(run.name)
        if known is None:
            cause = next((closed[state_id] for state_id in run.segments if state_id in closed), None)
            connection.execute(
                table.insert().values(
                    study=plan.study_name,
                    name=run.name,
                    position=position,
                    role=run.role,
                    state_ids=list(run.segments),
                    spec=run.spec.model_dump(mode="json"),
                    identity=_identity(run),
                    status=cause.status if cause else "waiting",
                    reason=cause.reason if cause else "",
                    changed_ms=milliseconds(now),
                )
            )
            continue
        if known.state_ids[-1] != run.segments[-1]:
            raise LedgerError(_differing(plan.study_name, run, known.identity))
        if (known.role, known.state_ids) != (run.role, run.segments):
            text = f"run {run.name}: planned anew as {run.role} over {len(run.segments)} segments"
            ledger.append_event("run.replanned", {"text": text, "run": run.name}, now)
        connection.execute(
            table.update()
            .where(table.c.study == plan.study_name, table.c.name == run.name)
            .values(position=position, role=run.role, state_ids=list(run.segments))
        )


def _register_segments(ledger: LedgerWriter, connection: Connection, plan: Plan, now: float) -> None:
    table = schema.segment
    stored = ledger.segments()
    for state_id, planned in plan.segments.items():
        cut = {
            "name": planned.name,
            "parent_id": planned.segment.parent_id,
            "curve_id": planned.segment.curve_id,
            "start_step": planned.segment.start_step,
            "end_step": planned.segment.end_step,
            "kind": planned.segment.kind,
        }
        facts = {"role": planned.role, "is_final": planned.is_final}
        known = stored.get(state_id)
        if known is None:
            connection.execute(
                table.insert().values(
                    study=plan.study_name,
                    state_id=state_id,
                    **cut,
                    **facts,
                    status="waiting",
                    reason="",
                    attempt=0,
                    forgiven_attempt=0,
                    changed_ms=milliseconds(now),
                )
            )
            continue
        # A state that exists keeps the cut under which it was trained, however a new budget cuts [0, s) now.
        changes = facts if known.status == "accepted" else {**cut, **facts}
        if any(getattr(known, name) != value for name, value in changes.items()):
            connection.execute(
                table.update().where(table.c.study == plan.study_name, table.c.state_id == state_id).values(**changes)
            )


def _identity(run: PlannedRun) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads(canonical(state_identity(run.spec, run.spec.total_steps)))
    return identity


def _differing(study_name: str, run: PlannedRun, stored: Mapping[str, Any]) -> str:
    lines = "\n  ".join(differing_fields(_identity(run), stored))
    return (
        f"run {run.name} of study {study_name} is in the ledger with another identity (planned != stored):\n  {lines}\n"
        "Give the changed study a new name, or undo the change."
    )
