"""What every launcher's gangs do, on this machine's processes and on a real Ray alike."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.launchers.inline import InlineLauncher
from cluster.launchers.ray import RayLauncher
from cluster.resources import Gang, GangLost, Launcher
from tests.cluster.gangs import (
    Attempts,
    follow,
    gang_request,
    host_of,
    is_gone,
    socket_folders,
    wait_for,
    wait_until_working,
)

REPLY_TIMEOUT_S = 1.0


@pytest.fixture(scope="module", params=["inline", "ray"])
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        made: Launcher
        made = InlineLauncher(REPLY_TIMEOUT_S) if request.param == "inline" else RayLauncher(None, REPLY_TIMEOUT_S)
        yield made
        made.close()


@pytest.fixture(scope="module")
def warm(launcher: Launcher) -> Iterator[Gang]:
    """A gang of two ranks that the tests of its users share, as runs of a study do."""
    gang = launcher.open(gang_request("warm", world_size=2, cpus_per_rank=0.5))
    yield gang
    gang.close()


@pytest.fixture
def fresh(launcher: Launcher) -> Iterator[Gang]:
    """A gang that a test may destroy."""
    gang = launcher.open(gang_request("fresh", world_size=2, cpus_per_rank=0.5))
    yield gang
    gang.close()


def test_an_attempt_ends_with_its_journal_its_steps_and_its_logs(warm: Gang, attempts: Attempts) -> None:
    folder = attempts.start(warm, "finish")
    ended = follow(warm)
    assert ended.exit_codes == [0, 0]
    assert ended.journal == "first\nsecond\n"
    assert [rank.step for rank in ended.report.ranks] == [7, 7]
    for rank in ended.report.ranks:
        assert rank.log_path == str(folder / "logs" / f"rank-{rank.rank}.log")
        assert Path(rank.log_path).read_text() == f"rank {rank.rank} of 2 prints\nand complains\n"


def test_a_rank_finds_its_seat_and_environment_and_no_trace_of_its_host(
    launcher: Launcher, warm: Gang, attempts: Attempts
) -> None:
    facts = json.loads(attempts.finish(warm, "tell").journal)
    node = launcher.inventory().nodes[0].node_id
    assert facts["seat"] == {
        "rank": 0, "world_size": 2, "local_rank": 0, "local_world_size": 2, "node_id": node, "attempt_id": "a1",
    }  # fmt: skip
    expected = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    assert {name: facts["environment"].get(name) for name in expected} == expected
    assert facts["environment"]["CUDA_VISIBLE_DEVICES"] == "", "ranks without devices see none"
    # Neither Ray nor the main script of the host was imported again in the child.
    assert facts["modules"] == []
    assert "built-in" in facts["main"]


def test_ranks_meet_through_a_published_key(warm: Gang, attempts: Attempts) -> None:
    ended = attempts.finish(warm, "meet")
    assert (ended.exit_codes, ended.journal) == ([0, 0], "1\n")


def test_a_lookup_of_what_nobody_publishes_times_out(warm: Gang, attempts: Attempts) -> None:
    ended = attempts.finish(warm, "wait_in_vain")
    assert ended.report.ranks[0].error_type == "TimeoutError"
    assert "lookup('never'): no rank published it within 0.05 s" in ended.report.ranks[0].error


def test_a_value_that_is_too_large_to_publish_is_refused(warm: Gang, attempts: Attempts) -> None:
    error = attempts.finish(warm, "publish_much").report.ranks[0].error
    assert "publish('book'): 5004 characters exceed 4096. Write large values to shared storage" in error


def test_an_exception_arrives_with_its_type_and_traceback_and_is_in_the_log(warm: Gang, attempts: Attempts) -> None:
    ended = attempts.finish(warm, "raise")
    failed, other = ended.report.ranks
    assert (failed.exit_code, failed.error_type) == (1, "ZeroDivisionError")
    assert 'raise ZeroDivisionError("the batch of rank 0 is empty")' in failed.error
    assert Path(failed.log_path).read_text() == failed.error
    assert (other.exit_code, other.error_type, other.error) == (0, "", "")


def test_a_killed_rank_is_seen_within_a_second_while_the_other_works_on(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    victim = wait_until_working(warm).ranks[1].pid
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: warm.poll(0).ranks[1].exit_code is not None)
    assert time.monotonic() - killed_at < 1.0
    report = warm.poll(0)
    assert [rank.exit_code for rank in report.ranks] == [None, -signal.SIGKILL]
    assert not report.finished
    warm.kill()
    assert follow(warm).exit_codes == [-signal.SIGKILL, -signal.SIGKILL]


def test_a_segmentation_fault_leaves_its_stack_in_the_log(warm: Gang, attempts: Attempts) -> None:
    ended = attempts.finish(warm, "segfault")
    assert ended.exit_codes == [-signal.SIGSEGV] * 2
    log = Path(ended.report.ranks[0].log_path).read_text()
    assert "Segmentation fault" in log
    assert "act_segfault" in log


def test_leave_lets_ranks_finish_what_they_do(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    wait_until_working(warm)
    warm.leave()
    ended = follow(warm)
    assert ended.exit_codes == [0, 0]
    assert ended.journal == f"left at step {ended.report.ranks[0].step}\n"


def test_leave_reaches_a_rank_that_has_only_just_been_forked(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    warm.leave()
    assert follow(warm).exit_codes == [0, 0]


def test_sigterm_from_outside_means_leave_and_sigint_nothing(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    pids = [rank.pid for rank in wait_until_working(warm).ranks]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert not any(rank.exit_code is not None for rank in warm.poll(0).ranks)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    ended = follow(warm)
    assert ended.exit_codes == [0, 0]
    assert ended.journal.startswith("left at step ")


def test_a_hang_ages_and_can_be_killed_and_its_stack_is_kept(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "hang")
    wait_until_working(warm)
    wait_for(lambda: warm.poll(0).ranks[0].seconds_since_progress > 0.3)
    began = time.monotonic()
    warm.kill()
    ended = follow(warm)
    assert time.monotonic() - began < 1.0
    assert ended.exit_codes == [-signal.SIGKILL] * 2
    assert "in act_hang" in Path(ended.report.ranks[0].log_path).read_text()


def test_kill_ends_what_a_rank_has_started(warm: Gang, attempts: Attempts) -> None:
    folder = attempts.start(warm, "bear")
    wait_until_working(warm)
    started = int((folder / "journal").read_text())
    assert not is_gone(started)
    warm.kill()
    wait_for(lambda: is_gone(started))


def test_the_journal_is_read_by_whole_lines_while_it_grows(warm: Gang, attempts: Attempts) -> None:
    folder = attempts.start(warm, "work")
    wait_until_working(warm)
    journal = folder / "journal"
    assert warm.poll(0).journal_text == "", "a journal that does not exist yet is an empty one"
    journal.write_text("one\ntw")
    report = warm.poll(0)
    assert (report.journal_text, report.next_offset) == ("one\n", 4)
    journal.write_text("one\ntwo é\n")
    report = warm.poll(report.next_offset)
    assert (report.journal_text, report.next_offset) == ("two é\n", 11)
    warm.kill()


def test_a_second_attempt_is_refused_while_one_runs(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    with pytest.raises(RuntimeError, match=r"ranks \[0, 1\] of attempt a1 are still running .* Kill it"):
        attempts.start(warm, "finish")
    warm.kill()
    assert attempts.finish(warm, "finish").exit_codes == [0, 0]


def test_a_log_folder_that_cannot_be_made_is_the_callers_error_and_the_gang_lives(
    warm: Gang, attempts: Attempts, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        warm.assign("a0", {"act": "finish"}, str(tmp_path / "journal"), str(tmp_path / "file" / "logs"))
    assert attempts.finish(warm, "finish").exit_codes == [0, 0]


def test_a_hundred_attempts_leave_nothing_behind(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    host = host_of(wait_until_working(warm).ranks[0].pid)
    warm.kill()
    attempts.finish(warm, "finish")

    def held() -> tuple[int, int]:
        return host.num_fds(), len(host.children(recursive=True))

    wait_for(lambda: not psutil.Process(host.children()[-1].pid).children())
    descriptors, processes = held()
    began = time.monotonic()
    for _ in range(100):
        assert attempts.finish(warm, "finish").exit_codes == [0, 0]
    wall_s = time.monotonic() - began
    # Ray opens and closes connections of its own.
    assert host.num_fds() <= descriptors + 5
    assert len(host.children(recursive=True)) == processes
    # A fork per rank and three calls: 0.02 to 0.1 s on two idle cores.
    assert wall_s / 100 < 0.5


def test_a_killed_host_loses_the_gang_and_its_ranks_and_gives_all_back(
    launcher: Launcher, fresh: Gang, attempts: Attempts
) -> None:
    free = launcher.inventory().nodes[0].free_cpus
    attempts.start(fresh, "hang")
    pids = [rank.pid for rank in wait_until_working(fresh).ranks]
    host_of(pids[0]).kill()
    with pytest.raises(GangLost, match=r"gang fresh: its host .* is gone"):
        fresh.poll(0)
    # The ranks hold the interpreter's lock and see nothing: the fork server's leash ends them.
    wait_for(lambda: all(is_gone(pid) for pid in pids), timeout_s=2.0)
    wait_for(lambda: launcher.inventory().nodes[0].free_cpus == free + 1.0)
    with pytest.raises(GangLost, match="is gone"):
        fresh.assign("a9", {}, "", "")
    fresh.close()


def test_a_journal_that_cannot_be_read_loses_the_gang(fresh: Gang, attempts: Attempts) -> None:
    folder = attempts.start(fresh, "work")
    wait_until_working(fresh)
    (folder / "journal").mkdir()
    with pytest.raises(GangLost, match=r"cannot read the attempt's journal: .*Is a directory"):
        fresh.poll(0)


def test_a_frozen_host_loses_the_gang_in_bounded_time(fresh: Gang, attempts: Attempts) -> None:
    attempts.start(fresh, "work")
    pids = [rank.pid for rank in wait_until_working(fresh).ranks]
    host_of(pids[0]).suspend()
    began = time.monotonic()
    with pytest.raises(GangLost, match="has not answered for 1 s: frozen"):
        fresh.poll(0)
    # A second for the answer, three for an orderly end, then it is killed.
    assert time.monotonic() - began < 8.0
    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_signals_to_the_whole_job_do_not_end_the_fork_server(warm: Gang, attempts: Attempts) -> None:
    attempts.start(warm, "work")
    fork_server = psutil.Process(wait_until_working(warm).ranks[0].pid).parent()
    assert fork_server is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        fork_server.send_signal(number)
    time.sleep(0.2)
    assert not any(rank.exit_code is not None for rank in warm.poll(0).ranks)
    warm.kill()


def test_close_ends_all_processes_and_can_be_repeated(launcher: Launcher, fresh: Gang, attempts: Attempts) -> None:
    attempts.start(fresh, "work")
    ranks = wait_until_working(fresh).ranks
    host = host_of(ranks[0].pid)
    processes = [host, *host.children(recursive=True)]
    fresh.close()
    fresh.close()
    wait_for(lambda: all(is_gone(process.pid) for process in processes))
    assert socket_folders(host.pid) == []
    with pytest.raises(GangLost, match="gang fresh: it has been closed"):
        fresh.poll(0)


def test_a_gang_that_never_fits_is_refused_at_once(launcher: Launcher) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"3 ranks with 9e\+06 cores .* no node of this cluster|a rank needs 9e\+06"):
        launcher.open(gang_request("vast", world_size=3, cpus_per_rank=9e6))
    assert time.monotonic() - began < 1.0


def test_a_gang_that_does_not_fit_beside_another_is_lost_and_holds_nothing(launcher: Launcher, warm: Gang) -> None:
    before = launcher.inventory()
    with pytest.raises(GangLost, match="gang second"):
        launcher.open(gang_request("second", cpus_per_rank=before.total_cpus))
    assert launcher.inventory().nodes[0].free_cpus == before.nodes[0].free_cpus


def test_a_preload_that_cannot_be_imported_is_named_with_its_traceback(launcher: Launcher) -> None:
    with pytest.raises(ImportError) as caught:
        launcher.open(gang_request("broken", preload=("no_such_module",), cpus_per_rank=0.5))
    assert "preload 'no_such_module'" in str(caught.value)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in str(caught.value)


def test_a_preload_that_breaks_the_fork_server_is_shown(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "explosive.py").write_text("raise ArithmeticError('at import')\n")
    request = gang_request(
        "broken", preload=("explosive",), cpus_per_rank=0.5, environment={"PYTHONPATH": str(tmp_path)}
    )
    with pytest.raises(ImportError, match="ArithmeticError: at import"):
        launcher.open(request)


def test_an_entry_that_does_not_exist_is_named(launcher: Launcher) -> None:
    with pytest.raises(ImportError, match="has no attribute 'walk'"):
        launcher.open(gang_request("broken", entry="tests.cluster.sample_entries:walk", cpus_per_rank=0.5))


def test_ranks_start_fast_with_torch_preloaded(launcher: Launcher, attempts: Attempts) -> None:
    gang = launcher.open(gang_request("torch", preload=("torch",), cpus_per_rank=0.5))
    attempts.finish(gang, "tell")
    began = time.monotonic()
    facts = json.loads(attempts.finish(gang, "tell").journal)
    gang.close()
    assert facts["modules"] == ["torch"]
    # 0.03 to 0.1 s on two busy cores; importing torch takes 2 s and more.
    assert facts["time"] - began < 1.0
