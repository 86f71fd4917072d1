"""What is left of a gang when its controller is killed: nothing, in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import socket_folder
from cluster.import_path import import_path
from cluster.launchers.inline import InlineLauncher
from tests.cluster.gangs import gang_request, is_gone, socket_folders, wait_for

CONTROLLER = """
import sys, tempfile, time
from tests.cluster.gangs import Attempts, gang_request, host_of, wait_until_working
from pathlib import Path

if sys.argv[1] == "ray":
    from cluster.launchers.ray import RayLauncher as Launcher
else:
    from cluster.launchers.inline import InlineLauncher as Launcher
gang = Launcher().open(gang_request("g", world_size=2, cpus_per_rank=0.5))
Attempts(Path(sys.argv[2])).start(gang, sys.argv[3])
ranks = wait_until_working(gang).ranks
host = host_of(ranks[0].pid)
print(*[host.pid, *(child.pid for child in host.children(recursive=True))], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("kind", "act"),
    [("inline", "work"), ("inline", "hang"), pytest.param("ray", "work", marks=pytest.mark.slow)],
)
def test_a_killed_controller_leaves_no_process(kind: str, act: str, tmp_path: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, kind, str(tmp_path), act],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": import_path()},
    )
    assert controller.stdout is not None
    with controller, controller.stdout:
        pids = [int(pid) for pid in controller.stdout.readline().split()]
        assert len(pids) >= 4, "a host, its fork server, two ranks"
        assert socket_folders(pids[0])
        controller.kill()
    wait_for(lambda: all(is_gone(pid) for pid in pids), timeout_s=10.0)
    if kind == "inline":
        # Ray kills a fork server with its actor; the next host sweeps after it.
        wait_for(lambda: not socket_folders(pids[0]))


def test_the_next_host_sweeps_what_a_killed_one_has_left() -> None:
    left = Path(tempfile.mkdtemp(prefix="pymp-"))
    ours = Path(tempfile.mkdtemp(prefix="pymp-"))
    try:
        (left / f"{socket_folder._mark()}{2**22 + 1}").touch()
        (ours / f"{socket_folder._mark()}{os.getpid()}").touch()
        launcher = InlineLauncher()
        launcher.open(gang_request("g"))
        launcher.close()
        assert not left.exists()
        assert ours.exists(), "its process is alive"
    finally:
        shutil.rmtree(ours)
