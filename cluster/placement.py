"""Packs gang requests onto free devices. Pure: no Ray, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cluster.resources import GangRequest, Inventory, Node

# Sums of tenths must not make a free core disappear.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Share:
    """Ranks of one gang on one node."""

    node_id: str
    ranks: int


@dataclass(frozen=True)
class Placement:
    """Where a gang sits, rank 0's node first."""

    shares: tuple[Share, ...]

    @property
    def ranks_per_node(self) -> tuple[int, ...]:
        return tuple(share.ranks for share in self.shares)


def fits(request: GangRequest, inventory: Inventory) -> Placement | None:
    """Where the gang can sit on what is free now, or None.

    One node if any holds it whole: the one with the least left over, so that large gaps stay for large gangs.
    Otherwise the fewest nodes, fullest first. Ties go by node id. Raises ValueError for a request that means nothing.

    Free devices of a node are a sum: shares of several devices that add up to one are taken for a whole one, which the
    cluster may refuse later.
    """
    _check(request)
    rooms = {node.node_id: _room(request, node) for node in inventory.nodes}
    whole = [node for node in inventory.nodes if rooms[node.node_id] >= request.world_size]
    if whole:
        best = min(whole, key=lambda node: (node.free_devices, node.free_cpus, node.node_id))
        return Placement((Share(best.node_id, request.world_size),))
    shares = []
    missing = request.world_size
    for node_id, room in sorted(rooms.items(), key=lambda item: (-item[1], item[0])):
        if missing == 0 or room == 0:
            break
        shares.append(Share(node_id, min(room, missing)))
        missing -= shares[-1].ranks
    return None if missing else Placement(tuple(shares))


def refuse_if_never(request: GangRequest, inventory: Inventory) -> None:
    """Raises ValueError, with value, bound and way out, if the gang does not fit the cluster even when it is idle."""
    idle = tuple(replace(node, free_cpus=node.total_cpus, free_devices=node.total_devices) for node in inventory.nodes)
    if fits(request, Inventory(idle)) is not None:
        return
    ranks = sum(_room(request, node) for node in idle)
    raise ValueError(
        f"gang {request.gang_id}: {request.world_size} ranks with {request.cpus_per_rank:g} cores and "
        f"{request.devices_per_rank:g} devices each do not fit this cluster of {len(idle)} nodes, "
        f"{inventory.total_cpus:g} cores, {inventory.total_devices:g} devices, which holds {ranks} such ranks when "
        f"idle. Lower execution.max_ranks to {ranks}, or add nodes."
        if ranks
        else f"gang {request.gang_id}: a rank needs {request.cpus_per_rank:g} cores and "
        f"{request.devices_per_rank:g} devices, and no node of this cluster has them (largest: "
        f"{max((node.total_cpus for node in idle), default=0):g} cores, "
        f"{max((node.total_devices for node in idle), default=0):g} devices). Ask for less per rank, or add a node."
    )


def _check(request: GangRequest) -> None:
    if request.world_size < 1:
        raise ValueError(f"gang {request.gang_id}: world_size {request.world_size} is below 1")
    for name, value in (("cpus_per_rank", request.cpus_per_rank), ("devices_per_rank", request.devices_per_rank)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"gang {request.gang_id}: {name} {value} is not a finite number of 0 or more")
    devices = request.devices_per_rank
    if devices == 0 and request.cpus_per_rank == 0:
        raise ValueError(f"gang {request.gang_id}: a rank needs a part of a core or of a device, and asks for neither")
    if 0 < devices < 1 and request.world_size > 1:
        raise ValueError(
            f"gang {request.gang_id}: {request.world_size} ranks with {devices:g} of a device each. Ranks that share "
            "a device do not exchange gradients with others: use one rank, or whole devices."
        )
    if devices > 1 and devices != math.floor(devices):
        raise ValueError(f"gang {request.gang_id}: devices_per_rank {devices:g} is above 1 and not whole")


def _room(request: GangRequest, node: Node) -> int:
    """How many ranks of the request the node's free part holds."""
    bounds = [request.world_size]
    if request.cpus_per_rank > 0:
        bounds.append(math.floor(node.free_cpus / request.cpus_per_rank + ROUNDING))
    if request.devices_per_rank > 0:
        bounds.append(math.floor(node.free_devices / request.devices_per_rank + ROUNDING))
    return max(0, min(bounds))
