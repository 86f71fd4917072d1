"""Runs a function in one forked child per rank, joined into a process group: the edge that stands for a gang."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKSERVER = multiprocessing.get_context("forkserver")
PRELOAD = ["torch", "deepspeed", "deepspeed.runtime.zero.muon.original_muon", "jobs.entry", __name__]


@dataclass(frozen=True)
class FakeSeat:
    """A seat on the only node."""

    rank: int
    world_size: int

    @property
    def local_rank(self) -> int:
        return self.rank

    @property
    def local_world_size(self) -> int:
        return self.world_size


class FolderLink:
    """A link whose values are files, and which asks to leave once the heartbeat has told step `leave_at`."""

    def __init__(self, folder: Path, leave_at: int | None = None) -> None:
        self.folder = folder
        self.leave_at = leave_at
        self.last_step = 0

    def heartbeat(self, step: int) -> None:
        self.last_step = step

    def publish(self, key: str, value: str) -> None:
        part = self.folder / f"{key}.part"
        part.write_text(value)
        part.rename(self.folder / key)

    def lookup(self, key: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (self.folder / key).exists():
                return (self.folder / key).read_text()
            time.sleep(0.002)
        raise TimeoutError(key)

    def should_leave(self) -> bool:
        # The step that is running is the one after the last told.
        return self.leave_at is not None and self.last_step + 1 >= self.leave_at


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """What `function(rank, world_size, link_folder, *arguments)` returned on each rank, each in a child of its own.

    Raises the first exception of a child, with its traceback as a note, and TimeoutError if one does not end in time.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKSERVER.set_forkserver_preload(PRELOAD)
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(world_size):
            receiver, sender = FORKSERVER.Pipe(duplex=False)
            child = FORKSERVER.Process(
                target=_child, args=(sender, function, rank, world_size, Path(folder), arguments)
            )
            child.start()
            sender.close()
            children.append((child, receiver))
        results = []
        try:
            for child, receiver in children:
                if not receiver.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"{function.__name__} did not end in {timeout_s} s")
                results.append(pickle.loads(receiver.recv_bytes()))
                child.join(10)
        finally:
            for child, _ in children:
                if child.is_alive():
                    child.kill()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _child(sender: Any, function: Callable[..., Any], rank: int, world_size: int, folder: Path, arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        result = function(rank, world_size, folder, *arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = error
    # Plain pickle: multiprocessing's own sends tensors as handles to memory that ends with this process.
    sender.send_bytes(pickle.dumps(result))
