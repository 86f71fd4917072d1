"""Finds this machine's CUDA devices without importing torch: the controller must stay light and off the devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

QUERY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Device:
    """One GPU. Its uuid is what CUDA_VISIBLE_DEVICES should name: indices depend on the order that CUDA is told."""

    index: str
    uuid: str
    name: str
    memory_bytes: int


def cuda_devices() -> tuple[Device, ...]:
    """The devices that the driver knows and CUDA_VISIBLE_DEVICES leaves us. Empty without a working driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        # A wedged driver answers nobody: torch would hang on it too.
        return ()
    if answer.returncode != 0:
        return ()
    return visible(parse(answer.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse(table: str) -> tuple[Device, ...]:
    """Rows "index, uuid, MiB, name" of nvidia-smi."""
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in table.splitlines() if line.strip()]
    return tuple(Device(index, uuid, name, int(mebibytes) * 2**20) for index, uuid, mebibytes, name in rows)


def visible(devices: tuple[Device, ...], chosen: str | None) -> tuple[Device, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, by index or by uuid, in its order. None leaves all, "" none."""
    if chosen is None:
        return devices
    names = [name.strip() for name in chosen.split(",")]
    return tuple(
        device for name in names for device in devices if name and (name == device.index or device.uuid == name)
    )
