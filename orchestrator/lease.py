"""Who drives a study: one process at a time, named by host, pid and boot, for a time that it keeps renewing."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import sqlalchemy as sa

from orchestrator import schema
from orchestrator.ledger import Ledger
from orchestrator.reading import LedgerReader
from orchestrator.writing import LeaseLost, milliseconds

logger = logging.getLogger(__name__)

# Another host must wait as long as this after the last renewal; on the same host a dead holder is seen at once.
LEASE_S = 60.0
RENEWALS_PER_LEASE = 6


@dataclass(frozen=True)
class Holder:
    """The process that drives a study. A pid alone is used again by others: its start and the boot make it unique."""

    host: str
    pid: int
    boot_id: str
    process_started_ms: int

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _boot_id(), round(psutil.Process(pid).create_time() * 1000))

    def is_dead(self, seen_from: Holder) -> bool:
        """Whether the process is known to be gone; of another host nothing is known."""
        if self.host != seen_from.host:
            return False
        if self.boot_id != seen_from.boot_id:
            return True
        try:
            process = psutil.Process(self.pid)
            started_ms = round(process.create_time() * 1000)
            # A zombie has ended, whoever has not waited for it.
            return started_ms != self.process_started_ms or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class LeaseHeld(RuntimeError):
    """Another process drives the study: attach to it, or wait."""

    def __init__(self, study_name: str, holder: Holder, expires_in_s: float) -> None:
        self.holder = holder
        self.expires_in_s = expires_in_s
        super().__init__(
            f"study {study_name} is driven by process {holder.pid} on {holder.host} "
            f"(its lease ends in {expires_in_s:.0f} s unless renewed)"
        )


@dataclass(frozen=True)
class Lease:
    """The right to write to a study's ledger, under a token of its own."""

    study_name: str
    token: str
    holder: Holder
    duration_s: float

    @classmethod
    def take(cls, ledger: Ledger, now: float, *, holder: Holder | None = None, duration_s: float = LEASE_S) -> Lease:
        """Take the study's lease where it is free, expired, or held by a process of this host that is dead.

        From then on the ledger's writes check that it is still held. Raises LeaseHeld.
        """
        taker = holder or Holder.me()
        lease = cls(ledger.study_name, uuid.uuid4().hex, taker, duration_s)
        table = schema.lease
        with ledger.transaction() as connection:
            found = connection.execute(sa.select(table).where(table.c.study == ledger.study_name)).one_or_none()
            if found is not None:
                holding = Holder(found.host, found.pid, found.boot_id, found.process_started_ms)
                expires_in_s = found.expires_ms / 1000 - now
                if expires_in_s > 0 and not holding.is_dead(seen_from=taker):
                    raise LeaseHeld(ledger.study_name, holding, expires_in_s)
                connection.execute(table.delete().where(table.c.study == ledger.study_name))
            connection.execute(
                table.insert().values(
                    study=ledger.study_name,
                    token=lease.token,
                    host=taker.host,
                    pid=taker.pid,
                    boot_id=taker.boot_id,
                    process_started_ms=taker.process_started_ms,
                    taken_ms=milliseconds(now),
                    expires_ms=milliseconds(now + duration_s),
                )
            )
        ledger.bind_lease(lease.token)
        return lease

    def renew(self, ledger: Ledger, now: float) -> None:
        """Hold on for another period. Raises LeaseLost if somebody has taken over."""
        table = schema.lease
        with ledger.transaction() as connection:
            renewed = connection.execute(
                table.update()
                .where(table.c.study == self.study_name, table.c.token == self.token)
                .values(expires_ms=milliseconds(now + self.duration_s))
            )
        if renewed.rowcount != 1:
            raise LeaseLost(f"the lease of study {self.study_name} has been taken over: this controller must stop")

    def release(self, ledger: Ledger) -> None:
        """Give the lease back, if it is still ours."""
        table = schema.lease
        ledger.bind_lease("")
        with ledger.transaction() as connection:
            connection.execute(table.delete().where(table.c.study == self.study_name, table.c.token == self.token))


class LeaseKeeper:
    """Renews a lease beside the work, so that a long fit does not lose it. A frozen process renews nothing."""

    def __init__(self, lease: Lease, ledger: Ledger, wall_time: Callable[[], float]) -> None:
        self._lease = lease
        self._ledger = ledger
        self._wall_time = wall_time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._lease.release(self._ledger)

    def _keep(self) -> None:
        while not self._stop.wait(self._lease.duration_s / RENEWALS_PER_LEASE):
            try:
                self._lease.renew(self._ledger, self._wall_time())
            except LeaseLost:
                # The controller's next write raises the same, where it can be acted upon.
                return
            except sa.exc.OperationalError as error:
                # The database is busy or away; there are several tries in the lease's time.
                logger.warning("the lease of study %s was not renewed: %s", self._lease.study_name, error.orig)


def current_holder(ledger: LedgerReader, now: float) -> Holder | None:
    """The process that drives the study at this moment, as far as can be known from here."""
    table = schema.lease
    with ledger.reading() as connection:
        found = connection.execute(sa.select(table).where(table.c.study == ledger.study_name)).one_or_none()
    if found is None or found.expires_ms < milliseconds(now):
        return None
    holder = Holder(found.host, found.pid, found.boot_id, found.process_started_ms)
    return None if holder.is_dead(seen_from=Holder.me()) else holder


def _boot_id() -> str:
    """This boot of this machine, as seen from this set of process ids (containers of one host share the boot)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # No /proc on this system: the second of the boot tells one from another.
        return f"{psutil.boot_time():.0f}"
