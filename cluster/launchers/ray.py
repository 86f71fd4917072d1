"""Opens gangs on a Ray cluster: one placement group a gang, one host actor per node of it, nothing ever restarted.

Ray places and reports deaths; it reschedules nothing. A placement group that lost a bundle can wait for ever while it
holds the rest (ray #65147), so any loss removes the whole group and the controller opens another gang. Actors and
groups are not detached: they end with the controller.

The package must be installed on every node; ranks import what the controller's PYTHONPATH and installation have.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.gang import REPLY_TIMEOUT_S, HostedGang, Reply
from cluster.host import START_TIMEOUT_S, Host
from cluster.import_path import import_path
from cluster.placement import Placement, fits, refuse_if_never
from cluster.resources import ClusterUnreachable, GangLost, GangRequest, Inventory, Node
from cluster.session import bounded, connect

# The group is asked for only when its resources are free, and is then there in milliseconds. Longer: they were taken.
PLACEMENT_TIMEOUT_S = 30.0

HEAD_TIMEOUT_S = 10.0
HEAD_COMPLAINT = "The head of the Ray cluster does not answer."

# An orderly end takes some hundredths of a second; a frozen host is killed after this.
CLOSE_TIMEOUT_S = 3.0

# A `kill` may wait for processes while the next poll comes in; a Host lets them take turns.
CALLS_AT_ONCE = 4

PLACEMENT_GROUP_PREFIX = "scaling-"


class HostActor:
    """A Host in a Ray worker. It comes up with the first call, so that what it raises arrives as it is."""

    def __init__(self, entry: str, preload: tuple[str, ...], environment: dict[str, str]) -> None:
        self._arguments = (entry, preload, environment, ray.get_runtime_context().get_node_id())
        self._starting = threading.Lock()
        self._host: Host | None = None

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        with self._starting:
            if self._host is None:
                self._host = Host(*self._arguments)
        return getattr(self._host, method)(*arguments)

    def close(self) -> None:
        with self._starting:
            if self._host is not None:
                self._host.close()


class RayHost:
    """The controller's handle of a host actor."""

    def __init__(self, actor: Any, node_id: str) -> None:
        self.node_id = node_id
        self._actor = actor

    def send(self, method: str, *arguments: Any) -> Reply:
        answer = self._actor.call.remote(method, arguments)
        return lambda timeout_s: self._receive(answer, timeout_s)

    def close(self) -> None:
        # First in good order: the ranks are gone when this returns. A host that is gone, or frozen, is only killed.
        with contextlib.suppress(RayError):
            ray.get(self._actor.close.remote(), timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(ClusterUnreachable, RayError):
            bounded(lambda: ray.kill(self._actor), HEAD_TIMEOUT_S, HEAD_COMPLAINT)

    def _receive(self, answer: Any, timeout_s: float) -> Any:
        try:
            return ray.get(answer, timeout=timeout_s)
        except RayTaskError as error:
            raise error.cause from error
        except GetTimeoutError as error:
            raise GangLost(f"its host on node {self.node_id} has not answered for {timeout_s:g} s: frozen") from error
        except RayError as error:
            raise GangLost(f"its host on node {self.node_id} is gone: {error}") from error


@dataclass(frozen=True)
class _Held:
    """An open gang, with what it holds on each node."""

    gang: HostedGang
    cpus_on_node: dict[str, float]
    devices_on_node: dict[str, float]


class RayLauncher:
    """Connects when made. `open` may be called from several threads, so that gangs come up side by side."""

    kind: Literal["inline", "ray", "fake"] = "ray"

    def __init__(self, address: str | None = None, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """Join the cluster at `address` or RAY_ADDRESS, else start one here. Raises ClusterUnreachable, ValueError."""
        self._session = connect(address)
        self._reply_timeout_s = reply_timeout_s
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def inventory(self) -> Inventory:
        """Nodes that are alive. What a gang of ours holds counts at once; Ray's own view lags by some 0.1 s."""
        nodes, free = bounded(
            lambda: (ray.nodes(), ray._private.state.available_resources_per_node()), HEAD_TIMEOUT_S, HEAD_COMPLAINT
        )
        found = [_node(node, free.get(node["NodeID"], {})) for node in nodes if node["Alive"]]
        seen = Inventory(tuple(sorted(found, key=lambda node: node.node_id)))
        nodes_and_bounds = zip(seen.nodes, self._without_others(seen).nodes, strict=True)
        return Inventory(
            tuple(
                replace(
                    node,
                    free_cpus=min(node.free_cpus, bound.free_cpus),
                    free_devices=min(node.free_devices, bound.free_devices),
                )
                for node, bound in nodes_and_bounds
            )
        )

    def open(self, request: GangRequest) -> HostedGang:
        """Returns when all fork servers are up. Raises ValueError if it never fits, GangLost if not now.

        GangLost too when a node dies meanwhile, ImportError when a preload or the entry cannot be imported.
        """
        if request.gang_id in self._held:
            raise ValueError(f"gang {request.gang_id} is already open. Close it, or use another id.")
        inventory = self.inventory()
        refuse_if_never(request, inventory)
        # Ray's view of what is free lags after a gang has been closed, its placement does not: when the first says no,
        # what only our own gangs hold decides whether to ask.
        placement = fits(request, inventory) or fits(request, self._without_others(inventory))
        if placement is None:
            raise GangLost(f"gang {request.gang_id}: our own gangs hold what it needs. Close one first.")
        group = self._place(request, placement)
        gang = self._gang(request, placement, group)
        try:
            gang.wait_until_ready(START_TIMEOUT_S)
        except BaseException:
            # Also when interrupted: a gang that its opener never saw must not keep its nodes.
            gang.close()
            raise
        return gang

    def close(self) -> None:
        for held in list(self._held.values()):
            held.gang.close()
        self._session.close()

    def _place(self, request: GangRequest, placement: Placement) -> PlacementGroup:
        bundles = [_bundle(request, ranks) for ranks in placement.ranks_per_node]
        group = bounded(
            lambda: placement_group(
                bundles,
                strategy="STRICT_PACK" if len(bundles) == 1 else "PACK",
                # A name stays taken for a while after its group has been removed, so none is used twice.
                name=f"{PLACEMENT_GROUP_PREFIX}{request.gang_id}-{uuid.uuid4().hex[:8]}",
            ),
            HEAD_TIMEOUT_S,
            HEAD_COMPLAINT,
        )
        if not bounded(lambda: group.wait(PLACEMENT_TIMEOUT_S), PLACEMENT_TIMEOUT_S + HEAD_TIMEOUT_S, HEAD_COMPLAINT):
            _remove(group)
            raise GangLost(
                f"gang {request.gang_id}: its resources ({bundles}) were free and are not given within "
                f"{PLACEMENT_TIMEOUT_S:g} s; another user of the cluster has taken them"
            )
        return group

    def _gang(self, request: GangRequest, placement: Placement, group: PlacementGroup) -> HostedGang:
        node_of_bundle = bounded(
            lambda: placement_group_table(group)["bundles_to_node_id"], HEAD_TIMEOUT_S, HEAD_COMPLAINT
        )
        environment = {
            **request.environment,
            "PYTHONPATH": import_path(first=request.environment.get("PYTHONPATH", "")),
        }
        if request.devices_per_rank == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        hosts = []
        cpus: dict[str, float] = {}
        devices: dict[str, float] = {}
        for index, ranks in enumerate(placement.ranks_per_node):
            bundle = _bundle(request, ranks)
            node_id = node_of_bundle[index]
            options = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "memory": bundle.get("memory", 0),
                "max_restarts": 0,
                "max_task_retries": 0,
                "max_concurrency": CALLS_AT_ONCE,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            }
            actor = ray.remote(HostActor).options(**options)
            hosts.append(RayHost(actor.remote(request.entry, request.preload, environment), node_id))
            cpus[node_id] = cpus.get(node_id, 0.0) + bundle.get("CPU", 0.0)
            devices[node_id] = devices.get(node_id, 0.0) + bundle.get("GPU", 0.0)
        gang = HostedGang(
            request.gang_id,
            hosts=hosts,
            ranks_per_host=placement.ranks_per_node,
            release=lambda: self._give_back(request.gang_id, group),
            reply_timeout_s=self._reply_timeout_s,
        )
        with self._lock:
            self._held[request.gang_id] = _Held(gang, cpus, devices)
        return gang

    def _give_back(self, gang_id: str, group: PlacementGroup) -> None:
        _remove(group)
        with self._lock:
            del self._held[gang_id]

    def _without_others(self, inventory: Inventory) -> Inventory:
        """The same nodes, with all free that no gang of this launcher holds."""
        with self._lock:
            held = list(self._held.values())
        return Inventory(
            tuple(
                replace(
                    node,
                    free_cpus=node.total_cpus - sum(each.cpus_on_node.get(node.node_id, 0.0) for each in held),
                    free_devices=node.total_devices - sum(each.devices_on_node.get(node.node_id, 0.0) for each in held),
                )
                for node in inventory.nodes
            )
        )


def _node(node: dict[str, Any], free: dict[str, float]) -> Node:
    """A row of `ray.nodes()` with what Ray sees free on it."""
    total = node["Resources"]
    types = [name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:")]
    has_devices = total.get("GPU", 0.0) > 0
    return Node(
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        total_cpus=total.get("CPU", 0.0),
        total_devices=total.get("GPU", 0.0),
        free_cpus=free.get("CPU", 0.0),
        free_devices=free.get("GPU", 0.0),
        device_type=(types[0] if types else "gpu") if has_devices else "cpu",
    )


def _bundle(request: GangRequest, ranks: int) -> dict[str, float]:
    """What the ranks on one node take together. Ray refuses entries of zero."""
    wanted = {
        "CPU": request.cpus_per_rank * ranks,
        "GPU": request.devices_per_rank * ranks,
        "memory": float(request.memory_bytes_per_rank * ranks),
    }
    return {name: amount for name, amount in wanted.items() if amount > 0}


def _remove(group: PlacementGroup) -> None:
    with contextlib.suppress(ClusterUnreachable, RayError):
        bounded(lambda: remove_placement_group(group), HEAD_TIMEOUT_S, HEAD_COMPLAINT)
