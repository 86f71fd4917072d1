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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from jobs import tracking
from jobs.tracking import Dataset, Point, RunStatus, TrackedRun, Tracker, TrackingError
from orchestrator.reading import PointRow
from orchestrator.shared_view import VIEW_TAG, shared_view

logger = logging.getLogger(__name__)

MARK_TAG = "scaling.shipped"
ARTIFACTS_TAG = "scaling.artifacts"
DATASET_TAG = "scaling.dataset"
DIGEST_TAG = "scaling.study_digest"
ARTIFACT_DIGEST_CHARS = 16

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
    """What one pass has sent. `conflicts` are runs whose params in the store differ from ours: left alone, and told."""

    points: int = 0
    runs_made: int = 0
    artifacts: int = 0
    conflicts: tuple[str, ...] = ()


class Shipper:
    """Brings one store up to date with one source, remembering between passes what the store has."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._forget()

    def ship(self, source: ShipSource) -> Shipped:
        """One pass: send everything that the store lacks. Raises TrackingError; what was sent until then stays sent."""
        try:
            return self._ship(source)
        except TrackingError:
            # Someone may have deleted a run over there, or the store was changed: look again the next time.
            self._forget()
            raise

    def _forget(self) -> None:
        self._experiment_id = ""
        self._runs: dict[str, TrackedRun] = {}
        self._sent: dict[str, Child | StudyCard] = {}
        self._marks: dict[str, int] = {}

    def _ship(self, source: ShipSource) -> Shipped:
        card = source.study()
        identity = source.identity()
        experiment_id = self._open(card)
        known = len(self._runs)
        parent = self._ensure(experiment_id, f"study:{card.name}", card.name, "study", card.created_ms)
        conflicts = []
        if self._sent.get(parent_id := f"study:{card.name}") != card:
            # A study may be extended, and a param cannot change: a setting that has goes into a tag of its name.
            changed = {
                f"scaling.study.{key}": value for key, value in self._conflicting(parent_id, card.params).items()
            }
            self._describe(parent_id, card.params, {**card.tags, **changed, DIGEST_TAG: card.digest})
            self._ship_dataset(parent, card.dataset)
            self._ship_headlines(parent_id, card.metrics)
            self._sent[parent_id] = card
        points = 0
        heads = source.heads()
        for rank, child in enumerate(source.children()):
            # MLflow shows the newest first: start times a millisecond apart keep the order of the plan.
            self._ensure(
                experiment_id, child.run_id, child.name, child.role, card.created_ms - 1 - rank, parent.mlflow_id
            )
            points += self._ship_points(source, identity, heads, child)
            if self._sent.get(child.run_id) != child:
                conflicts += [
                    f"{child.name}: {key} is {self._runs[child.run_id].params[key]} in MLflow and {value} here"
                    for key, value in self._conflicting(child.run_id, child.params).items()
                ]
                self._describe(child.run_id, child.params, child.tags)
                self._ship_dataset(self._runs[child.run_id], card.dataset)
                self._ship_ending(child)
                self._sent[child.run_id] = child
        artifacts = self._ship_artifacts(parent_id, source.artifacts())
        self._ship_status(parent_id, card.status, None)
        return Shipped(points, len(self._runs) - known, artifacts, tuple(conflicts))

    def _open(self, card: StudyCard) -> str:
        if not self._experiment_id:
            tags = {tracking.NOTE_TAG: card.note, tracking.STUDY_TAG: card.name, VIEW_TAG: shared_view()}
            self._experiment_id = self._tracker.ensure_experiment(card.name, tags)
            self._runs = self._tracker.runs(self._experiment_id)
        return self._experiment_id

    def _ensure(
        self, experiment_id: str, run_id: str, name: str, role: str, start_ms: int, parent: str | None = None
    ) -> TrackedRun:
        if run_id not in self._runs:
            self._runs[run_id] = self._tracker.ensure_run(
                experiment_id, run_id, name, parent=parent, tags={tracking.ROLE_TAG: role}, start_ms=start_ms
            )
        return self._runs[run_id]

    def _conflicting(self, run_id: str, params: Mapping[str, Any]) -> dict[str, str]:
        """Params, as we have them, that the store has otherwise."""
        stored = self._runs[run_id].params
        shown = {key: tracking.shown(value) for key, value in params.items()}
        return {key: value for key, value in shown.items() if stored.get(key, value) != value}

    def _describe(self, run_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Send params and tags that the store lacks; params that it has, also otherwise, are left alone."""
        run = self._runs[run_id]
        new_params = {key: tracking.shown(value) for key, value in params.items() if key not in run.params}
        if new_params:
            self._tracker.log_params(run.mlflow_id, new_params)
        self._set_tags(run_id, tags)
        self._remember(run_id, params={**run.params, **new_params})

    def _ship_headlines(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Values of the study as a whole. They may change: one that the store has otherwise gets a new point."""
        run = self._runs[run_id]
        now_ms = time.time_ns() // 1_000_000
        new = {key: value for key, value in metrics.items() if run.metrics.get(key) != value}
        self._tracker.log_points(run.mlflow_id, [Point(key, value, 0, now_ms) for key, value in new.items()])
        self._remember(run_id, metrics={**run.metrics, **new})

    def _ship_points(self, source: ShipSource, identity: str, heads: Mapping[str, int], child: Child) -> int:
        curve_ids = [stretch.curve_id for stretch in child.stretches]
        head = max((heads.get(curve_id, 0) for curve_id in curve_ids), default=0)
        run = self._runs[child.run_id]
        mark = self._marks.setdefault(child.run_id, _mark_of(run, identity))
        sent = 0
        while mark < head:
            rows = source.points_after(curve_ids, mark, ROWS_PER_READ)
            last = rows[-1].sequence if rows else head
            mark = last if len(rows) == ROWS_PER_READ else max(head, last)
            points = [
                point
                for row in rows
                if any(stretch.holds(row.curve_id, row.step) for stretch in child.stretches)
                for point in _points_of(row, child)
            ]
            if points:
                non_finite = self._tracker.log_points(run.mlflow_id, points)
                self._tell_non_finite(child.run_id, non_finite)
                # After the points: a mark never runs ahead of what it marks.
                self._set_tags(child.run_id, {MARK_TAG: f"{identity}:{mark}"})
                sent += len(points)
            self._marks[child.run_id] = mark
        return sent

    def _ship_ending(self, child: Child) -> None:
        run = self._runs[child.run_id]
        ending = child.ending
        if ending is not None:
            points = [Point(key, value, ending.tokens, ending.time_ms) for key, value in ending.metrics.items()]
            self._tell_non_finite(child.run_id, self._tracker.log_points(run.mlflow_id, points))
            if ending.observation is not None:
                text = json.dumps(dict(ending.observation), sort_keys=True)
                self._set_tags(child.run_id, {tracking.OBSERVATION_TAG: text})
        self._ship_status(child.run_id, child.status, None if ending is None else ending.time_ms)

    def _ship_status(self, run_id: str, status: RunStatus, end_ms: int | None) -> None:
        run = self._runs[run_id]
        if run.status != status:
            self._tracker.set_status(run.mlflow_id, status, end_ms)
            self._remember(run_id, status=status)

    def _ship_dataset(self, run: TrackedRun, dataset: Dataset | None) -> None:
        if dataset is None or run.tags.get(DATASET_TAG) == dataset.digest:
            return
        self._tracker.log_dataset(run.mlflow_id, dataset)
        self._set_tags(run.tags[tracking.RUN_ID_TAG], {DATASET_TAG: dataset.digest})

    def _ship_artifacts(self, run_id: str, files: Iterable[ArtifactFile]) -> int:
        run = self._runs[run_id]
        stored: dict[str, str] = json.loads(run.tags.get(ARTIFACTS_TAG, "{}"))
        sent = 0
        for file in files:
            if stored.get(file.name) == file.digest[:ARTIFACT_DIGEST_CHARS]:
                continue
            self._tracker.log_artifact(run.mlflow_id, file.path, file.folder)
            stored[file.name] = file.digest[:ARTIFACT_DIGEST_CHARS]
            sent += 1
        if sent:
            self._set_tags(run_id, {ARTIFACTS_TAG: json.dumps(stored, sort_keys=True)})
        return sent

    def _tell_non_finite(self, run_id: str, keys: set[str]) -> None:
        before = self._runs[run_id].tags.get(tracking.NON_FINITE_TAG, "")
        told = keys | set(filter(None, before.split(", ")))
        self._set_tags(run_id, {tracking.NON_FINITE_TAG: ", ".join(sorted(told))} if told else {})

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        run = self._runs[run_id]
        new = {key: value for key, value in tags.items() if run.tags.get(key) != value}
        if new:
            self._tracker.set_tags(run.mlflow_id, new)
            self._remember(run_id, tags={**run.tags, **new})

    def _remember(self, run_id: str, **changes: Any) -> None:
        self._runs[run_id] = replace(self._runs[run_id], **changes)


def ship_once(source: ShipSource, tracker: Tracker) -> Shipped:
    """One pass of a new shipper: all that the store lacks. Raises TrackingError."""
    return Shipper(tracker).ship(source)


def follow(
    source: ShipSource,
    open_tracker: Callable[[], Tracker],
    should_stop: Callable[[], bool],
    wait: Callable[[float], None],
) -> bool:
    """Ship until told to stop, then once more; whether that last pass sent everything.

    A store that fails is opened anew after a pause that doubles up to a minute; `wait` may return early.
    """
    shipper: Shipper | None = None
    pause_s = PAUSE_S
    told: set[str] = set()
    while True:
        last = should_stop()
        try:
            shipper = shipper or Shipper(open_tracker())
            shipped = shipper.ship(source)
        except TrackingError as error:
            logger.warning("MLflow: %s; nothing is lost, next try in %.0f s", error, pause_s)
            shipper = None
            complete = False
            wait_s, pause_s = pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            complete = not shipped.conflicts
            for conflict in set(shipped.conflicts) - told:
                logger.warning("MLflow: %s", conflict)
            told |= set(shipped.conflicts)
            wait_s = pause_s = PAUSE_S
        if last:
            return complete
        wait(wait_s)


def _points_of(row: PointRow, child: Child) -> list[Point]:
    """The row's own point; beside a training loss also the other x-axes that a chart may take."""
    points = [Point(row.key, row.value, row.tokens, row.time_ms)]
    if row.key == tracking.TRAIN_LOSS:
        points.append(Point(tracking.OPTIMIZER_STEP, float(row.step), row.tokens, row.time_ms))
        if child.train_flops_per_token:
            train_flops = row.tokens * child.train_flops_per_token
            points.append(Point(tracking.TRAIN_FLOPS, train_flops, row.tokens, row.time_ms))
    return points


def _mark_of(run: TrackedRun, identity: str) -> int:
    """How far this run has got by the counting of this ledger: 0 for any other."""
    counted_by, _, sequence = run.tags.get(MARK_TAG, "").rpartition(":")
    return int(sequence) if counted_by == identity else 0
