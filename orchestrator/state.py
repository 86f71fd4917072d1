"""Where a study stands at one moment, as a value: built from the ledger and the open gangs, read by `decide`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.resources import GangRequest
from jobs.spec import Execution, StateRef
from orchestrator.failures import policy_of
from orchestrator.plan import Plan
from orchestrator.reading import AttemptRow, CheckpointRow, LedgerReader, RunRow, SegmentRow, SegmentStatus


@dataclass(frozen=True)
class SegmentState:
    """One segment of the plan: its status, the state to start it from, and how its next attempt is carried out.

    `resume` is a checkpoint inside the segment, or the state that ends it once it is accepted. `not_before` is a wall
    time: it is left alone until then. `tries` counts the attempts so far; `last_outcome` says how the last one ended,
    `failures` how often that happened without progress.
    """

    status: SegmentStatus
    execution: Execution
    resume: StateRef | None = None
    not_before: float = 0.0
    tries: int = 0
    failures: int = 0
    last_outcome: str = ""


@dataclass(frozen=True)
class GangState:
    """An open gang. `chain` holds the segments of its current attempt that are not accepted yet."""

    gang_id: str
    request: GangRequest
    status: Literal["opening", "idle", "busy"]
    chain: tuple[str, ...] = ()
    expected_end: float = 0.0
    idle_since: float = 0.0
    leaving: bool = False


@dataclass(frozen=True)
class StudyState:
    """All that a decision depends on, beside the plan, the inventory and the time."""

    segments: Mapping[str, SegmentState]
    waiting_runs: tuple[str, ...]
    """Runs that are neither finished nor given up, in the order of the plan."""
    frozen_targets: frozenset[str] = frozenset()
    """Target runs whose forecast is frozen."""
    gangs: tuple[GangState, ...] = ()
    next_gang: int = 1
    stopping: bool = False
    open_not_before: float = 0.0
    """Opening a gang has just failed: no other before this wall time."""


@dataclass(frozen=True)
class History:
    """What the ledger says, read in one go."""

    runs: Sequence[RunRow]
    segments: Mapping[str, SegmentRow]
    attempts: Sequence[AttemptRow] = ()
    checkpoints: Sequence[CheckpointRow] = ()
    frozen_targets: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def read(cls, ledger: LedgerReader) -> History:
        """One moment of the ledger."""
        frozen = frozenset(target for forecast in ledger.forecasts() for target in forecast.targets)
        return cls(ledger.runs(), ledger.segments(), ledger.attempts(), ledger.checkpoints(), frozen)


def segment_states(plan: Plan, history: History) -> dict[str, SegmentState]:
    """State of every segment of the plan."""
    charged: dict[str, list[AttemptRow]] = {}
    covering: dict[str, int] = {}
    for attempt in history.attempts:
        if attempt.outcome == "adopted":
            continue
        for state_id in attempt.state_ids:
            covering[state_id] = covering.get(state_id, 0) + 1
        if attempt.charged_state_id is not None:
            charged.setdefault(attempt.charged_state_id, []).append(attempt)
    newest: dict[str, CheckpointRow] = {row.state_id: row for row in history.checkpoints}
    states = {}
    for state_id, planned in plan.segments.items():
        row = history.segments[state_id]
        endings = [attempt for attempt in charged.get(state_id, ()) if attempt.number > row.forgiven_attempt]
        resume = _resume(row, newest.get(state_id))
        failures = failures_without_progress(row, resume, endings)
        states[state_id] = SegmentState(
            status=row.status,
            execution=next_execution(planned.execution, planned.spec.recipe.batch_sequences, endings),
            resume=resume,
            not_before=_not_before(endings, failures),
            tries=covering.get(state_id, 0),
            failures=failures,
            last_outcome=endings[-1].outcome if endings else "",
        )
    return states


def _resume(row: SegmentRow, checkpoint: CheckpointRow | None) -> StateRef | None:
    if row.status == "accepted" and row.path is not None and row.manifest_digest is not None:
        return StateRef(path=row.path, manifest_digest=row.manifest_digest, step=row.end_step)
    if checkpoint is None or not row.start_step < checkpoint.step < row.end_step:
        return None
    return StateRef(path=checkpoint.path, manifest_digest=checkpoint.manifest_digest, step=checkpoint.step)


def failures_without_progress(row: SegmentRow, resume: StateRef | None, endings: Sequence[AttemptRow]) -> int:
    """Endings of the same class in a row, none of which left the segment further on than it found it."""
    if not endings:
        return 0
    last = endings[-1]
    began = max(last.start_step, row.start_step)
    if resume is not None and resume.step > began:
        return 1
    count = 0
    for attempt in reversed(endings):
        # An attempt that began further back was followed by progress.
        if attempt.outcome != last.outcome or max(attempt.start_step, row.start_step) < began:
            break
        count += 1
    return count


def _not_before(endings: Sequence[AttemptRow], failures: int) -> float:
    if not endings or endings[-1].ended_ms is None:
        return 0.0
    return endings[-1].ended_ms / 1000 + policy_of(endings[-1].outcome).pause_s(failures)


def next_execution(planned: Execution, batch_sequences: int, endings: Sequence[AttemptRow]) -> Execution:
    """The planned execution, its micro-batch halved for each time that memory ran out; the global batch stays."""
    execution = planned
    for attempt in endings:
        if attempt.outcome == "out_of_memory":
            execution = halved_micro_batch(execution, batch_sequences) or execution
    return execution


def halved_micro_batch(execution: Execution, batch_sequences: int) -> Execution | None:
    """The next smaller micro-batch, at most half, that cuts the batch evenly; None below one sequence."""
    for size in range(execution.micro_batch_sequences // 2, 0, -1):
        if batch_sequences % (execution.world_size * size) == 0:
            return execution.model_copy(update={"micro_batch_sequences": size})
    return None
