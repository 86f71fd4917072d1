"""Reads the ledger: frozen rows of what was decided and of what came out. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from jobs.observation import Observation
from orchestrator import schema
from orchestrator.database import LedgerError, open_engine, read_transaction

RunStatus = Literal["waiting", "finished", "failed", "diverged"]
SegmentStatus = Literal["waiting", "open", "accepted", "failed", "diverged"]


@dataclass(frozen=True)
class StudyRow:
    """The study that this ledger keeps."""

    name: str
    digest: str
    corpus_digest: str
    counting: str
    created_ms: int


@dataclass(frozen=True)
class RunRow:
    """A run of the study. `reason` says why it failed or diverged."""

    name: str
    role: Literal["fit", "target"]
    state_ids: tuple[str, ...]
    spec: dict[str, Any]
    identity: dict[str, Any]
    status: RunStatus
    reason: str
    changed_ms: int


@dataclass(frozen=True)
class SegmentRow:
    """A segment: who may accept its state (`attempt`), and the accepted state."""

    state_id: str
    name: str
    parent_id: str | None
    curve_id: str
    start_step: int
    end_step: int
    kind: str
    role: Literal["fit", "target"]
    is_final: bool
    status: SegmentStatus
    reason: str
    attempt: int
    forgiven_attempt: int
    path: str | None
    manifest_digest: str | None
    changed_ms: int


@dataclass(frozen=True)
class CheckpointRow:
    """A committed state in the middle of a segment."""

    state_id: str
    step: int
    attempt: int
    path: str
    manifest_digest: str
    recorded_ms: int


@dataclass(frozen=True)
class AttemptRow:
    """One try by a gang at a chain. `outcome` is "open" until it ended; then a class of orchestrator.failures."""

    number: int
    gang_id: str
    state_ids: tuple[str, ...]
    execution: dict[str, Any]
    folder: str
    start_step: int
    outcome: str
    cause: str
    error: str
    log_path: str
    charged_state_id: str | None
    began_ms: int
    ended_ms: int | None


@dataclass(frozen=True)
class EventRow:
    """Something that happened, in the order in which it was written down."""

    sequence: int
    kind: str
    time_ms: int
    content: dict[str, Any]


@dataclass(frozen=True)
class PointRow:
    """One value of a curve; `sequence` grows with every point that the ledger takes in."""

    sequence: int
    curve_id: str
    key: str
    step: int
    tokens: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class ForecastRow:
    """A frozen forecast. The first for a target is the one that is scored; later ones are revisions.

    `blind`: no segment of its targets had been opened when it was frozen.
    """

    sequence: int
    digest: str
    targets: tuple[str, ...]
    blind: bool
    record: dict[str, Any]
    frozen_ms: int
    score: dict[str, Any] | None
    scored_ms: int | None


class LedgerReader:
    """The ledger of one study, for reading."""

    def __init__(self, engine: Engine, study_name: str) -> None:
        self._engine = engine
        self.study_name = study_name

    @classmethod
    def open(cls, url: str, create: bool = False, study_name: str = "") -> Self:
        """The ledger at a database URL (orchestrator.database.sqlite_url makes one of a path).

        `study_name` may be left out where the database holds one study, or none yet. Raises LedgerError.
        """
        engine = open_engine(url, create)
        ledger = cls(engine, study_name)
        if not study_name:
            with read_transaction(engine) as connection:
                names = connection.execute(sa.select(schema.study.c.name)).scalars().all()
            if len(names) > 1:
                raise LedgerError(f"the ledger holds {len(names)} studies ({', '.join(sorted(names))}): name one")
            ledger.study_name = names[0] if names else ""
        return ledger

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the ledger."""
        with read_transaction(self._engine) as connection:
            yield connection

    def study(self) -> StudyRow | None:
        """The study; None before its first plan was registered."""
        table = schema.study
        rows = self._rows(sa.select(table).where(table.c.name == self.study_name))
        return StudyRow(**rows[0]) if rows else None

    def runs(self) -> list[RunRow]:
        """Runs in the order in which they were planned."""
        table = schema.run
        rows = self._rows(sa.select(table).where(table.c.study == self.study_name).order_by(table.c.position))
        return [_run_row(row) for row in rows]

    def run(self, name: str) -> RunRow:
        """One run. Raises LedgerError if there is none of this name."""
        table = schema.run
        rows = self._rows(sa.select(table).where(table.c.study == self.study_name, table.c.name == name))
        if not rows:
            raise LedgerError(f"study {self.study_name} has no run {name!r}")
        return _run_row(rows[0])

    def segments(self, state_ids: Sequence[str] | None = None) -> dict[str, SegmentRow]:
        """Segments by state id: all, or those asked for."""
        table = schema.segment
        query = sa.select(table).where(table.c.study == self.study_name)
        if state_ids is not None:
            query = query.where(table.c.state_id.in_(list(state_ids)))
        return {row["state_id"]: SegmentRow(**_without(row, "study")) for row in self._rows(query)}

    def checkpoints(self) -> list[CheckpointRow]:
        """Checkpoints in the middle of segments, newest last."""
        table = schema.checkpoint
        query = sa.select(table).where(table.c.study == self.study_name).order_by(table.c.step, table.c.attempt)
        return [CheckpointRow(**_without(row, "study")) for row in self._rows(query)]

    def attempts(self, outcome: str | None = None) -> list[AttemptRow]:
        """Attempts by number; with `outcome` only those that ended so ("open": not yet)."""
        table = schema.attempt
        query = sa.select(table).where(table.c.study == self.study_name).order_by(table.c.number)
        if outcome is not None:
            query = query.where(table.c.outcome == outcome)
        return [
            AttemptRow(**{**_without(row, "study"), "state_ids": tuple(row["state_ids"])}) for row in self._rows(query)
        ]

    def observations(self) -> list[Observation]:
        """Final losses with N, D and C under their conventions, one row a finished run, in the order of the plan.

        The role is the one that the run has now: what is held out may change after it was trained.
        """
        table = schema.observation
        query = (
            sa.select(table.c.content, schema.run.c.role)
            .join(schema.run, sa.and_(schema.run.c.study == table.c.study, schema.run.c.name == table.c.run))
            .where(table.c.study == self.study_name)
            .order_by(schema.run.c.position)
        )
        return [Observation.model_validate({**row["content"], "role": row["role"]}) for row in self._rows(query)]

    def events_after(self, sequence: int = 0, limit: int = 1000) -> list[EventRow]:
        """Events beyond a sequence, oldest first."""
        table = schema.event
        query = (
            sa.select(table)
            .where(table.c.study == self.study_name, table.c.sequence > sequence)
            .order_by(table.c.sequence)
            .limit(limit)
        )
        return [EventRow(**_without(row, "study")) for row in self._rows(query)]

    def points_after(
        self, sequence: int = 0, limit: int = 1000, curve_ids: Sequence[str] | None = None
    ) -> list[PointRow]:
        """Points beyond a sequence, oldest first; with `curve_ids` those of these curves only."""
        table = schema.point
        query = (
            sa.select(table)
            .where(table.c.study == self.study_name, table.c.sequence > sequence)
            .order_by(table.c.sequence)
            .limit(limit)
        )
        if curve_ids is not None:
            query = query.where(table.c.curve_id.in_(list(curve_ids)))
        return [PointRow(**_without(row, "study")) for row in self._rows(query)]

    def heads(self) -> dict[str, int]:
        """Largest sequence of each curve that has points."""
        table = schema.point
        query = (
            sa.select(table.c.curve_id, sa.func.max(table.c.sequence).label("head"))
            .where(table.c.study == self.study_name)
            .group_by(table.c.curve_id)
        )
        return {row["curve_id"]: row["head"] for row in self._rows(query)}

    def latest_steps(self) -> dict[str, int]:
        """Largest step of each curve that has points: how far training is known to have come."""
        table = schema.point
        query = (
            sa.select(table.c.curve_id, sa.func.max(table.c.step).label("step"))
            .where(table.c.study == self.study_name)
            .group_by(table.c.curve_id)
        )
        return {row["curve_id"]: row["step"] for row in self._rows(query)}

    def forecasts(self) -> list[ForecastRow]:
        """Forecasts in the order in which they were frozen."""
        table = schema.forecast
        query = sa.select(table).where(table.c.study == self.study_name).order_by(table.c.sequence)
        return [
            ForecastRow(**{**_without(row, "study"), "targets": tuple(row["targets"])}) for row in self._rows(query)
        ]

    def get_mark(self, name: str, default: Any = None) -> Any:
        """A value that some reader left here to know how far it has come."""
        table = schema.mark
        rows = self._rows(sa.select(table.c.value).where(table.c.study == self.study_name, table.c.name == name))
        return rows[0]["value"] if rows else default

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


def _run_row(row: dict[str, Any]) -> RunRow:
    return RunRow(**{**_without(row, "study", "position"), "state_ids": tuple(row["state_ids"])})


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}
