"""Where a rank's process begins: takes its seat in the gang, opens what the attempt needs, and runs it."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any, Protocol

import torch

from jobs.corpus import open_corpus
from jobs.engine import Engine
from jobs.journal import JournalWriter
from jobs.peers import Peers
from jobs.spec import ChainPayload, Execution
from jobs.storage import AttemptPaths
from jobs.training import Attempt


class Seat(Protocol):
    """Which rank this process is, and where."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def local_rank(self) -> int: ...

    @property
    def local_world_size(self) -> int: ...


class Link(Protocol):
    """This rank's line to its host."""

    def heartbeat(self, step: int) -> None: ...

    def publish(self, key: str, value: str) -> None: ...

    def lookup(self, key: str, timeout_s: float) -> str: ...

    def should_leave(self) -> bool: ...


def main(payload: dict[str, Any], seat: Seat, link: Link) -> None:
    """Execute one attempt on this rank; returns when it finished, diverged or was asked to leave.

    How it ended is the last line of the journal. Raises what the attempt cannot go on from (CheckpointError,
    torch.OutOfMemoryError, bugs): the host reports it with its traceback.
    """
    # A forked child shares its parent's objects until somebody writes to them, and a garbage collection writes to all.
    gc.freeze()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    chain = ChainPayload.model_validate(payload)
    if seat.world_size != chain.execution.world_size:
        raise ValueError(f"the attempt is for {chain.execution.world_size} ranks, but the gang has {seat.world_size}")
    device = _take_device(chain.execution, seat.local_rank)
    corpus = open_corpus(Path(chain.corpus_dir))
    if corpus.digest != chain.spec.corpus_digest:
        raise ValueError(f"{chain.corpus_dir}: expected the corpus {chain.spec.corpus_digest}, found {corpus.digest}")
    journal = _open_journal(AttemptPaths(Path(chain.attempt_dir))) if seat.rank == 0 else None
    with Peers.join(
        link,
        rank=seat.rank,
        world_size=seat.world_size,
        on_one_node=seat.local_world_size == seat.world_size,
        backend="nccl" if device.type == "cuda" else "gloo",
    ) as peers:
        engine = Engine(chain.spec, chain.execution, device)
        try:
            Attempt(chain, engine, corpus, peers, link, journal).run()
        finally:
            engine.close()
            if journal is not None:
                journal.close()


def _take_device(execution: Execution, local_rank: int) -> torch.device:
    torch.set_num_threads(execution.threads_per_rank)
    if execution.device == "cpu":
        # Moments of rare tokens decay below 1e-38, where the processor falls back to a path 100 times slower.
        torch.set_flush_denormal(True)
        return torch.device("cpu")
    # Identical execution is bitwise identical; CPU kernels are so without being asked.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A rank that was given one device sees it alone, as number 0, whatever its place on the node.
    index = local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _open_journal(paths: AttemptPaths) -> JournalWriter:
    if paths.journal.exists() and paths.journal.stat().st_size:
        raise ValueError(f"{paths.journal}: another attempt wrote here. Each attempt needs a folder of its own")
    return JournalWriter(paths.journal)
