"""Where gangs are placed: tables of nodes, requests and seats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import fits, refuse_if_never
from cluster.resources import GangRequest, Inventory, Node


def inventory(*free: tuple[str, float, float]) -> Inventory:
    """Nodes as (id, free cores, free devices), each with 16 cores and 8 devices in all."""
    return Inventory(
        tuple(Node(name, f"10.0.0.{i}", 16.0, 8.0, cpus, devices) for i, (name, cpus, devices) in enumerate(free))
    )


def request(ranks: int, cpus: float = 1.0, devices: float = 0.0) -> GangRequest:
    return GangRequest("g", ranks, "module:entry", (), cpus_per_rank=cpus, devices_per_rank=devices)


@pytest.mark.parametrize(
    ("case", "nodes", "wanted", "shares"),
    [
        ("one node that holds it", [("a", 16, 8)], request(8, 2, 1), [("a", 8)]),
        ("the tightest node, so that large gaps stay", [("a", 16, 8), ("b", 16, 2)], request(2, 1, 1), [("b", 2)]),
        ("the tightest in cores where devices tie", [("a", 16, 0), ("b", 4, 0)], request(4), [("b", 4)]),
        ("the first by name where all tie", [("b", 4, 0), ("a", 4, 0)], request(2), [("a", 2)]),
        ("over nodes, fullest first", [("a", 2, 0), ("b", 3, 0)], request(5), [("b", 3), ("a", 2)]),
        ("over as few nodes as will do", [("a", 1, 0), ("b", 4, 0), ("c", 3, 0)], request(6), [("b", 4), ("c", 2)]),
        ("cores bind", [("a", 3, 8)], request(4, 1, 1), None),
        ("devices bind", [("a", 16, 3)], request(4, 1, 1), None),
        ("half a device for one rank", [("a", 1, 0.5)], request(1, 1, 0.5), [("a", 1)]),
        ("tenths add up", [("a", 0.3, 0)], request(3, 0.1), [("a", 3)]),
        ("less than half a device is left", [("a", 1, 0.4)], request(1, 1, 0.5), None),
        ("two devices a rank leave the odd one", [("a", 16, 3), ("b", 16, 3)], request(2, 1, 2), [("a", 1), ("b", 1)]),
        ("a device without cores", [("a", 0, 2)], request(1, 0, 1), [("a", 1)]),
        ("no nodes", [], request(1), None),
    ],
)
def test_fits(
    case: str, nodes: list[tuple[str, float, float]], wanted: GangRequest, shares: list[tuple[str, int]] | None
) -> None:
    placement = fits(wanted, inventory(*nodes))
    found = None if placement is None else [(share.node_id, share.ranks) for share in placement.shares]
    assert found == shares, case


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=6),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_a_placement_seats_every_rank_and_overfills_no_node(
    free: list[tuple[int, int]], ranks: int, cpus: int, devices: int
) -> None:
    nodes = inventory(*((f"n{i}", float(c), float(d)) for i, (c, d) in enumerate(free)))
    placement = fits(request(ranks, cpus, devices), nodes)
    capacity = sum(min(c // cpus, d // devices if devices else ranks) for c, d in free)
    assert (placement is None) == (capacity < ranks)
    if placement is None:
        return
    by_id = {node.node_id: node for node in nodes.nodes}
    assert sum(placement.ranks_per_node) == ranks
    assert len({share.node_id for share in placement.shares}) == len(placement.shares)
    for share in placement.shares:
        assert 0 < share.ranks * cpus <= by_id[share.node_id].free_cpus
        assert share.ranks * devices <= by_id[share.node_id].free_devices


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (request(0), "world_size 0 is below 1"),
        (request(1, cpus=-1), "cpus_per_rank -1 is not a finite number of 0 or more"),
        (request(1, cpus=float("nan")), "cpus_per_rank nan is not a finite number"),
        (request(1, cpus=0), "asks for neither"),
        (request(2, devices=0.5), "2 ranks with 0.5 of a device each"),
        (request(1, devices=1.5), "devices_per_rank 1.5 is above 1 and not whole"),
    ],
)
def test_a_request_that_means_nothing_is_refused(wanted: GangRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fits(wanted, inventory(("a", 16, 8)))


def test_a_busy_cluster_is_no_reason_to_refuse_for_ever() -> None:
    refuse_if_never(request(8, 2, 1), inventory(("a", 0, 0)))


def test_a_gang_too_wide_for_the_idle_cluster_is_told_how_wide_it_may_be() -> None:
    with pytest.raises(ValueError, match=r"17 ranks .* 2 nodes, 32 cores, 16 devices, which holds 16 such ranks"):
        refuse_if_never(request(17, 1, 1), inventory(("a", 0, 0), ("b", 16, 8)))


def test_a_rank_too_large_for_any_node_is_told_the_largest() -> None:
    with pytest.raises(ValueError, match=r"a rank needs 1 cores and 9 devices, .* \(largest: 16 cores, 8 devices\)"):
        refuse_if_never(request(1, 1, 9), inventory(("a", 16, 8)))
