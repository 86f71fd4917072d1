"""The plan of a study: its runs, the trie of their segments, and what they cost. Pure.

Runs with a warmup-stable-decay schedule whose recipe, size and seed agree share their trunk: it is cut wherever one of
them forks. A state is named by its past alone (jobs.identity), so a budget added later or between two others renames
nothing and a longer horizon continues the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cluster.resources import Inventory
from jobs.accounting import ParameterCount, count_parameters, train_flops_per_token
from jobs.identity import curve_fingerprint, state_fingerprint
from jobs.spec import Execution, RunSpec, Segment, SegmentKind, Shape
from orchestrator.checks import held_out_sizes, planned_points
from orchestrator.designs import Point, design_sizes
from orchestrator.executions import BYTES_PER_GB, choose_device, choose_execution, most_ranks_of
from orchestrator.names import folder_name, run_name, trunk_name
from orchestrator.numbers import short_number
from orchestrator.recipes import RunRecipe, resolve_recipe
from orchestrator.shapes import SizedShape, shape_for
from orchestrator.throughput import Source, Throughput

if TYPE_CHECKING:
    from orchestrator.study import Study

Role = Literal["fit", "target"]

# Stands for the digest of a corpus that is not prepared yet: fingerprints made with it are provisional.
UNPREPARED = "unprepared"

# A kept state holds the fp32 master weight and two Adam moments of every parameter.
STATE_BYTES_PER_PARAM = 12

# Rounding D to whole steps by more than this is worth a line.
NOTED_TOKEN_DEVIATION = 0.005


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
        return STATE_BYTES_PER_PARAM * count_parameters(self.spec.shape).total

    @property
    def folder_name(self) -> str:
        """The name as a folder may have it."""
        return folder_name(self.name)


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
    estimate_source: Source
    price_per_device_hour: float | None = None

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
    def price(self) -> float | None:
        """Money for all device hours, where the study file gives a price."""
        return None if self.price_per_device_hour is None else self.price_per_device_hour * self.device_hours

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

    Without a prepared corpus (`corpus_digest` None) fingerprints are provisional. `vocab_size` is that of the prepared
    corpus, which the model must hold. Raises ValueError where it does not, where no micro-batch fits the memory, or
    where the kept states exceed execution.disk_gb.
    """
    _check_vocabulary(study, vocab_size)
    builder = _Builder(study, corpus_digest or UNPREPARED, inventory, throughput or Throughput())
    plan = builder.plan()
    _check_disk(study, plan)
    return plan


@dataclass(frozen=True)
class _Path:
    """A point resolved to a spec, before its path is cut into segments."""

    point: Point
    name: str
    role: Role
    sized: SizedShape
    recipe: RunRecipe
    spec: RunSpec

    @property
    def trunk_id(self) -> str | None:
        """Name of the open-ended trunk that the run forks from; None for a run that shares nothing."""
        return curve_fingerprint(self.spec, self.recipe.fork_step) if self.recipe.decay_steps else None


class _Builder:
    """Cuts every path at the forks of its trunk and merges equal states."""

    def __init__(self, study: Study, corpus_digest: str, inventory: Inventory | None, throughput: Throughput) -> None:
        self.study = study
        self.corpus_digest = corpus_digest
        self.device = choose_device(study.execution, inventory)
        self.throughput = throughput
        self.sources: set[Source] = set()
        self.segments: dict[str, PlannedSegment] = {}
        self.executions: dict[tuple[Shape, int], Execution] = {}
        # A trunk and a step on it name a state, so runs through it need not be hashed again.
        self.trunk_states: dict[tuple[str, int], str] = {}

    def plan(self) -> Plan:
        paths = self._paths()
        trunks = [path.trunk_id for path in paths]
        forks: dict[str, set[int]] = {}
        for path, trunk in zip(paths, trunks, strict=True):
            if trunk is not None:
                forks.setdefault(trunk, set()).add(path.recipe.fork_step)
        runs = [
            self._run(path, trunk, sorted(forks.get(trunk or "", ())))
            for path, trunk in zip(paths, trunks, strict=True)
        ]
        return Plan(
            study_name=self.study.name,
            study_digest=self.study.digest,
            corpus_digest=self.corpus_digest,
            runs=tuple(runs),
            segments=self.segments,
            from_scratch_flops=sum(run.train_flops for run in runs),
            shared_flops=sum(planned.train_flops for planned in self.segments.values()),
            estimate_source="measured" if self.sources == {"measured"} else "guess",
            price_per_device_hour=self.study.execution.price_per_device_hour,
        )

    def _paths(self) -> list[_Path]:
        study = self.study
        rule = study.model.shape_rule(study.vocab_size)
        shapes = {size: shape_for(size, rule) for size in design_sizes(study.design)}
        points = planned_points(study, shapes)
        targets = held_out_sizes(study)
        return [self._path(point, "target" if point.size in targets else "fit", shapes[point.size]) for point in points]

    def _path(self, point: Point, role: Role, sized: SizedShape) -> _Path:
        study = self.study
        recipe = resolve_recipe(study.recipe, study.model.sequence_length, sized.params.matmul, point.tokens)
        spec = RunSpec(
            shape=sized.shape,
            parametrization=study.model.parametrization_spec(),
            recipe=recipe.recipe,
            schedule=recipe.schedule(),
            corpus_digest=self.corpus_digest,
            precision=study.recipe.precision,
            seed=point.seed,
            # Replicates vary the order of the data too.
            data_seed=point.seed,
        )
        return _Path(point, run_name(point), role, sized, recipe, spec)

    def _run(self, path: _Path, trunk: str | None, forks: list[int]) -> PlannedRun:
        spec, end = path.spec, path.spec.total_steps
        state_ids: list[str] = []
        start, parent = 0, None
        for fork in forks:
            if trunk is not None and fork <= path.recipe.fork_step:
                if (trunk, fork) not in self.trunk_states:
                    self.trunk_states[trunk, fork] = state_fingerprint(spec, fork)
                state_id = self.trunk_states[trunk, fork]
                self._pass(path, state_id, "trunk", start, fork, parent)
                state_ids.append(state_id)
                start, parent = fork, state_id
        final = state_fingerprint(spec, end)
        self._pass(path, final, "whole" if trunk is None else "decay", start, end, parent)
        state_ids.append(final)
        return PlannedRun(
            name=path.name,
            role=path.role,
            spec=spec,
            segments=tuple(state_ids),
            params=path.sized.params,
            tokens=spec.horizon_tokens,
            train_flops=float(train_flops_per_token(spec.shape) * spec.horizon_tokens),
            requested_params=path.point.size,
            requested_tokens=path.point.tokens,
            notes=self._notes(path),
        )

    def _pass(self, path: _Path, state_id: str, kind: SegmentKind, start: int, end: int, parent: str | None) -> None:
        """Leads a run through the segment that ends in a state; the segment is made where it is new."""
        known = self.segments.get(state_id)
        if known is not None:
            role: Role = "target" if known.role == path.role == "target" else "fit"
            self.segments[state_id] = replace(known, runs=(*known.runs, path.name), role=role)
            return
        tokens = (end - start) * path.spec.batch_tokens
        execution = self._execution(path.spec)
        speed = self.throughput.estimate(path.spec.shape, execution, path.spec.batch_tokens)
        self.sources.add(speed.source)
        self.segments[state_id] = PlannedSegment(
            segment=Segment(
                state_id=state_id,
                parent_id=parent,
                curve_id=curve_fingerprint(path.spec, end),
                start_step=start,
                end_step=end,
                kind=kind,
            ),
            name=self._segment_name(path, kind, start, end),
            spec=path.spec,
            runs=(path.name,),
            role=path.role,
            is_final=kind != "trunk",
            train_flops=float(train_flops_per_token(path.spec.shape) * tokens),
            execution=execution,
            estimated_s=tokens / speed.tokens_per_s,
        )

    def _segment_name(self, path: _Path, kind: SegmentKind, start: int, end: int) -> str:
        if kind != "trunk":
            return f"{path.name} {kind}"
        # A rule of the horizon gives every budget its own trunk, which is then named after the run.
        stem = path.name if self.study.recipe.horizon_rules else trunk_name(path.point)
        return f"{stem} trunk {start}-{end}"

    def _execution(self, spec: RunSpec) -> Execution:
        case = (spec.shape, spec.recipe.batch_sequences)
        if case not in self.executions:
            self.executions[case] = choose_execution(spec, self.study.execution, self.device)
        return self.executions[case]

    def _notes(self, path: _Path) -> tuple[str, ...]:
        notes = [*path.sized.notes, *path.recipe.notes]
        tokens = path.spec.horizon_tokens
        deviation = tokens / path.point.tokens - 1
        if abs(deviation) > NOTED_TOKEN_DEVIATION:
            notes.append(
                f"{short_number(path.point.tokens)} tokens became {short_number(tokens)} ({deviation:+.1%}), "
                f"{path.spec.total_steps} whole steps"
            )
        ranks, most_ranks = self._execution(path.spec).world_size, most_ranks_of(path.spec, self.study.execution)
        if ranks < most_ranks:
            sequences = path.spec.recipe.batch_sequences
            notes.append(f"a gang has {ranks} ranks, not {most_ranks}, to divide a batch of {sequences} sequences")
        return tuple(notes)


def _check_vocabulary(study: Study, vocab_size: int | None) -> None:
    if vocab_size is not None and vocab_size > study.vocab_size:
        raise ValueError(
            f"model.vocab_size: {study.vocab_size} must hold the {vocab_size} tokens of the prepared corpus. "
            f"Set model.vocab_size: {vocab_size}"
        )


def _check_disk(study: Study, plan: Plan) -> None:
    bound = study.execution.disk_gb
    if bound is not None and plan.retained_bytes > bound * BYTES_PER_GB:
        needed = plan.retained_bytes / BYTES_PER_GB
        raise ValueError(
            f"execution.disk_gb: {bound:g} GB do not hold the {needed:.3g} GB of {len(plan.segments)} kept states. "
            "Raise it, or plan fewer sizes, budgets or seeds"
        )
