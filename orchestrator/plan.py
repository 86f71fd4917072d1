"""The plan of a study: its runs, the trie of their segments, and what they cost. Pure.

Runs with a warmup-stable-decay schedule whose recipe, size and seed agree share their trunk: it is cut wherever one of
them forks. A state is named by its past alone (jobs.identity), so a budget added later or between two others renames
nothing and a longer horizon continues the trunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cluster.resources import Inventory
from jobs.accounting import ParameterCount, train_flops_per_token
from jobs.identity import curve_fingerprint, state_fingerprint
from jobs.spec import Execution, RunSpec, Segment, SegmentKind
from orchestrator.designs import Point, design_sizes, expand
from orchestrator.executions import choose_device, choose_execution
from orchestrator.names import run_names, trunk_name
from orchestrator.recipes import resolve_recipe
from orchestrator.shapes import SizedShape, shape_for
from orchestrator.throughput import Throughput

if TYPE_CHECKING:
    from orchestrator.study import Study

Role = Literal["fit", "target"]

# Stands for the digest of a corpus that is not prepared yet: fingerprints made with it are provisional.
UNPREPARED = "unprepared"

# A kept state holds the fp32 master weight and two Adam moments of every parameter.
STATE_BYTES_PER_PARAM = 12


@dataclass(frozen=True)
class PlannedRun:
    """One point of the study. `train_flops` is the whole path 0 -> D as if trained alone, exact convention."""

    name: str
    role: Role
    spec: RunSpec
    segments: tuple[str, ...]
    params: ParameterCount
    tokens: int
    train_flops: float
    requested_params: int
    requested_tokens: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PlannedSegment:
    """One segment of the trie. `spec` is any run through it; `train_flops` counts this segment alone.

    A segment with role `target` is used by held-out runs only and may not open before the forecast is frozen.
    """

    segment: Segment
    name: str
    spec: RunSpec
    runs: tuple[str, ...]
    role: Role
    is_final: bool
    train_flops: float
    execution: Execution
    estimated_s: float

    @property
    def state_bytes(self) -> int:
        """Disk that the state at the segment's end takes while it is kept."""
        return STATE_BYTES_PER_PARAM * count_total(self.spec)


@dataclass(frozen=True)
class Plan:
    """All runs and the trie of segments, parents before children."""

    study_name: str
    study_digest: str
    corpus_digest: str
    runs: tuple[PlannedRun, ...]
    segments: dict[str, PlannedSegment]
    from_scratch_flops: float
    shared_flops: float
    estimate_source: Literal["measured", "guess"]

    @property
    def retained_bytes(self) -> int:
        """Disk of all kept states. Retention rule: the state at the end of every segment is kept.

        These are the fork points (a new budget between two others starts there), each trunk's end (a longer horizon
        continues it) and the finals (they can be evaluated anew). Checkpoints inside a segment are dropped at its end.
        """
        return sum(planned.state_bytes for planned in self.segments.values())

    @property
    def device_hours(self) -> float:
        """Estimated hours of one device (a GPU, or one rank's CPU threads), all ranks counted."""
        return sum(planned.estimated_s * planned.execution.world_size for planned in self.segments.values()) / 3600

    @property
    def longest_path_s(self) -> float:
        """Estimated seconds of the longest chain of segments: no number of devices is faster."""
        return max(self.path_s(run) for run in self.runs)

    def path_s(self, run: PlannedRun) -> float:
        """Estimated seconds of one run from its first segment to its last."""
        return sum(self.segments[state_id].estimated_s for state_id in run.segments)

    def execution_of(self, run: PlannedRun) -> Execution:
        """How the run's own last segment is carried out."""
        return self.segments[run.segments[-1]].execution


def build_plan(
    study: Study,
    corpus_digest: str | None = None,
    vocab_size: int | None = None,
    inventory: Inventory | None = None,
    throughput: Throughput | None = None,
) -> Plan:
    """The plan of a study.

    Without a prepared corpus (`corpus_digest` None) fingerprints are provisional. `vocab_size` is the prepared
    corpus's, checked against the model's. Raises ValueError where it is larger, where no micro-batch fits the memory,
    or where the kept states exceed execution.disk_gb.
    """
    _check_vocabulary(study, vocab_size)
    runs = [_Path(study, point, sized, corpus_digest or UNPREPARED) for point, sized in _points(study)]
    names = run_names([path.point for path in runs])
    targets = _target_sizes(study)
    cuts = _fork_steps(runs)
    speeds = throughput or Throughput()
    device = choose_device(study.execution, inventory)
    raise NotImplementedError
