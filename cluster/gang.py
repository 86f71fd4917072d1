"""A gang over the hosts of one or several nodes: sends each order to all, merges their answers, falls as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cluster.host import HostReport
from cluster.resources import GangLost, GangReport, Seat

# How long a host may take to answer before it counts as frozen and its gang as lost. Hosts answer in milliseconds and
# bound what they wait for at 10 s (Host.kill), so longer than that.
REPLY_TIMEOUT_S = 15.0

# Waits at most so many seconds for the answer. Raises GangLost if there is none, and whatever the method raised.
Reply = Callable[[float], Any]


class HostHandle(Protocol):
    """A `Host` in a process of its own: a child process of this one, or a Ray actor."""

    node_id: str

    def send(self, method: str, *arguments: Any) -> Reply:
        """Call a method of the Host; does not wait. Raises GangLost if the process is known to be gone."""
        ...

    def close(self) -> None:
        """End the process and all its ranks. Bounded in time; never raises for one that is gone."""
        ...


class HostedGang:
    """The `Gang` of every launcher that has hosts. Its methods may be called from several threads.

    Ranks are numbered host by host. Keys that ranks publish are known at once on their own node; to other nodes they
    travel with the next `poll`. After a GangLost all is closed, and every further call but `close` raises it again.
    """

    def __init__(
        self,
        gang_id: str,
        hosts: Sequence[HostHandle],
        ranks_per_host: Sequence[int],
        release: Callable[[], None],
        reply_timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        """`release` gives back what the gang was placed on; it is called once."""
        assert len(hosts) == len(ranks_per_host) > 0
        self.gang_id = gang_id
        self._hosts = tuple(hosts)
        self._ranks_per_host = tuple(ranks_per_host)
        self._release = release
        self._reply_timeout_s = reply_timeout_s
        self._lock = threading.RLock()
        self._closed = False
        self._lost_because = ""
        self._relayed: dict[str, str] = {}

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Where it sits, host by host."""
        return tuple(host.node_id for host in self._hosts)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Returns when every host's fork server is up. Raises GangLost, ImportError."""
        self._ask_each("ready", [() for _ in self._hosts], timeout_s)

    def assign(self, attempt_id: str, payload: dict[str, Any], journal_path: str, log_dir: str) -> None:
        """Fork one child per rank. Raises GangLost; RuntimeError while an attempt is running; OSError for `log_dir`."""
        self._relayed = {}
        orders = [(attempt_id, payload, seats, journal_path, log_dir) for seats in self._seats(attempt_id)]
        try:
            self._ask_each("assign", orders)
        except OSError:
            # Hosts that could start their ranks have: an attempt starts whole or not at all.
            self.kill()
            raise

    def poll(self, offset: int) -> GangReport:
        """New journal text from `offset` on, and all ranks. Raises GangLost, after 15 s if a host has frozen."""
        reports: list[HostReport] = self._ask_each("poll", [(offset,) for _ in self._hosts])
        self._relay(reports)
        first = reports[0]
        ranks = tuple(rank for report in reports for rank in report.ranks)
        return GangReport(first.attempt_id, first.journal_text, first.next_offset, ranks)

    def leave(self) -> None:
        """Ask the attempt to checkpoint now and leave."""
        self._ask_each("leave", [() for _ in self._hosts])

    def kill(self) -> None:
        """SIGKILL the attempt on all hosts; returns when its ranks are gone. Raises GangLost."""
        self._ask_each("kill", [() for _ in self._hosts])

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for host in self._hosts:
                host.close()
            self._release()

    def _seats(self, attempt_id: str) -> list[tuple[Seat, ...]]:
        world_size = sum(self._ranks_per_host)
        seats = []
        first_rank = 0
        for host, size in zip(self._hosts, self._ranks_per_host, strict=True):
            seats.append(
                tuple(
                    Seat(first_rank + local_rank, world_size, local_rank, size, host.node_id, attempt_id)
                    for local_rank in range(size)
                )
            )
            first_rank += size
        return seats

    def _relay(self, reports: Sequence[HostReport]) -> None:
        if len(self._hosts) == 1:
            return
        published = {key: value for report in reports for key, value in report.published.items()}
        news = {key: value for key, value in published.items() if self._relayed.get(key) != value}
        if news:
            self._relayed |= news
            self._ask_each("deliver", [(reports[0].attempt_id, news) for _ in self._hosts])

    def _ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]], timeout_s: float = 0.0) -> list[Any]:
        """The answers of all hosts, asked side by side. A host that is lost takes the gang down with it."""
        with self._lock:
            if self._closed:
                raise GangLost(f"gang {self.gang_id}: {self._lost_because or 'it has been closed'}")
            answers: list[Any] = []
            errors: list[Exception] = []
            try:
                replies = [host.send(method, *each) for host, each in zip(self._hosts, arguments, strict=True)]
                for reply in replies:
                    # Every host's answer is taken before any error is raised, or the next call would find it.
                    try:
                        answers.append(reply(timeout_s or self._reply_timeout_s))
                    except GangLost:
                        raise
                    except Exception as error:
                        errors.append(error)
            except GangLost as error:
                self._lost_because = str(error)
                self.close()
                raise GangLost(f"gang {self.gang_id}: {error}") from error
            if errors:
                raise errors[0]
            return answers
