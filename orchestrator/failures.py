"""Classes of failure: how an attempt ended, whether it is tried again, and how long to wait before."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.resources import GangReport, RankReport

Outcome = Literal[
    "finished",  # every segment of the chain is accepted
    "stopped",  # asked to leave by a user
    "preempted",  # asked to leave by somebody else (SIGTERM)
    "node_lost",  # a member of the gang, or its node, is gone
    "driver_lost",  # the controller died; what had been committed was adopted by its successor
    "adopted",  # the fence under which a successor adopted it
    "out_of_memory",
    "damaged_state",  # what it should have started from, or what it left, does not verify
    "infrastructure",  # a signal, the network, the disk
    "hang",
    "diverged",
    "bug",
]


@dataclass(frozen=True)
class Policy:
    """What follows an ending. `max_retries` counts failures since the last durable progress; None is without bound."""

    max_retries: int | None
    first_pause_s: float = 0.0
    longest_pause_s: float = 0.0

    def allows(self, failures: int) -> bool:
        """Whether to try again after so many failures without progress."""
        return self.max_retries is None or failures <= self.max_retries

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures: doubled each time."""
        return min(self.first_pause_s * 2.0 ** max(0, failures - 1), self.longest_pause_s)


POLICIES: dict[Outcome, Policy] = {
    "finished": Policy(None),
    "stopped": Policy(None),
    "preempted": Policy(None, 1.0, 60.0),
    # A run that takes its node down each time must end at last.
    "node_lost": Policy(20, 0.5, 60.0),
    "driver_lost": Policy(None),
    "adopted": Policy(None),
    # Each try halves the micro-batch; one of a single sequence cannot be halved (state.next_execution).
    "out_of_memory": Policy(None),
    "damaged_state": Policy(3),
    "infrastructure": Policy(5, 1.0, 300.0),
    "hang": Policy(2, 5.0, 60.0),
    "diverged": Policy(0),
    "bug": Policy(0),
}


def policy_of(outcome: str) -> Policy:
    """The policy for a stored outcome. Raises ValueError for one that this version does not know."""
    for known, policy in POLICIES.items():
        if known == outcome:
            return policy
    raise ValueError(f"outcome {outcome!r} of an attempt is none of {', '.join(POLICIES)}")


# Class names of remote exceptions; anything that is not named here is a bug.
OUT_OF_MEMORY_ERRORS = {"OutOfMemoryError", "MemoryError"}
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "Cannot allocate memory")
DAMAGED_STATE_ERRORS = {"CheckpointError"}
# A state that could not be written because the disk is full is not a damaged one.
SYSTEM_ERROR_TEXTS = ("No space left", "Disk quota", "Read-only file system", "Input/output error", "File too large")
INFRASTRUCTURE_ERRORS = {
    "OSError",
    "BlockingIOError",
    "ConnectionError",
    "ConnectionResetError",
    "ConnectionRefusedError",
    "ConnectionAbortedError",
    "BrokenPipeError",
    "TimeoutError",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
}
# A rank whose neighbour died says so with a RuntimeError of the collective.
PEER_LOST_TEXTS = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "NCCL")


@dataclass(frozen=True)
class Ending:
    """How an attempt ended and what caused it; `error` is the remote traceback."""

    outcome: Outcome
    cause: str
    error: str = ""
    log_path: str = ""


def classify(report: GangReport) -> Ending | None:
    """The class of an attempt of which a rank has failed; None if none has.

    The rank that explains the others comes first: one that was killed, then one with an error of its own, then one that
    only lost its neighbour.
    """
    failed = [rank for rank in report.ranks if rank.exit_code not in (None, 0)]
    if not failed:
        return None
    return _ending_of(min(failed, key=_explains))


def _explains(rank: RankReport) -> tuple[int, int]:
    if rank.exit_code is not None and rank.exit_code < 0:
        return (0, rank.rank)
    return (2 if _lost_its_neighbour(rank) else 1, rank.rank)


def _lost_its_neighbour(rank: RankReport) -> bool:
    return _contains(rank.error, PEER_LOST_TEXTS)


def _ending_of(rank: RankReport) -> Ending:
    outcome, cause = _outcome_of(rank)
    return Ending(outcome, f"rank {rank.rank}: {cause}", rank.error, rank.log_path)


def _outcome_of(rank: RankReport) -> tuple[Outcome, str]:
    assert rank.exit_code is not None, "only a rank that has left has failed"
    last_line = rank.error.strip().splitlines()[-1] if rank.error.strip() else f"exit code {rank.exit_code}"
    if rank.exit_code < 0:
        name = _signal_name(-rank.exit_code)
        return ("preempted" if -rank.exit_code == signal.SIGTERM else "infrastructure"), f"killed by {name}"
    if rank.error_type in OUT_OF_MEMORY_ERRORS:
        return "out_of_memory", last_line
    if rank.error_type == "RuntimeError" and _contains(last_line, OUT_OF_MEMORY_TEXTS):
        return "out_of_memory", last_line
    if rank.error_type in DAMAGED_STATE_ERRORS and not _contains(last_line, SYSTEM_ERROR_TEXTS):
        return "damaged_state", last_line
    if rank.error_type in INFRASTRUCTURE_ERRORS | DAMAGED_STATE_ERRORS or _lost_its_neighbour(rank):
        return "infrastructure", last_line
    if not rank.error_type:
        return "infrastructure", f"left with {last_line} and without a word"
    return "bug", last_line


def _contains(text: str, parts: Sequence[str]) -> bool:
    return any(part in text for part in parts)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
