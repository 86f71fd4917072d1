"""A small study in memory, with curves and losses from a known law: what shipper, figures, report and UI are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.tracking import Dataset, RunStatus
from orchestrator.reading import PointRow
from orchestrator.report import Baseline, ForecastSummary, LawSummary, Report, ReportFigure
from orchestrator.shipper import ArtifactFile, Child, Ending, Stretch, StudyCard

SIZES = {"n14k": 14_000, "n45k": 45_000, "n140k": 140_000}
BUDGETS = {"d500k": 512_000, "d1M": 1_024_000, "d2M": 2_048_000}
TARGET_SIZE = ("n400k", 400_000)
BATCH_TOKENS = 1024
POINT_EVERY_STEPS = 25
DECAY_FRACTION = 0.2
STUDY_NAME = "small"
CREATED_MS = 1_750_000_000_000


def law_loss(params: float, tokens: float) -> float:
    """The loss that the study's law has: Chinchilla's form."""
    return 0.9 + 9.5 / params**0.28 + 60.0 / tokens**0.36


def curve_loss(params: float, tokens: float, decay_progress: float = 0.0) -> float:
    """A plausible training loss on the way: a transient, and what annealing will still bring."""
    transient = 3.0 * math.exp(-tokens / 40_000)
    return law_loss(params, tokens) * (1.06 - 0.06 * decay_progress) + transient


def final_loss(params: float, tokens: float) -> float:
    """The law with seed noise of half a per cent, the same at every call."""
    noise = np.random.default_rng([int(params), int(tokens)]).normal(0.0, 0.005)
    return law_loss(params, tokens) * math.exp(noise)


def observation(size: str, params: int, budget: str, tokens: int, role: str = "fit") -> dict[str, Any]:
    """One row of a fit, as `scaling observations` prints it."""
    loss = final_loss(params, tokens)
    return {
        "name": f"{size}-{budget}-s0",
        "role": role,
        "params": params,
        "tokens": tokens,
        "compute": 6.0 * params * tokens,
        "loss": loss,
        "loss_se": 0.004 * loss,
        "bits_per_byte": loss / math.log(2),
        "trunk": f"{size}-s0",
        "seed": 0,
    }


def observations(with_target: bool = True) -> list[dict[str, Any]]:
    rows = [
        observation(size, params, budget, tokens)
        for size, params in SIZES.items()
        for budget, tokens in BUDGETS.items()
    ]
    if with_target:
        rows += [observation(*TARGET_SIZE, budget, tokens, role="target") for budget, tokens in BUDGETS.items()]
    return rows


def predict(params: float, tokens: float) -> tuple[float, float, float]:
    """The law as a fit would give it, its interval widening beyond the fitted points."""
    value = law_loss(params, tokens)
    beyond = max(0.0, math.log(params * tokens / (140_000 * 2_048_000)))
    half = 0.008 + 0.012 * beyond
    return value, value * math.exp(-half), value * math.exp(half)


def _rows_of(curve_id: str, params: int, first: int, last: int, fork: int | None) -> list[tuple[Any, ...]]:
    """(curve, key, step, tokens, value) at every 25th step in (first, last]."""
    rows: list[tuple[Any, ...]] = []
    for step in range(first + POINT_EVERY_STEPS, last + 1, POINT_EVERY_STEPS):
        tokens = step * BATCH_TOKENS
        progress = 0.0 if fork is None else (step - fork) / (last - fork)
        rng = np.random.default_rng([params, step])
        rows.append((curve_id, "train/loss", step, tokens, curve_loss(params, tokens, progress) + rng.normal(0, 0.01)))
        rows.append((curve_id, "learning_rate", step, tokens, 0.012 * (1.0 - progress)))
        rows.append((curve_id, "grad_norm", step, tokens, 0.3 + 20 / step))
    return rows


@dataclass
class SmallStudy:
    """A `ShipSource` over plain lists; `record` adds points as a ledger would."""

    name: str = STUDY_NAME
    counted_by: str = "ledger-1"
    rows: list[PointRow] = field(default_factory=list)
    runs: list[Child] = field(default_factory=list)
    files: list[ArtifactFile] = field(default_factory=list)
    status: RunStatus = "RUNNING"
    params: Mapping[str, Any] = field(default_factory=lambda: {"design": "grid"})
    metrics: Mapping[str, float] = field(default_factory=dict)

    def record(self, curve_id: str, key: str, step: int, tokens: int, value: float) -> None:
        if any((row.curve_id, row.key, row.step) == (curve_id, key, step) for row in self.rows[-64:]):
            return
        sequence = len(self.rows) + 1
        self.rows.append(PointRow(sequence, curve_id, key, step, tokens, value, CREATED_MS + 10 * sequence))

    def change(self, run_id: str, **changes: Any) -> None:
        self.runs = [replace(run, **changes) if run.run_id == run_id else run for run in self.runs]

    def identity(self) -> str:
        return self.counted_by

    def study(self) -> StudyCard:
        return StudyCard(
            name=self.name,
            digest="3f" * 16,
            note="**What loss will a 400k-parameter model of Python source reach?**\n\n3 sizes x 3 budgets.",
            created_ms=CREATED_MS,
            params=self.params,
            tags={"scaling.question": "What loss will a 400k-parameter model of Python source reach?"},
            metrics=self.metrics,
            status=self.status,
            dataset=Dataset("python-stdlib", "ab" * 32, "python-stdlib", {"train_tokens": 29_000_000}),
        )

    def children(self) -> Sequence[Child]:
        return self.runs

    def heads(self) -> Mapping[str, int]:
        return {row.curve_id: row.sequence for row in self.rows}

    def points_after(self, curve_ids: Sequence[str], sequence: int, limit: int) -> Sequence[PointRow]:
        return [row for row in self.rows[sequence:] if row.curve_id in curve_ids][:limit]

    def artifacts(self) -> Sequence[ArtifactFile]:
        return self.files


def planned_study(sizes: Mapping[str, int] | None = None, budgets: Mapping[str, int] | None = None) -> SmallStudy:
    """A study of which nothing has run yet: one trunk a size and one run a cell."""
    study = SmallStudy()
    for size, params in (SIZES if sizes is None else sizes).items():
        study.runs.append(
            Child(f"trunk:{size}", f"{size}-s0 trunk", "trunk", (Stretch(f"{size}-trunk"),), {"N": params})
        )
        for budget, tokens in (BUDGETS if budgets is None else budgets).items():
            fork = round((1 - DECAY_FRACTION) * tokens / BATCH_TOKENS)
            study.runs.append(
                Child(
                    run_id=f"run:{size}-{budget}",
                    name=f"{size}-{budget}-s0",
                    role="fit",
                    stretches=(
                        Stretch(f"{size}-trunk", through_step=fork),
                        Stretch(f"{size}-{budget}-decay", after_step=fork),
                    ),
                    params={"N": params, "D": tokens, "C": 6.0 * params * tokens, "learning_rate": 0.012, "seed": 0},
                    train_flops_per_token=6.0 * params,
                )
            )
    return study


def finished_study(sizes: Mapping[str, int] | None = None, budgets: Mapping[str, int] | None = None) -> SmallStudy:
    """The same after all its runs: curves, endings and observations."""
    sizes = SIZES if sizes is None else sizes
    budgets = BUDGETS if budgets is None else budgets
    study = planned_study(sizes, budgets)
    for size, params in sizes.items():
        longest = round((1 - DECAY_FRACTION) * max(budgets.values()) / BATCH_TOKENS)
        for row in _rows_of(f"{size}-trunk", params, 0, longest, None):
            study.record(*row)
        study.change(f"trunk:{size}", status="FINISHED")
        for budget, tokens in budgets.items():
            fork = round((1 - DECAY_FRACTION) * tokens / BATCH_TOKENS)
            for row in _rows_of(f"{size}-{budget}-decay", params, fork, tokens // BATCH_TOKENS, fork):
                study.record(*row)
            seen = observation(size, params, budget, tokens)
            metrics = {
                "N": float(params),
                "D": float(tokens),
                "C": seen["compute"],
                "val/loss": seen["loss"],
                "val/loss_se": seen["loss_se"],
                "val/bits_per_byte": seen["bits_per_byte"],
            }
            ending = Ending(tokens, CREATED_MS + 10 * len(study.rows), metrics, seen)
            study.change(
                f"run:{size}-{budget}",
                status="FINISHED",
                ending=ending,
                tags={"scaling.quality": "good", "scaling.gang": "1 rank, cpu", "scaling.attempt": "1"},
            )
    study.status = "FINISHED"
    return study


def attach(study: SmallStudy, path: Path, folder: str = "") -> None:
    """Show a file with the study's parent run."""
    from jobs.storage import sha256_of_file

    study.files.append(ArtifactFile(path, sha256_of_file(path), folder))


def forecasts() -> list[dict[str, Any]]:
    """What was frozen for the target's runs, and what came out."""
    size, params = TARGET_SIZE
    rows = []
    for budget, tokens in BUDGETS.items():
        value, low, high = predict(params, tokens)
        row = {"name": f"{size}-{budget}-s0", "params": params, "tokens": tokens, "value": value, "lo": low, "hi": high}
        rows.append({**row, "level": 0.9, "outcome": final_loss(params, tokens)})
    return rows


def curves() -> list[dict[str, Any]]:
    """Whole training curves of the fitted runs, with the place where each leaves its trunk."""
    study = finished_study()
    drawn = []
    for child in study.runs:
        if child.role == "trunk":
            continue
        rows = [
            row
            for row in study.rows
            if row.key == "train/loss" and any(stretch.holds(row.curve_id, row.step) for stretch in child.stretches)
        ]
        drawn.append(
            {
                "name": child.name,
                "params": child.params["N"],
                "fork_tokens": (child.stretches[0].through_step or 0) * BATCH_TOKENS,
                "tokens": [row.tokens for row in rows],
                "loss": [row.value for row in rows],
            }
        )
    return drawn


def small_report(figures: Mapping[str, Path], **changes: Any) -> Report:
    """The page of the small study; `figures` are files by title."""
    content: dict[str, Any] = {
        "study": STUDY_NAME,
        "question": "What loss will a 400k-parameter model of Python source reach?",
        "summary": "The largest target reached 1.487 nats; 1.475 had been frozen before it was trained.",
        "plan": {"runs": "9 fitted, 3 held out", "compute": "9.6e12 FLOPs", "from scratch": "1.5e13 FLOPs"},
        "laws": [
            LawSummary(
                form="chinchilla",
                equation="L = E + A / N^alpha + B / D^beta",
                status="OK",
                reasons=[],
                parameters=[
                    ("E", 0.9, 0.7, 1.1),
                    ("A", 9.5, 8.0, 11.2),
                    ("alpha", 0.28, 0.25, 0.31),
                    ("B", 60.0, 41.0, 88.0),
                    ("beta", 0.36, 0.33, 0.39),
                ],
                level=0.95,
                rows_used=9,
                facts={"objective": "0.00012", "bootstrap": "1000 replicates"},
            )
        ],
        "forecasts": [
            ForecastSummary(
                name=row["name"],
                value=row["value"],
                lo=row["lo"],
                hi=row["hi"],
                level=row["level"],
                blind=True,
                outcome=row["outcome"],
                outcome_se=0.006,
                extrapolation="8.2x compute",
                baselines=[Baseline("dearest fitted run", 1.564), Baseline("power law in C", 1.51)],
            )
            for row in forecasts()
        ],
        "figures": [ReportFigure(title, "As drawn from the ledger.", path) for title, path in figures.items()],
        "runs": observations(),
        "excluded": [("n45k-d4M-s0", "diverged at step 1,204: loss 9.1 after 2.2")],
        "versions": {"scaling": "0.1.0", "torch": "2.13.0"},
        "study_yaml": "name: small\ndesign: {kind: grid}\n",
        "created": "2026-01-01 12:00 UTC",
    }
    return Report(**{**content, **changes})
