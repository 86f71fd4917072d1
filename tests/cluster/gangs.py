"""Builders for the cluster's tests: gang requests, and a gang's attempt watched to its end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.resources import Gang, GangReport, GangRequest


def gang_request(gang_id: str, world_size: int = 1, **changes: Any) -> GangRequest:
    """A gang whose ranks run `sample_entries.run`."""
    request = GangRequest(
        gang_id=gang_id,
        world_size=world_size,
        entry="tests.cluster.sample_entries:run",
        preload=(),
        environment={"OMP_NUM_THREADS": "1"},
    )
    return replace(request, **changes)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if its new parent has noticed it or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def socket_folders(host_pid: int) -> list[Path]:
    """What a host has made in the folder for temporary files."""
    return list(Path(tempfile.gettempdir()).glob(f"pymp-*/scaling-host-*-{host_pid}"))


@dataclass(frozen=True)
class Ended:
    """An attempt that has finished: its whole journal and its last report."""

    journal: str
    report: GangReport

    @property
    def exit_codes(self) -> list[int | None]:
        return [rank.exit_code for rank in self.report.ranks]


class Attempts:
    """Starts attempts in a folder of the test's own, under names that do not repeat."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def start(self, gang: Gang, act: str, **payload: Any) -> Path:
        """Returns the attempt's folder."""
        self._count += 1
        folder = self._folder / f"attempt-{self._count}"
        folder.mkdir()
        journal = str(folder / "journal")
        gang.assign(f"a{self._count}", {"act": act, "journal": journal, **payload}, journal, str(folder / "logs"))
        return folder

    def finish(self, gang: Gang, act: str, **payload: Any) -> Ended:
        self.start(gang, act, **payload)
        return follow(gang)


def follow(gang: Gang, timeout_s: float = 30.0) -> Ended:
    """Poll until the attempt has finished."""
    deadline = time.monotonic() + timeout_s
    journal, offset = "", 0
    while True:
        report = gang.poll(offset)
        journal, offset = journal + report.journal_text, report.next_offset
        if report.finished:
            return Ended(journal, report)
        assert time.monotonic() < deadline, f"not finished after {timeout_s} s: {report}"
        time.sleep(0.01)


def wait_for(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Returns as soon as the condition holds; fails after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(0.01)


def wait_until_working(gang: Gang) -> GangReport:
    """The first report in which every rank has told of a step."""
    wait_for(lambda: all(rank.step > 0 for rank in gang.poll(0).ranks))
    return gang.poll(0)


def host_of(rank_pid: int) -> psutil.Process:
    """The process that holds a rank's Host: the parent of the fork server that forked the rank."""
    fork_server = psutil.Process(rank_pid).parent()
    assert fork_server is not None
    host = fork_server.parent()
    assert host is not None
    return host
