"""Arranges a small study with its ledger, a fake cluster and a fake clock, and carries it out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.spec import EvaluationSpec
from jobs.storage import StudyPaths
from orchestrator.controller import run_study
from orchestrator.database import sqlite_url
from orchestrator.events import PROGRESS, Event
from orchestrator.ledger import Ledger
from orchestrator.outcome import StudyOutcome
from orchestrator.plan import Plan, build_plan
from tests.orchestrator.fake_cluster import FakeClock, FakeCluster, Fault
from tests.studies import small_study

TOKENS = "design.tokens=[0.2M, 0.4M]"


def small_plan(*overrides: str) -> Plan:
    """Two fitted sizes and a held-out one, at two budgets on shared trunks, unless overridden."""
    return build_plan(small_study(TOKENS, *overrides), corpus_digest="a corpus")


def freeze_all(ledger: Ledger, plan: Plan) -> None:
    """Freezes some forecast of every target."""
    targets = [run.name for run in plan.runs if run.role == "target"]
    ledger.freeze_forecast({"targets": targets, "rows": len(ledger.observations())}, targets, 0.0)


class Bench:
    """One study on one ledger; `run` may be called again, as a user would type the command again."""

    def __init__(self, folder: Path, *overrides: str, cpus: Sequence[float] = (2.0,)) -> None:
        self.paths = StudyPaths(folder)
        self.url = sqlite_url(self.paths.ledger)
        self.clock = FakeClock()
        self.cpus = cpus
        self.plan = small_plan(*overrides)
        self.events: list[Event] = []
        self.cluster = FakeCluster(self.clock, cpus)
        self.frozen_at: list[int] = []

        # The controller's own; `ledger` is what another process would see.
        self.current_ledger = self.ledger

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.url, create=True, study_name=self.plan.study_name)

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if event.kind != PROGRESS]

    def outcomes(self) -> list[str]:
        """How the attempts ended, by number."""
        return [attempt.outcome for attempt in self.ledger.attempts()]

    def losses(self) -> dict[str, float]:
        return {row.name: row.loss for row in self.ledger.observations()}

    def run(
        self,
        *faults: Fault,
        stop_at: tuple[str, int] | None = None,
        freeze: Any = None,
        overrides: Sequence[str] | None = None,
        listen: Callable[[Event], None] | None = None,
    ) -> StudyOutcome:
        """Carry out what is left. `stop_at`: set the stop event when the n-th event of a kind is told."""
        if overrides is not None:
            self.plan = small_plan(*overrides)
        stop = threading.Event()
        self.cluster = FakeCluster(self.clock, self.cpus, faults)
        told: list[str] = []

        def hear(event: Event) -> None:
            self.events.append(event)
            if listen is not None:
                listen(event)
            told.append(event.kind)
            if stop_at is not None and told.count(stop_at[0]) >= stop_at[1]:
                stop.set()

        def freeze_now(ledger: Ledger, plan: Plan) -> None:
            self.frozen_at.append(len(ledger.observations()))
            (freeze or freeze_all)(ledger, plan)

        ledger = self.current_ledger
        ledger.register_plan(self.plan, self.clock.wall_s())
        return run_study(
            self.plan,
            ledger,
            self.cluster,
            self.paths,
            Path("corpus"),
            EvaluationSpec(tokens=1000),
            freeze_now,
            clock=self.clock,
            on_event=hear,
            stop=stop,
        )
