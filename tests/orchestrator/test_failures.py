"""Classes of failure: what ranks report, what it means, and how often it is tried again."""

from __future__ import annotations

import pytest

from cluster.resources import GangReport, RankReport
from jobs.spec import Execution
from orchestrator.failures import POLICIES, classify, policy_of
from orchestrator.state import halved_micro_batch
from orchestrator.watchdog import SHORTEST_LIMIT_S, START_LIMIT_S, ProgressWatch


def rank(number: int, exit_code: int | None, error: str = "", error_type: str = "") -> RankReport:
    return RankReport(number, 1000 + number, "node", 7, 0.0, exit_code, error, error_type, f"rank-{number}.log")


def report(*ranks: RankReport) -> GangReport:
    return GangReport("an attempt", "", 0, ranks)


PEER_GONE = ("Traceback\nRuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:1", "RuntimeError")
DISK_FULL = "Traceback\njobs.checkpoints.CheckpointError: rank 0: [Errno 28] No space left on device"

CASES = {
    "all running": ([rank(0, None), rank(1, None)], None),
    "all left in peace": ([rank(0, 0), rank(1, 0)], None),
    "kill -9 of one rank explains the others": (
        [rank(0, 1, *PEER_GONE), rank(1, -9)],
        ("infrastructure", "rank 1: killed by SIGKILL", "rank-1.log"),
    ),
    "a bug of one rank explains the others": (
        [rank(0, 1, *PEER_GONE), rank(1, 1, "Traceback\nKeyError: 'x'", "KeyError")],
        ("bug", "rank 1: KeyError: 'x'", "rank-1.log"),
    ),
    "only the neighbour's word is left": (
        [rank(0, 1, *PEER_GONE), rank(1, None)],
        ("infrastructure", f"rank 0: {PEER_GONE[0].splitlines()[-1]}", "rank-0.log"),
    ),
    "SIGTERM from outside": ([rank(0, -15)], ("preempted", "rank 0: killed by SIGTERM", "rank-0.log")),
    "a segmentation fault": ([rank(0, -11)], ("infrastructure", "rank 0: killed by SIGSEGV", "rank-0.log")),
    "out of device memory": (
        [rank(0, 1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory", "OutOfMemoryError")],
        ("out_of_memory", "rank 0: torch.OutOfMemoryError: CUDA out of memory", "rank-0.log"),
    ),
    "out of host memory": (
        [rank(0, 1, "Traceback\nRuntimeError: DefaultCPUAllocator: can't allocate memory", "RuntimeError")],
        ("out_of_memory", "rank 0: RuntimeError: DefaultCPUAllocator: can't allocate memory", "rank-0.log"),
    ),
    "a damaged state": (
        [rank(0, 1, "Traceback\njobs.checkpoints.CheckpointError: expected sha256 a, found b", "CheckpointError")],
        (
            "damaged_state",
            "rank 0: jobs.checkpoints.CheckpointError: expected sha256 a, found b",
            "rank-0.log",
        ),
    ),
    "a full disk while saving one": (
        [rank(0, 1, DISK_FULL, "CheckpointError")],
        ("infrastructure", f"rank 0: {DISK_FULL.splitlines()[-1]}", "rank-0.log"),
    ),
    "a peer that never came": (
        [rank(0, 1, "Traceback\nTimeoutError: lookup('torch-store')", "TimeoutError")],
        ("infrastructure", "rank 0: TimeoutError: lookup('torch-store')", "rank-0.log"),
    ),
    "an exit without a word": (
        [rank(0, 3)],
        ("infrastructure", "rank 0: left with exit code 3 and without a word", "rank-0.log"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_classify(case: str) -> None:
    ranks, expected = CASES[case]
    ending = classify(report(*ranks))
    assert (ending and (ending.outcome, ending.cause, ending.log_path)) == expected


def test_bugs_and_divergence_are_not_retried_and_preemption_always_is() -> None:
    assert [POLICIES[name].allows(1) for name in ("bug", "diverged", "preempted", "node_lost")] == [
        False,
        False,
        True,
        True,
    ]
    assert POLICIES["preempted"].allows(10_000)


def test_infrastructure_backs_off_doubling_and_gives_up() -> None:
    policy = POLICIES["infrastructure"]
    assert [policy.pause_s(failures) for failures in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert policy.pause_s(100) == policy.longest_pause_s
    assert (policy.allows(5), policy.allows(6)) == (True, False)


def test_outcome_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome 'eaten' of an attempt is none of finished, stopped"):
        policy_of("eaten")


@pytest.mark.parametrize(
    ("world_size", "micro_batch", "batch", "expected"),
    [(1, 8, 8, 4), (1, 6, 12, 3), (2, 3, 12, 1), (1, 1, 8, None), (4, 2, 8, 1), (2, 5, 10, 1)],
)
def test_halved_micro_batch_cuts_the_same_batch_evenly(
    world_size: int, micro_batch: int, batch: int, expected: int | None
) -> None:
    execution = halved_micro_batch(Execution(world_size=world_size, micro_batch_sequences=micro_batch), batch)
    assert (execution and execution.micro_batch_sequences) == expected
    if execution is not None:
        execution.accumulation_steps(batch)


def test_watch_is_patient_before_the_first_step_and_then_knows_the_pace() -> None:
    watch = ProgressWatch()
    assert watch.limit_s == START_LIMIT_S
    for step in range(1, 10):
        watch.see(step, 100.0 + 0.1 * step)
    assert watch.limit_s == SHORTEST_LIMIT_S
    for step in range(10, 60):
        watch.see(step, 100.0 + 30.0 * step)
    assert watch.limit_s == pytest.approx(20 * 30.0)


def test_repeated_heartbeat_of_one_step_is_no_progress() -> None:
    watch = ProgressWatch()
    for now in (1.0, 2.0, 3.0):
        watch.see(5, now)
    assert watch.limit_s == START_LIMIT_S
