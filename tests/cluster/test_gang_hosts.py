"""A gang over several hosts, each a process of its own that stands for a node."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gang import HostedGang
from cluster.host_process import HostProcess
from cluster.import_path import import_path
from cluster.resources import GangLost
from tests.cluster.gangs import Attempts, follow, host_of, is_gone, wait_for, wait_until_working


@pytest.fixture
def gang() -> Iterator[HostedGang]:
    """Three ranks on node-a, two on node-b."""
    released: list[bool] = []
    hosts = [
        HostProcess("tests.cluster.sample_entries:run", (), {"PYTHONPATH": import_path()}, node_id)
        for node_id in ("node-a", "node-b")
    ]
    opened = HostedGang("wide", hosts, ranks_per_host=(3, 2), release=lambda: released.append(True))
    opened.wait_until_ready(timeout_s=30)
    yield opened
    opened.close()
    assert released == [True], "what it was placed on is given back once"


def test_ranks_are_numbered_host_by_host(gang: HostedGang, attempts: Attempts) -> None:
    ended = attempts.finish(gang, "tell")
    assert [(rank.rank, rank.node_id) for rank in ended.report.ranks] == [
        (0, "node-a"), (1, "node-a"), (2, "node-a"), (3, "node-b"), (4, "node-b"),
    ]  # fmt: skip
    seat = json.loads(ended.journal)["seat"]
    assert (seat["world_size"], seat["local_world_size"]) == (5, 3)
    assert gang.node_ids == ("node-a", "node-b")


def test_published_keys_travel_between_hosts_with_polls(gang: HostedGang, attempts: Attempts) -> None:
    for _ in range(2):
        ended = attempts.finish(gang, "meet")
        assert (ended.exit_codes, ended.journal) == ([0] * 5, "1 2 3 4\n")


def test_a_lost_host_takes_the_ranks_on_the_others_with_it(gang: HostedGang, attempts: Attempts) -> None:
    attempts.start(gang, "work")
    ranks = wait_until_working(gang).ranks
    survivor = host_of(ranks[0].pid)
    host_of(ranks[4].pid).kill()
    with pytest.raises(GangLost, match=r"gang wide: its host .* is gone"):
        gang.poll(0)
    wait_for(lambda: is_gone(survivor.pid))


def test_an_attempt_that_one_host_cannot_start_runs_on_none(
    gang: HostedGang, attempts: Attempts, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    # The log of rank 4 cannot be opened: its name is a folder's.
    (logs / "rank-4.log").mkdir()
    with pytest.raises(OSError, match=r"rank-4\.log"):
        gang.assign("a1", {"act": "work"}, str(tmp_path / "journal"), str(logs))
    report = gang.poll(0)
    assert all(rank.exit_code is not None for rank in report.ranks)
    assert attempts.finish(gang, "finish").exit_codes == [0] * 5


def test_a_new_attempt_does_not_see_the_keys_of_the_one_before(gang: HostedGang, attempts: Attempts) -> None:
    attempts.start(gang, "meet")
    follow(gang)
    attempts.start(gang, "await_port")
    time.sleep(0.2)
    assert {rank.error_type for rank in follow(gang).report.ranks} == {"TimeoutError"}
