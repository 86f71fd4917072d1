"""Opens gangs on this machine without Ray. For laptops and tests: same hosts, same ranks, same failures."""

from __future__ import annotations

import math
import socket
import threading
from typing import Literal

import psutil

from cluster.cores import usable_cores
from cluster.devices import cuda_devices
from cluster.gang import REPLY_TIMEOUT_S, HostedGang
from cluster.host import START_TIMEOUT_S
from cluster.host_process import HostProcess
from cluster.import_path import import_path
from cluster.placement import fits, refuse_if_never
from cluster.resources import GangLost, GangRequest, Inventory, Node


class InlineLauncher:
    """Counts this machine's cores and CUDA devices, and runs every gang in a host process beside the controller.

    `open` may be called from several threads, so that gangs come up side by side.
    """

    kind: Literal["inline", "ray", "fake"] = "inline"

    def __init__(self, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self._reply_timeout_s = reply_timeout_s
        self._node_id = socket.gethostname()
        self._total_cpus = float(usable_cores())
        devices = cuda_devices()
        self._device_type = devices[0].name if devices else "cpu"
        self._free_cpus = self._total_cpus
        self._free_of_device = dict.fromkeys((device.uuid for device in devices), 1.0)
        self._gangs: dict[str, HostedGang] = {}
        self._lock = threading.Lock()

    def inventory(self) -> Inventory:
        with self._lock:
            return self._inventory()

    def open(self, request: GangRequest) -> HostedGang:
        """Returns when the gang's fork server is up. Raises ValueError if it never fits, GangLost if not now."""
        with self._lock:
            refuse_if_never(request, self._inventory())
            _refuse_memory(request)
            if request.gang_id in self._gangs:
                raise ValueError(f"gang {request.gang_id} is already open. Close it, or use another id.")
            devices = self._choose_devices(request)
            if fits(request, self._inventory()) is None or devices is None:
                raise GangLost(
                    f"gang {request.gang_id}: not enough is free on {self._node_id} now. Close a gang first."
                )
            cpus = request.cpus_per_rank * request.world_size
            self._take(-cpus, {device: -part for device, part in devices.items()})
            environment = {
                **request.environment,
                "PYTHONPATH": import_path(first=request.environment.get("PYTHONPATH", "")),
                "CUDA_VISIBLE_DEVICES": ",".join(devices),
            }
            host = HostProcess(request.entry, request.preload, environment, self._node_id)
            gang = HostedGang(
                request.gang_id,
                hosts=[host],
                ranks_per_host=[request.world_size],
                release=lambda: self._give_back(request.gang_id, cpus, devices),
                reply_timeout_s=self._reply_timeout_s,
            )
            self._gangs[request.gang_id] = gang
        try:
            gang.wait_until_ready(START_TIMEOUT_S)
        except BaseException:
            # Also when interrupted: a gang that its opener never saw must not keep its cores.
            gang.close()
            raise
        return gang

    def close(self) -> None:
        for gang in list(self._gangs.values()):
            gang.close()

    def _inventory(self) -> Inventory:
        node = Node(
            node_id=self._node_id,
            address="127.0.0.1",
            total_cpus=self._total_cpus,
            total_devices=float(len(self._free_of_device)),
            free_cpus=self._free_cpus,
            free_devices=sum(self._free_of_device.values()),
            device_type=self._device_type,
        )
        return Inventory((node,))

    def _choose_devices(self, request: GangRequest) -> dict[str, float] | None:
        """Parts of devices for the request: the fullest device that still holds a fraction, else whole free ones."""
        if request.devices_per_rank == 0:
            return {}
        if request.devices_per_rank < 1:
            part = request.devices_per_rank
            room = {device: free for device, free in self._free_of_device.items() if free >= part - 1e-9}
            return {min(room, key=lambda device: room[device]): part} if room else None
        wanted = math.ceil(request.devices_per_rank * request.world_size)
        whole = [device for device, free in self._free_of_device.items() if free > 1 - 1e-9]
        return dict.fromkeys(whole[:wanted], 1.0) if len(whole) >= wanted else None

    def _give_back(self, gang_id: str, cpus: float, devices: dict[str, float]) -> None:
        with self._lock:
            self._take(cpus, devices)
            del self._gangs[gang_id]

    def _take(self, cpus: float, devices: dict[str, float]) -> None:
        self._free_cpus += cpus
        for device, part in devices.items():
            self._free_of_device[device] += part


def _refuse_memory(request: GangRequest) -> None:
    needed = request.memory_bytes_per_rank * request.world_size
    total = psutil.virtual_memory().total
    if needed > total:
        raise ValueError(
            f"gang {request.gang_id}: {request.world_size} ranks need {needed / 2**30:.1f} GiB of memory and this "
            f"machine has {total / 2**30:.1f} GiB. Use a smaller micro-batch, fewer ranks or another machine."
        )
