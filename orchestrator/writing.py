"""Writes to the ledger: transactions under the lease, and status changes by compare-and-set, checked for legality."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from jobs.journal import JournalLine
from orchestrator import schema
from orchestrator.database import LedgerError, write_transaction
from orchestrator.reading import LedgerReader

# Which status may follow which. An accepted state waits again only when its files are found damaged (`lose_state`), a
# failed one only when a user asks.
SEGMENT_TRANSITIONS = {
    "waiting": {"open", "failed", "diverged"},
    "open": {"open", "waiting", "accepted", "failed", "diverged"},
    "accepted": {"waiting"},
    "failed": {"waiting"},
    "diverged": {"waiting"},
}
RUN_TRANSITIONS = {
    "waiting": {"finished", "failed", "diverged"},
    "finished": set[str](),
    "failed": {"waiting"},
    "diverged": {"waiting"},
}
OPEN = "open"


class LeaseLost(LedgerError):
    """Another controller has taken the study over: this one must stop writing."""


class LedgerWriter(LedgerReader):
    """The ledger of one study, for its controller: what every transition is made of."""

    def __init__(self, engine: Engine, study_name: str) -> None:
        super().__init__(engine, study_name)
        self._current = threading.local()
        self._lease_token = ""

    def bind_lease(self, token: str) -> None:
        """From now on every write checks, in its own transaction, that the lease is still held under this token."""
        self._lease_token = token

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All writes of this thread inside the block become visible together, or not at all. Raises LeaseLost."""
        current: Connection | None = getattr(self._current, "connection", None)
        if current is not None:
            yield current
            return
        with write_transaction(self._engine) as connection:
            self._check_lease(connection)
            self._current.connection = connection
            try:
                yield connection
            finally:
                self._current.connection = None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        # A reader inside a transaction sees what the transaction has written so far.
        current: Connection | None = getattr(self._current, "connection", None)
        if current is not None:
            yield current
            return
        with super().reading() as connection:
            yield connection

    def _check_lease(self, connection: Connection) -> None:
        if not self._lease_token:
            return
        table = schema.lease
        row = connection.execute(
            sa.select(table.c.token, table.c.host, table.c.pid).where(table.c.study == self.study_name)
        ).one_or_none()
        if row is None or row.token != self._lease_token:
            holder = f"process {row.pid} on {row.host}" if row else "nobody"
            raise LeaseLost(f"study {self.study_name} is now held by {holder}: this controller must stop")

    def record_points(self, curve_id: str, lines: Iterable[JournalLine]) -> None:
        """Store the numbers of `metrics` lines; the first of each (curve, key, step) wins."""
        rows = [
            {
                "study": self.study_name,
                "curve_id": curve_id,
                "key": key,
                "step": line.step,
                "tokens": line.tokens,
                "value": float(value),
                "time_ms": line.time_ms,
            }
            for line in lines
            if line.kind == "metrics"
            for key, value in line.data.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        if rows:
            with self.transaction() as connection:
                self.insert_once(connection, schema.point, rows)

    def append_event(self, kind: str, content: Mapping[str, Any], now: float) -> None:
        """Write down that something happened."""
        with self.transaction() as connection:
            connection.execute(
                schema.event.insert().values(
                    study=self.study_name, kind=kind, time_ms=milliseconds(now), content=dict(content)
                )
            )

    def set_mark(self, name: str, value: Any) -> None:
        """Leave a value under a name, replacing the one before."""
        table = schema.mark
        with self.transaction() as connection:
            connection.execute(table.delete().where(table.c.study == self.study_name, table.c.name == name))
            connection.execute(table.insert().values(study=self.study_name, name=name, value=value))

    def move_segment(self, connection: Connection, state_id: str, status: str, now: float, **values: Any) -> None:
        """Change a segment's status. Raises LedgerError naming from and to where that is not allowed."""
        table = schema.segment
        allowed = [before for before, after in SEGMENT_TRANSITIONS.items() if status in after]
        moved = connection.execute(
            table.update()
            .where(table.c.study == self.study_name, table.c.state_id == state_id, table.c.status.in_(allowed))
            .values(status=status, changed_ms=milliseconds(now), **values)
        )
        if moved.rowcount != 1:
            found = connection.execute(
                sa.select(table.c.name, table.c.status).where(
                    table.c.study == self.study_name, table.c.state_id == state_id
                )
            ).one_or_none()
            if found is None:
                raise LedgerError(f"study {self.study_name} has no state {state_id}")
            raise LedgerError(f"segment {found.name}: {found.status} -> {status} is not allowed")

    def move_run(self, connection: Connection, name: str, status: str, reason: str, now: float) -> None:
        """Change a run's status. Raises LedgerError naming from and to where that is not allowed."""
        table = schema.run
        before = self.run(name).status
        if status not in RUN_TRANSITIONS[before]:
            raise LedgerError(f"run {name}: {before} -> {status} is not allowed")
        connection.execute(
            table.update()
            .where(table.c.study == self.study_name, table.c.name == name, table.c.status == before)
            .values(status=status, reason=reason, changed_ms=milliseconds(now))
        )

    def insert_once(self, connection: Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows; one whose key is there already is passed over."""
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(table).on_conflict_do_nothing(), rows)


def milliseconds(now: float) -> int:
    """Wall-clock seconds as the ledger keeps them."""
    return round(now * 1000)
