"""Joins the ranks of an attempt into one process group, in which they exchange small values and agree."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

STORE_KEY = "torch-store"

# A peer that does not come within this time is lost: the host watches heartbeats and kills sooner.
JOIN_TIMEOUT_S = 180.0
COLLECTIVE_TIMEOUT_S = 180.0
# Rank 0 may write a large state while the others wait for its word.
AGREEMENT_TIMEOUT_S = 1800.0


class Directory(Protocol):
    """Where rank 0 makes a small value known to the others."""

    def publish(self, key: str, value: str) -> None: ...

    def lookup(self, key: str, timeout_s: float) -> str: ...


class Peers:
    """The ranks of one attempt. Use as a context manager: leaving it takes the process group down.

    Every method is collective: all ranks call it in the same order.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @classmethod
    def join(cls, directory: Directory, *, rank: int, world_size: int, on_one_node: bool, backend: str) -> Peers:
        """Form the process group (gloo or nccl). Raises TimeoutError if rank 0 does not publish its store."""
        peers = cls(rank, world_size)
        if world_size == 1:
            store: Any = HashStore()
        else:
            store = _shared_store(directory, rank, world_size, on_one_node)
        if on_one_node:
            # gloo would otherwise look up the machine's own name, which many laptops cannot resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group(
            backend=backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        if world_size > 1:
            # Small values are exchanged on the CPU, whatever the gradients travel on.
            peers._control = dist.new_group(backend="gloo", timeout=timedelta(seconds=AGREEMENT_TIMEOUT_S))
        return peers

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum of each value over all ranks, in double precision."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        result: list[float] = tensor.tolist()
        return result

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a CPU tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self._control)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank. Also a barrier."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    @contextmanager
    def together(
        self, catch: type[Exception] | tuple[type[Exception], ...], error: Callable[[str], Exception]
    ) -> Iterator[None]:
        """Work that may fail on one rank alone: at its end either all ranks go on, or all raise `error`.

        The block must not contain anything collective.
        """
        problem = ""
        cause: Exception | None = None
        try:
            yield
        except catch as raised:
            problem, cause = f"rank {self.rank}: {raised}", raised
        problems = [text for text in self.gather(problem) if text]
        if problems:
            raise error("; ".join(problems)) from cause

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _shared_store(directory: Directory, rank: int, world_size: int, on_one_node: bool) -> Any:
    timeout = timedelta(seconds=JOIN_TIMEOUT_S)
    if rank != 0:
        host, _, port = directory.lookup(STORE_KEY, JOIN_TIMEOUT_S).rpartition(":")
        return TCPStore(host, int(port), world_size, is_master=False, timeout=timeout)
    # The socket is bound before its port is told, so no other process can take the port in between.
    host = "127.0.0.1" if on_one_node else _own_address()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )
    directory.publish(STORE_KEY, f"{host}:{port}")
    return store


def _own_address() -> str:
    """Address of the interface that leads off this machine; a datagram socket that connects sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        return address
