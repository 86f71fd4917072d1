"""The lease: one driver a study, dead ones replaced at once, lost ones unable to write."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.database import sqlite_url
from orchestrator.lease import Holder, Lease, LeaseHeld, LeaseKeeper, current_holder
from orchestrator.ledger import Ledger
from orchestrator.writing import LeaseLost
from tests.orchestrator.bench import small_plan

NOW = 1_750_000_000.0
ELSEWHERE = Holder(host="another host", pid=1, boot_id="a boot", process_started_ms=0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(sqlite_url(tmp_path / "ledger.sqlite"), create=True)
    ledger.register_plan(small_plan(), NOW)
    return ledger


def test_second_driver_learns_who_holds_the_study(ledger: Ledger) -> None:
    Lease.take(ledger, NOW, holder=ELSEWHERE, duration_s=60)
    with pytest.raises(LeaseHeld, match=r"study small is driven by process 1 on another host .*50 s") as held:
        Lease.take(ledger, NOW + 10)
    assert held.value.holder == ELSEWHERE


def test_lease_of_another_host_is_taken_over_when_it_expires(ledger: Ledger) -> None:
    Lease.take(ledger, NOW, holder=ELSEWHERE, duration_s=60)
    assert Lease.take(ledger, NOW + 61).holder == Holder.me()


def test_dead_process_of_this_host_is_taken_over_at_once(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started_ms = round(psutil.Process(child.pid).create_time() * 1000)
    holder = replace(Holder.me(), pid=child.pid, process_started_ms=started_ms)
    Lease.take(ledger, NOW, holder=holder)
    with pytest.raises(LeaseHeld):
        Lease.take(ledger, NOW)
    child.kill()
    # A killed child that nobody has waited for yet counts as dead too.
    psutil.wait_procs([psutil.Process(child.pid)], timeout=0.2)
    assert Lease.take(ledger, NOW).holder == Holder.me()
    child.wait()


def test_pid_that_another_process_got_since_is_dead(ledger: Ledger) -> None:
    Lease.take(ledger, NOW, holder=replace(Holder.me(), process_started_ms=1))
    assert Lease.take(ledger, NOW).holder == Holder.me()


def test_process_of_an_earlier_boot_is_dead(ledger: Ledger) -> None:
    Lease.take(ledger, NOW, holder=replace(Holder.me(), boot_id="the boot before"))
    assert Lease.take(ledger, NOW).holder == Holder.me()


def test_driver_that_lost_its_lease_can_write_nothing_more(ledger: Ledger, tmp_path: Path) -> None:
    late = Lease.take(ledger, NOW, holder=ELSEWHERE, duration_s=60)
    successor = Ledger.open(sqlite_url(tmp_path / "ledger.sqlite"))
    Lease.take(successor, NOW + 61)
    with pytest.raises(LeaseLost, match=r"study small is now held by process \d+ on .*this controller must stop"):
        ledger.append_event("late", {}, NOW + 62)
    with pytest.raises(LeaseLost):
        late.renew(ledger, NOW + 62)
    late.release(ledger)
    assert current_holder(successor, NOW + 62) == Holder.me()
    successor.append_event("in time", {}, NOW + 62)


def test_renewed_lease_holds_on(ledger: Ledger) -> None:
    lease = Lease.take(ledger, NOW, holder=ELSEWHERE, duration_s=60)
    lease.renew(ledger, NOW + 50)
    with pytest.raises(LeaseHeld):
        Lease.take(ledger, NOW + 100)


def test_keeper_renews_while_it_is_entered_and_releases_after(ledger: Ledger) -> None:
    times = iter(range(1, 1000))
    lease = Lease.take(ledger, NOW, duration_s=0.06)
    with LeaseKeeper(lease, ledger, lambda: NOW + next(times)):
        while current_holder(ledger, NOW + 3) is None:
            pass
    assert current_holder(ledger, NOW) is None
    ledger.append_event("free to write", {}, NOW)
