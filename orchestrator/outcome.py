"""How a study stands when its controller returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.plan import Plan
from orchestrator.reading import LedgerReader


@dataclass(frozen=True)
class StudyOutcome:
    """How a study stands when its controller returns. `withheld` targets had no frozen forecast."""

    finished: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    diverged: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    interrupted: bool = False

    @classmethod
    def read(cls, plan: Plan, ledger: LedgerReader, stopped: bool) -> StudyOutcome:
        """What the ledger says of the plan's runs."""
        planned = {run.name for run in plan.runs}
        runs = [run for run in ledger.runs() if run.name in planned]
        frozen = {target for forecast in ledger.forecasts() for target in forecast.targets}
        waiting = [run for run in runs if run.status == "waiting"]
        withheld = tuple(run.name for run in waiting if run.role == "target" and run.name not in frozen)
        return cls(
            finished=tuple(run.name for run in runs if run.status == "finished"),
            failed={run.name: run.reason for run in runs if run.status == "failed"},
            diverged={run.name: run.reason for run in runs if run.status == "diverged"},
            withheld=withheld,
            waiting=tuple(run.name for run in waiting if run.name not in withheld),
            interrupted=stopped and bool(waiting),
        )
