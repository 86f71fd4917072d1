"""Sends what the ledger knows to MLflow: the only writer there, safe to stop anywhere and to start again.

How far each MLflow run has got is written on that run (a tag), together with the identity of the ledger that counted.
So a run that was deleted there, a store that was changed, or a ledger that was rebuilt just means that points are sent
again, which MLflow takes as nothing new; a run that joins a finished trunk gets the trunk's points from the beginning.
A store that does not answer is tried again later and never disturbs the study.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jobs import tracking
from jobs.tracking import Dataset, Point, RunStatus, TrackedRun, Tracker, TrackingError

logger = logging.getLogger(__name__)

MARK_TAG = "scaling.shipped"
ARTIFACTS_TAG = "scaling.artifacts"
DATASET_TAG = "scaling.dataset"

# Rows of the ledger read at a time; each may bring two more points (optimizer step, FLOPs).
ROWS_PER_READ = 2000
PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Stretch:
    """The part of a curve that lies on a run's path: optimizer steps in (after_step, through_step]; None is no end."""

    curve_id: str
    after_step: int = 0
    through_step: int | None = None

    def holds(self, curve_id: str, step: int) -> bool:
        if curve_id != self.curve_id or step <= self.after_step:
            return False
        return self.through_step is None or step <= self.through_step


@dataclass(frozen=True)
class PointRow:
    """One recorded value of the ledger. `sequence` grows with every row that the ledger takes in."""

    sequence: int
    curve_id: str
    key: str
    step: int
    tokens: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class Ending:
    """How a run came out: summary metrics at its last token, and its row of a fit (None: it gave none)."""

    tokens: int
    time_ms: int
    metrics: Mapping[str, float]
    observation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Child:
    """One nested MLflow run: a trunk, or a run of the study with its whole curve from step 0."""

    run_id: str
    name: str
    role: str
    stretches: tuple[Stretch, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    status: RunStatus = "SCHEDULED"
    train_flops_per_token: float = 0.0
    ending: Ending | None = None


@dataclass(frozen=True)
class StudyCard:
    """The experiment and its parent run. `note` (Markdown) is what a person reads first in the UI."""

    name: str
    digest: str
    note: str
    created_ms: int
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: RunStatus = "RUNNING"
    dataset: Dataset | None = None


@dataclass(frozen=True)
class ArtifactFile:
    """A file to show with the parent run. `digest` tells whether the store already has this content."""

    path: Path
    digest: str
    folder: str = ""

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


class ShipSource(Protocol):
    """What the shipper reads. The ledger answers it; nothing is ever written back."""

    def identity(self) -> str:
        """Name of this counting of sequences; a rebuilt ledger has another."""
        ...

    def study(self) -> StudyCard: ...

    def children(self) -> Sequence[Child]:
        """Trunks and runs in the order in which the plan shows them."""
        ...

    def heads(self) -> Mapping[str, int]:
        """Largest sequence of each curve that has points."""
        ...

    def points_after(self, curve_ids: Sequence[str], sequence: int, limit: int) -> Sequence[PointRow]:
        """Rows of these curves beyond a sequence, by sequence; the first of each (curve, key, step) only."""
        ...

    def artifacts(self) -> Sequence[ArtifactFile]: ...


@dataclass(frozen=True)
class Shipped:
    """What one pass has sent."""

    points: int = 0
    runs_made: int = 0
    artifacts: int = 0


class Shipper:
    """Brings one store up to date with one source, remembering between passes what the store has."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._experiment_id = ""
        self._runs: dict[str, TrackedRun] = {}
        self._sent: dict[str, Child] = {}

    def ship(self, source: ShipSource) -> Shipped:
        """One pass: everything that the store lacks. Raises TrackingError; whatever was sent stays sent."""
        card = source.study()
        identity = source.identity()
        self._open(card)
        known = len(self._runs)
        parent = self._ship_parent(card)
        heads = source.heads()
        points = 0
        children = source.children()
        # MLflow shows the newest run first; the plan's order is kept by start times a millisecond apart.
        for rank, child in enumerate(children):
            run = self._ensure(child.run_id, child.name, card.created_ms - 1 - rank, parent.mlflow_id, child.role)
            points += self._ship_child(source, identity, heads, child, run)
        made = len(self._runs) - known
        artifacts = self._ship_artifacts(parent.run_id, source.artifacts())
        self._ship_status(parent.run_id, card.status, None)
        return Shipped(points, made, artifacts)

    def _open(self, card: StudyCard) -> None:
        if self._experiment_id:
            return
        tags = {
            tracking.NOTE_TAG: card.note,
            tracking.STUDY_TAG: card.name,
            tracking.EXPERIMENT_KIND_TAG: tracking.EXPERIMENT_KIND,
        }
        experiment_id = self._tracker.ensure_experiment(card.name, tags)
        self._runs = self._tracker.runs(experiment_id)
        self._experiment_id = experiment_id
