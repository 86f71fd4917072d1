"""Examines whether this machine and its cluster can carry a study: a list of checks, each with a way out.

Nothing is changed and no file is left behind. Checks of services that the cluster does not know (the tracking server)
are passed in.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.cores import usable_cores
from cluster.devices import cuda_devices
from cluster.gang import HostedGang
from cluster.host_process import HostProcess
from cluster.import_path import import_path
from cluster.resources import ClusterUnreachable, GangLost
from cluster.session import OBJECT_STORE_BYTES, check_address

Status = Literal["ok", "warn", "fail"]

PACKAGES = ("torch", "deepspeed", "ray", "datasets", "mlflow", "numpy", "scipy")

# The quickstart takes about 0.1 GiB; a study shows in its plan what it takes.
ENOUGH_DISK_BYTES = 2 * 2**30
ENOUGH_MEMORY_BYTES = 2 * 2**30

# A local disk renames and syncs in 1 to 30 ms; a study does it a few times per checkpoint.
SLOW_STORAGE_S = 0.5

FORK_SERVER_TIMEOUT_S = 120.0
# Usual: 0.02 to 0.1 s.
SLOW_CHILD_S = 1.0


@dataclass(frozen=True)
class Check:
    """One finding. `way_out` says what to do where `status` is not ok."""

    name: str
    status: Status
    found: str
    way_out: str = ""


def examine(
    home: Path,
    ray_address: str | None,
    preload: tuple[str, ...],
    others: Sequence[Callable[[], Check]] = (),
) -> list[Check]:
    """All checks, in the order in which a study would meet what they find.

    `home` is where studies are kept, `ray_address` None where a Ray of our own would start, `preload` what the fork
    servers of gangs import.
    """
    return [
        check_python(),
        *check_packages(PACKAGES),
        check_cores(),
        check_memory(),
        check_devices(),
        check_disk(home),
        check_shared_memory(),
        check_storage(home),
        check_extension_locks(extensions_folder()),
        check_fork_server(preload),
        check_ray(ray_address),
        *(other() for other in others),
    ]


def is_broken(checks: Sequence[Check]) -> bool:
    """Whether a study cannot run: `scaling doctor` then ends with exit code 3."""
    return any(check.status == "fail" for check in checks)


def check_python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", "ok", f"{version} at {sys.executable}")


def check_packages(names: Sequence[str]) -> list[Check]:
    checks = []
    for name in names:
        try:
            checks.append(Check(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            way_out = "Install the project into this environment: pip install -c constraints.txt -e ."
            checks.append(Check(name, "fail", "not installed", way_out))
    return checks


def check_cores() -> Check:
    return Check("cores", "ok", f"{usable_cores()} usable of {os.cpu_count()}")


def check_memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{_gibibytes(memory.available)} free of {_gibibytes(memory.total)}"
    if memory.available < ENOUGH_MEMORY_BYTES:
        return Check("memory", "warn", found, "Each gang takes about 0.5 GiB before its model: end other programs.")
    return Check("memory", "ok", found)


def check_devices() -> Check:
    devices = cuda_devices()
    if devices:
        named = ", ".join(f"{device.name} ({_gibibytes(device.memory_bytes)})" for device in devices)
        return Check("devices", "ok", f"{len(devices)} CUDA: {named}")
    if shutil.which("nvidia-smi"):
        way_out = "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES. Studies run on the CPU until then."
        return Check("devices", "warn", "none that can be used, though the driver's tool is here", way_out)
    return Check("devices", "ok", "no CUDA device: studies run on the CPU")


def check_disk(home: Path) -> Check:
    free = shutil.disk_usage(_existing(home)).free
    found = f"{_gibibytes(free)} free for {home}"
    if free < ENOUGH_DISK_BYTES:
        return Check("disk", "warn", found, "Free some, or set SCALING_HOME to a larger disk.")
    return Check("disk", "ok", found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    if not folder.is_dir():
        return Check("shared memory", "warn", f"no {folder}", "Ray then uses files in /tmp, which is slower.")
    free = shutil.disk_usage(folder).free
    found = f"{_gibibytes(free)} free in {folder}"
    if free < OBJECT_STORE_BYTES:
        return Check("shared memory", "warn", found, "In a container, give it more: docker run --shm-size=1g.")
    return Check("shared memory", "ok", found)


def check_storage(home: Path) -> Check:
    """What every commit of a checkpoint relies on: write, sync, rename, sync the folder."""
    folder = _existing(home)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=".scaling-doctor-", dir=folder) as name:
            before, after = Path(name) / "before", Path(name) / "after"
            with before.open("wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
            before.rename(after)
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        way_out = f"Make {folder} writable for you, or set SCALING_HOME to another folder."
        return Check("storage", "fail", f"cannot write, sync and rename in {folder}: {error}", way_out)
    wall_s = time.monotonic() - began
    found = f"write, sync and rename in {folder} take {1000 * wall_s:.0f} ms"
    if wall_s > SLOW_STORAGE_S:
        return Check("storage", "warn", found, "Checkpoints will be slow: put SCALING_HOME on a faster disk.")
    return Check("storage", "ok", found)


def extensions_folder() -> Path:
    """Where torch keeps what it has compiled (torch.utils.cpp_extension)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def check_extension_locks(folder: Path) -> Check:
    """A build that was killed leaves a lock file on which every later process waits for ever (pytorch #189245)."""
    locks = sorted(folder.rglob("lock")) if folder.is_dir() else []
    if not locks:
        return Check("extension locks", "ok", f"none in {folder}")
    way_out = f"If no build is running: rm {' '.join(str(lock) for lock in locks)}"
    return Check("extension locks", "warn", f"{len(locks)} lock files of unfinished builds", way_out)


def check_fork_server(preload: tuple[str, ...]) -> Check:
    """Brings a gang of one rank up, as a study does, and times it."""
    name = "fork server"
    way_out = "The message above is that of the interpreter: the installation is broken or incomplete."
    began = time.monotonic()
    host = HostProcess(f"{__name__}:answer", preload, {"PYTHONPATH": import_path()}, "this machine")
    gang = HostedGang("doctor", [host], [1], release=lambda: None)
    try:
        gang.wait_until_ready(FORK_SERVER_TIMEOUT_S)
        ready_s = time.monotonic() - began
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            gang.assign("doctor", {}, str(Path(folder) / "journal"), folder)
            while not (report := gang.poll(0)).finished:
                time.sleep(0.005)
                if time.monotonic() - began > FORK_SERVER_TIMEOUT_S:
                    return Check(name, "fail", f"its child does not end in {FORK_SERVER_TIMEOUT_S:g} s", way_out)
            child_s = time.monotonic() - began
    except (GangLost, ImportError) as error:
        return Check(name, "fail", str(error), way_out)
    finally:
        gang.close()
    if report.ranks[0].exit_code != 0:
        return Check(name, "fail", f"its child ended with {report.ranks[0].exit_code}", way_out)
    found = f"up in {ready_s:.1f} s with {len(preload)} preloads, a child starts and ends in {child_s:.2f} s"
    slow = "Every attempt pays this: is the machine overloaded?"
    return Check(name, "warn", found, slow) if child_s > SLOW_CHILD_S else Check(name, "ok", found)


def answer(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """The entry of the fork server's check."""
    link.heartbeat(1)


def check_ray(address: str | None) -> Check:
    if address is None:
        return Check("ray cluster", "ok", "no RAY_ADDRESS: a Ray of our own starts on this machine")
    try:
        check_address(address)
    except (ClusterUnreachable, ValueError) as error:
        return Check("ray cluster", "fail", str(error), "Correct or unset RAY_ADDRESS.")
    return Check("ray cluster", "ok", f"a head answers at {address}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    return next(each for each in [folder.absolute(), *folder.absolute().parents] if each.is_dir())


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
