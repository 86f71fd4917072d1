"""A study that was trained on paper: a real plan in a real ledger, with losses from a known law and a little noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jobs.journal import JournalLine
from jobs.observation import Observation
from jobs.spec import Execution
from jobs.storage import AttemptPaths, Home
from orchestrator.database import sqlite_url
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRun, build_plan
from orchestrator.study import Study
from tests.studies import TEXT, small_study

# Enough cells for a fit, one form and few replicates: how fits are made is tested elsewhere.
OVERRIDES = (
    "design.sizes=[12k, 25k, 50k, 100k, 400k]",
    "fit.bootstrap=10",
    "fit.forms=[chinchilla]",
    "fit.form=chinchilla",
    "fit.hold_out=none",
    "forecast.forms=[chinchilla]",
    "execution.launcher=inline",
)
NOW = 1_750_000_000.0

LossOf = Callable[[float, float], float]


def known_law(params: float, tokens: float) -> float:
    """Chinchilla's form, far from its floor, so that every parameter can be seen."""
    return 0.9 + 9.5 / params**0.28 + 60.0 / tokens**0.36


class PaperStudy:
    """`finish` ends runs as a controller would; the folder is a SCALING_HOME."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.home = Home(folder)
        self.overrides = (*OVERRIDES, *overrides)
        self.study: Study = small_study(*self.overrides)
        self.paths = self.home.study(self.study.name)
        self.plan: Plan = build_plan(self.study, "a corpus")
        self.ledger = Ledger.open(sqlite_url(self.paths.ledger), create=True, study_name=self.study.name)
        self.ledger.register_plan(self.plan, NOW)

    def extended(self, *overrides: str) -> PaperStudy:
        """The same study with another design on the same ledger."""
        return PaperStudy(self.home.root, *overrides)

    def runs(self, role: str = "fit") -> list[PlannedRun]:
        return [run for run in self.plan.runs if run.role == role]

    def finish(self, runs: Sequence[PlannedRun] | None = None, loss_of: LossOf = known_law) -> PaperStudy:
        """End runs (otherwise all fitted ones) with losses of a law, 0.2 % of noise on top."""
        # One transaction for all: a test need not wait for the disk once a run.
        with self.ledger.transaction():
            for run in self.runs() if runs is None else runs:
                attempt = self.train(run)
                noise = np.random.default_rng([run.params.matmul, run.tokens]).normal(0.0, 0.002)
                loss = loss_of(run.params.matmul, run.tokens) * math.exp(noise)
                self.ledger.record_final(run.name, observation_of(run, loss), attempt, NOW)
        return self

    def train(self, run: PlannedRun) -> int:
        """Accept every state on a run's path, with two points a segment; returns the attempt."""
        stored = self.ledger.segments(run.segments)
        open_ids = [state_id for state_id in run.segments if stored[state_id].status != "accepted"]
        execution = self.plan.segments[run.segments[-1]].execution
        attempt = self.claim(open_ids, execution)
        for state_id in open_ids:
            segment = self.plan.segments[state_id].segment
            for step in (segment.start_step + 1, segment.end_step):
                tokens = step * run.spec.batch_tokens
                data = {"train/loss": 3.0 + 1.0 / step, "train/tokens_per_s": 5000.0}
                line = JournalLine(
                    kind="metrics", curve_id=segment.curve_id, step=step, tokens=tokens, time_ms=step, data=data
                )
                self.ledger.record_points(segment.curve_id, [line])
            self.ledger.accept_state(state_id, attempt, f"{state_id} on disk", "digest", segment.end_step, NOW)
        self.ledger.end_attempt(attempt, "finished", NOW)
        return attempt

    def claim(self, state_ids: Sequence[str], execution: Execution | None = None) -> int:
        """An attempt that has begun, with a log."""

        def folder_of(number: int) -> str:
            paths = AttemptPaths(self.paths.attempts / f"chain-a{number:03d}")
            paths.logs.mkdir(parents=True)
            paths.log(0).write_text(f"log of attempt {number}\n")
            return str(paths.root)

        return self.ledger.claim_attempt(state_ids, "gang-1", NOW, execution=execution, folder_of=folder_of)

    def write_file(self, folder: Path) -> str:
        """The study as a file; `overrides` belong to it."""
        path = folder / "small.yaml"
        path.write_text(TEXT)
        return str(path)


def observation_of(run: PlannedRun, loss: float) -> Observation:
    """A final observation of a planned run."""
    return Observation(
        name=run.name,
        role=run.role,
        state_id=run.segments[-1],
        trunk=f"trunk of {run.spec.shape.width}",
        seed=run.spec.seed,
        data_seed=run.spec.data_seed,
        params=run.params.matmul,
        total_params=run.params.total,
        non_embedding_params=run.params.non_embedding,
        tokens=run.tokens,
        train_flops=run.train_flops,
        loss=loss,
        loss_se=0.01,
        bits_per_byte=loss / math.log(2),
        evaluation_tokens=1000,
        evaluation_digest="an evaluation",
        document_losses_path="losses",
        document_losses_sha256="0" * 64,
        world_size=1,
    )
