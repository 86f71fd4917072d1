"""What is left of a gang when its controller is killed: nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from cluster.import_path import import_path

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
        processes = [psutil.Process(pid) for pid in pids]
        controller.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
