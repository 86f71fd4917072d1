"""Gangs over the nodes of a Ray cluster, and what the loss of a node does to them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.launchers.ray import PLACEMENT_GROUP_PREFIX, RayLauncher
from cluster.resources import GangLost
from tests.cluster.gangs import Attempts, gang_request, wait_for, wait_until_working


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without cores and two nodes with two cores each; dead nodes are noticed in 1.5 s instead of 15."""
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
            "_system_config": {
                "health_check_initial_delay_ms": 500,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 3,
            },
        },
    )
    for _ in range(2):
        made.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def launcher(nodes: Cluster) -> Iterator[RayLauncher]:
    made = RayLauncher(nodes.address)
    yield made
    made.close()
    assert not ray.is_initialized(), "the connection was the launcher's"


def placement_groups() -> set[str]:
    """Names of ours that exist."""
    table = ray.util.placement_group_table()
    return {
        row["name"]
        for row in table.values()
        if row["name"].startswith(PLACEMENT_GROUP_PREFIX) and row["state"] != "REMOVED"
    }


def test_a_gang_sits_on_one_node_if_it_fits_one(launcher: RayLauncher, attempts: Attempts) -> None:
    inventory = launcher.inventory()
    assert [node.total_cpus for node in inventory.nodes if node.total_cpus] == [2.0, 2.0]
    gang = launcher.open(gang_request("pair", world_size=2))
    assert len(gang.node_ids) == 1
    ended = attempts.finish(gang, "meet")
    assert (ended.exit_codes, ended.journal) == ([0, 0], "1\n")
    held = {node.node_id: node.free_cpus for node in launcher.inventory().nodes}
    assert held[gang.node_ids[0]] == 0.0
    gang.close()


def test_ranks_of_a_gang_over_two_nodes_meet(launcher: RayLauncher, attempts: Attempts) -> None:
    gang = launcher.open(gang_request("wide", world_size=4))
    assert len(set(gang.node_ids)) == 2
    ended = attempts.finish(gang, "meet")
    assert (ended.exit_codes, ended.journal) == ([0] * 4, "1 2 3\n")
    assert [rank.node_id for rank in ended.report.ranks] == [node for node in gang.node_ids for _ in range(2)]
    gang.close()


def test_a_gang_wider_than_the_cluster_is_refused_with_its_bound(launcher: RayLauncher) -> None:
    with pytest.raises(ValueError, match=r"5 ranks with 1 cores .* holds 4 such ranks when idle"):
        launcher.open(gang_request("five", world_size=5))


def test_losing_a_node_closes_the_gang_and_removes_its_placement_group(
    nodes: Cluster, launcher: RayLauncher, attempts: Attempts
) -> None:
    gang = launcher.open(gang_request("wide", world_size=4))
    attempts.start(gang, "work")
    wait_until_working(gang)
    assert len(placement_groups()) == 1
    nodes.remove_node(max(nodes.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
    began = time.monotonic()

    def is_lost() -> bool:
        try:
            gang.poll(0)
        except GangLost:
            return True
        return False

    wait_for(is_lost, timeout_s=10.0)
    assert time.monotonic() - began < 10.0
    wait_for(lambda: placement_groups() == set())
    wait_for(lambda: len(launcher.inventory().nodes) == 2, timeout_s=10.0)
    wait_for(lambda: sum(node.free_cpus for node in launcher.inventory().nodes) == 2.0)
    # What is left of the cluster takes the next gang.
    smaller = launcher.open(gang_request("pair", world_size=2))
    assert attempts.finish(smaller, "meet").exit_codes == [0, 0]
    smaller.close()
