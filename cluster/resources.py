"""What is asked of a cluster and what it has: plain values that cross to it, and the two protocols it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class GangLost(RuntimeError):
    """A member of the gang, or its node, is gone: the whole gang must be closed."""


class ClusterUnreachable(RuntimeError):
    """The cluster does not answer at its address."""


@dataclass(frozen=True)
class GangRequest:
    """Worker processes that execute together: one placement group, one process group.

    `entry` is "module:function", called in every rank's forked child as entry(payload, seat, link).
    `devices_per_rank` counts GPUs (0 on CPUs; below 1 shares one device), `cpus_per_rank` cores.
    """

    gang_id: str
    world_size: int
    entry: str
    preload: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    cpus_per_rank: float = 1.0
    devices_per_rank: float = 0.0
    memory_bytes_per_rank: int = 0


@dataclass(frozen=True)
class Node:
    """One machine of the cluster, with what is free on it for us."""

    node_id: str
    address: str
    total_cpus: float
    total_devices: float
    free_cpus: float
    free_devices: float
    device_type: str = "cpu"


@dataclass(frozen=True)
class Inventory:
    """What the cluster has at this moment."""

    nodes: tuple[Node, ...]

    @property
    def total_cpus(self) -> float:
        return sum(node.total_cpus for node in self.nodes)

    @property
    def total_devices(self) -> float:
        return sum(node.total_devices for node in self.nodes)


@dataclass(frozen=True)
class Seat:
    """Where a rank sits: what `entry` needs to join its process group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_id: str
    attempt_id: str


class Link(Protocol):
    """A rank's line to its host. Never raises because the other side is slow; the host may be gone."""

    def heartbeat(self, step: int) -> None:
        """Tell progress. Cheap: may be called at every step."""
        ...

    def publish(self, key: str, value: str) -> None:
        """Make a small value (the port of the store) known to all ranks of this attempt."""
        ...

    def lookup(self, key: str, timeout_s: float) -> str:
        """Wait for a published value. Raises TimeoutError."""
        ...

    def should_leave(self) -> bool:
        """Whether this attempt was asked to checkpoint now and leave."""
        ...


@dataclass(frozen=True)
class RankReport:
    """What is known of one rank of an attempt.

    `exit_code` is None while it runs, 0 after `entry` returned, negative for a signal. `error` is the remote traceback
    of an exception, `error_type` its class name (OutOfMemoryError is told from a bug by it).
    """

    rank: int
    pid: int
    node_id: str
    step: int
    seconds_since_progress: float
    exit_code: int | None
    error: str = ""
    error_type: str = ""
    log_path: str = ""


@dataclass(frozen=True)
class GangReport:
    """Answer to one poll: rank 0's new journal text (whole lines), where to read next, and every rank."""

    attempt_id: str
    journal_text: str
    next_offset: int
    ranks: tuple[RankReport, ...]

    @property
    def finished(self) -> bool:
        """Whether every rank has left, with or without success."""
        return bool(self.ranks) and all(rank.exit_code is not None for rank in self.ranks)


class Gang(Protocol):
    """An open gang: one attempt at a time."""

    gang_id: str

    def assign(self, attempt_id: str, payload: dict[str, Any], journal_path: str, log_dir: str) -> None:
        """Fork one child per rank and start `entry` in it. Returns at once. Raises GangLost.

        `journal_path` is the file that rank 0 writes and `poll` reads; `log_dir` receives `rank-0.log`, ...: standard
        output and errors of each rank. Both outlive the node when they lie on shared storage.
        """
        ...

    def poll(self, offset: int) -> GangReport:
        """New journal text of the current attempt from `offset` on, and the ranks' state. Raises GangLost."""
        ...

    def leave(self) -> None:
        """Ask the current attempt to checkpoint now and leave (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End the current attempt at once (SIGKILL) on all ranks; the gang stays open for the next one."""
        ...

    def close(self) -> None:
        """Give everything back. Never raises for a gang that is already gone."""
        ...


class Launcher(Protocol):
    """Opens gangs. `inline` and `ray` behave alike; the simulator is a third."""

    @property
    def kind(self) -> str:
        """inline, ray, or the name of a simulated cluster."""
        ...

    def inventory(self) -> Inventory:
        """What there is, and what is free. Raises ClusterUnreachable."""
        ...

    def open(self, request: GangRequest) -> Gang:
        """Place a gang; returns when its hosts are ready. Raises ClusterUnreachable, or ValueError if it never fits."""
        ...

    def close(self) -> None:
        """Close all gangs and let go of the cluster."""
        ...
