"""Crash-equivalence: wherever the controller dies, the same command comes to the records of an undisturbed study."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from orchestrator.ledger import Ledger
from tests.orchestrator.bench import Bench
from tests.orchestrator.fake_cluster import DriverKilled, Fault, FaultKind

ONE_SIZE = ("design.sizes=[20k]", "forecast.hold_out=none")
LAST_STEP = 391
HARMLESS: tuple[FaultKind, ...] = ("kill", "lose gang", "hang", "out of memory", "damage state", "driver")


class DyingLedger(Ledger):
    """Takes its process along at the n-th commit: just before it, or just after."""

    dies_at = 0
    after_commit = False
    commits = 0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        outermost = getattr(self._current, "connection", None) is None
        with super().transaction() as connection:
            yield connection
            if outermost:
                self.commits += 1
                if self.commits == self.dies_at and not self.after_commit:
                    raise DriverKilled
        if outermost and self.commits == self.dies_at and self.after_commit:
            raise DriverKilled


def dying(bench: Bench, dies_at: int, after_commit: bool) -> DyingLedger:
    ledger = DyingLedger.open(bench.url, create=True, study_name=bench.plan.study_name)
    ledger.dies_at, ledger.after_commit = dies_at, after_commit
    return ledger


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("undisturbed") / "study", *ONE_SIZE, cpus=(1.0,))
    bench.current_ledger = dying(bench, 0, after_commit=False)
    bench.run()
    return bench


def records(bench: Bench) -> tuple[object, ...]:
    """All that must be equal: observations, points, and which states are accepted, at what step."""
    ledger = bench.ledger
    return (
        sorted((row.name, row.loss, row.tokens, row.train_flops) for row in ledger.observations()),
        sorted((point.curve_id, point.key, point.step, point.value) for point in ledger.points_after(limit=10_000)),
        sorted((row.state_id, row.status, row.end_step) for row in ledger.segments().values() if row.is_final),
        sorted((row.name, row.status) for row in ledger.runs()),
    )


def run_until_it_lives(bench: Bench, *faults: Fault) -> None:
    """The command typed again until the controller comes through."""
    left = list(faults)
    for _ in range(len(faults) + 2):
        try:
            bench.run(*left)
            return
        except DriverKilled:
            left = [fault for fault in bench.cluster.faults if fault.times > 0]
    raise AssertionError("the controller died more often than it was killed")


def die_and_go_on(folder: Path, dies_at: int, after_commit: bool) -> Bench:
    bench = Bench(folder / "study", *ONE_SIZE, cpus=(1.0,))
    bench.current_ledger = dying(bench, dies_at, after_commit)
    with pytest.raises(DriverKilled):
        bench.run()
    bench.current_ledger = bench.ledger
    bench.run()
    return bench


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("dies_at", [1, 2, 4, 6, 9, 14])
def test_death_at_a_commit_changes_no_record(
    dies_at: int, after_commit: bool, tmp_path: Path, undisturbed: Bench
) -> None:
    bench = die_and_go_on(tmp_path, dies_at, after_commit)
    assert records(bench) == records(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("after_commit", [False, True])
def test_death_at_every_commit_changes_no_record(after_commit: bool, tmp_path: Path, undisturbed: Bench) -> None:
    ledger = undisturbed.current_ledger
    assert isinstance(ledger, DyingLedger)
    for dies_at in range(1, ledger.commits + 1):
        bench = die_and_go_on(tmp_path / str(dies_at), dies_at, after_commit)
        assert records(bench) == records(undisturbed), f"death at commit {dies_at}"


@pytest.mark.parametrize("seed", range(10))
def test_random_faults_change_no_record(seed: int, tmp_path: Path, undisturbed: Bench) -> None:
    dice = random.Random(seed)
    # Two memory faults at most: the micro-batch of 8 can be halved three times.
    faults = [Fault(dice.choice(HARMLESS), dice.randint(1, LAST_STEP)) for _ in range(6)]
    memory = [fault for fault in faults if fault.kind == "out of memory"]
    for fault in memory[2:]:
        fault.kind = "kill"
    bench = Bench(tmp_path / "study", *ONE_SIZE, cpus=(1.0,))
    run_until_it_lives(bench, *faults)
    assert records(bench) == records(undisturbed), faults
