"""Which chains of segments can start now, longest remaining path first. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.resources import GangRequest
from jobs.spec import Execution, StateRef
from orchestrator.gang_requests import gang_request
from orchestrator.plan import Plan
from orchestrator.state import StudyState


@dataclass(frozen=True)
class Chain:
    """Consecutive segments that one gang can execute now, with the seconds they take and those still to go after."""

    state_ids: tuple[str, ...]
    execution: Execution
    resume: StateRef | None
    estimated_s: float
    path_s: float

    def request(self, gang_id: str) -> GangRequest:
        return gang_request(gang_id, self.execution)


def needed_segments(plan: Plan, state: StudyState) -> set[str]:
    """Segments that some unfinished run still lacks."""
    paths = {run.name: run.segments for run in plan.runs}
    needed: set[str] = set()
    for name in state.waiting_runs:
        for state_id in reversed(paths[name]):
            if state.segments[state_id].status == "accepted":
                break
            needed.add(state_id)
    return needed


def is_over(plan: Plan, state: StudyState) -> bool:
    """Whether nothing is left that may be trained, now or later."""
    return not needed_segments(plan, state) - locked_segments(plan, state)


def locked_segments(plan: Plan, state: StudyState) -> set[str]:
    """Segments of targets whose forecast is not frozen yet, and what only comes after one of them."""
    unfrozen = {run.name for run in plan.runs if run.role == "target" and run.name not in state.frozen_targets}
    locked: set[str] = set()
    for state_id, planned in plan.segments.items():
        parent_id = planned.segment.parent_id
        behind = parent_id is not None and parent_id in locked and state.segments[parent_id].status != "accepted"
        if behind or (planned.role == "target" and not unfrozen.isdisjoint(planned.runs)):
            locked.add(state_id)
    return locked


def ready_chains(plan: Plan, state: StudyState, now: float) -> list[Chain]:
    """Chains that can start now, longest remaining path first."""
    needed = needed_segments(plan, state)
    open_to_all = needed - locked_segments(plan, state)
    children: dict[str | None, list[str]] = {}
    remaining_s: dict[str, float] = {}
    # Parents stand before children in a plan, so that every child's way to go is known before its parent's.
    for state_id in reversed(list(plan.segments)):
        if state_id not in open_to_all:
            continue
        after_s = max((remaining_s[child] for child in children.get(state_id, ())), default=0.0)
        remaining_s[state_id] = _estimated_s(plan, state, state_id) + after_s
        children.setdefault(plan.segments[state_id].segment.parent_id, []).insert(0, state_id)

    def startable(state_id: str) -> bool:
        segment = state.segments[state_id]
        return segment.status == "waiting" and segment.not_before <= now

    chains = []
    for head in (state_id for state_id in plan.segments if state_id in open_to_all and startable(state_id)):
        parent_id = plan.segments[head].segment.parent_id
        if parent_id is not None and state.segments[parent_id].status != "accepted":
            continue
        execution = state.segments[head].execution
        state_ids = [head]
        while True:
            following = [
                child
                for child in children.get(state_ids[-1], ())
                if startable(child) and state.segments[child].execution == execution
            ]
            if not following:
                break
            state_ids.append(max(following, key=lambda child: remaining_s[child]))
        resume = state.segments[head].resume or (state.segments[parent_id].resume if parent_id is not None else None)
        estimated_s = sum(_estimated_s(plan, state, state_id) for state_id in state_ids)
        chains.append(Chain(tuple(state_ids), execution, resume, estimated_s, remaining_s[head]))
    return sorted(chains, key=lambda chain: -chain.path_s)


def _estimated_s(plan: Plan, state: StudyState, state_id: str) -> float:
    """Seconds that the segment still takes from its newest checkpoint."""
    planned = plan.segments[state_id]
    resume = state.segments[state_id].resume
    done = resume.step - planned.segment.start_step if resume is not None else 0
    return planned.estimated_s * (1 - done / planned.segment.num_steps)
