"""Decisions as a table: from a plan, where it stands and what is free, to gangs and assignments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from cluster.resources import GangRequest, Inventory, Node
from jobs.spec import StateRef
from orchestrator.decide import IDLE_S, Action, Assign, CloseGang, OpenGang, Stop, decide
from orchestrator.gang_requests import gang_request
from orchestrator.plan import Plan
from orchestrator.state import GangState, SegmentState, StudyState
from tests.orchestrator.bench import small_plan

NOW = 1000.0
PLAN = small_plan()
# One gang takes both cores of a node for the large size, one core for the others.
MIXED = replace(
    PLAN,
    segments={
        state_id: replace(
            planned,
            execution=planned.execution.model_copy(update={"world_size": 2 if planned.name.startswith("n45k") else 1}),
        )
        for state_id, planned in PLAN.segments.items()
    },
)


def names(plan: Plan, state_ids: Iterable[str]) -> list[str]:
    return [plan.segments[state_id].name for state_id in state_ids]


def id_of(plan: Plan, name: str) -> str:
    return next(state_id for state_id, planned in plan.segments.items() if planned.name == name)


def state_of(
    plan: Plan = PLAN,
    *,
    accepted: Iterable[str] = (),
    opened: Iterable[str] = (),
    gangs: Iterable[GangState] = (),
    frozen: Iterable[str] = (),
    closed_runs: Iterable[str] = (),
    segments: dict[str, dict[str, Any]] | None = None,
    **changes: Any,
) -> StudyState:
    """A study in which the named segments are accepted or open, and every other waits."""
    states = {}
    for state_id, planned in plan.segments.items():
        status = "accepted" if planned.name in accepted else "open" if planned.name in opened else "waiting"
        end = StateRef(path=planned.name, manifest_digest="d", step=planned.segment.end_step)
        known = SegmentState(status, planned.execution, resume=end if status == "accepted" else None)
        states[state_id] = replace(known, **(segments or {}).get(planned.name, {}))
    finished = {
        run.name for run in plan.runs if states[run.segments[-1]].status == "accepted" or run.name in closed_runs
    }
    return StudyState(
        segments=states,
        waiting_runs=tuple(run.name for run in plan.runs if run.name not in finished),
        frozen_targets=frozenset(frozen),
        gangs=tuple(gangs),
        **changes,
    )


def cores(*free: float, total: float | None = None) -> Inventory:
    return Inventory(
        tuple(Node(f"node-{index}", "here", total or count, 0.0, count, 0.0) for index, count in enumerate(free))
    )


def gang(gang_id: str, status: Any = "idle", size: int = 1, **changes: Any) -> GangState:
    execution = PLAN.segments[next(iter(PLAN.segments))].execution.model_copy(update={"world_size": size})
    return GangState(gang_id, gang_request(gang_id, execution), status, idle_since=NOW, **changes)


def told(plan: Plan, actions: Iterable[Action]) -> list[Any]:
    """Actions as a reader would say them."""
    lines: list[Any] = []
    for action in actions:
        match action:
            case OpenGang(request):
                lines.append(f"open {request.world_size}")
            case Assign(gang_id, state_ids, _, resume):
                lines.append((gang_id, names(plan, state_ids), resume.step if resume else 0))
            case Stop(gang_id):
                lines.append(f"stop {gang_id}")
            case CloseGang(gang_id):
                lines.append(f"close {gang_id}")
    return lines


LONG_45K = ["n45k-s0 trunk 0-156", "n45k-s0 trunk 156-313", "n45k-d400k-s0 decay"]
LONG_20K = ["n20k-s0 trunk 0-156", "n20k-s0 trunk 156-313", "n20k-d400k-s0 decay"]
ALL_45K = [*LONG_45K, "n45k-d200k-s0 decay"]
ALL_FITTED = [*ALL_45K, *LONG_20K, "n20k-d200k-s0 decay"]
TARGETS = ["n95k-d200k-s0", "n95k-d400k-s0"]

CASES = {
    "a fresh study opens as many gangs as fit, no more than it has chains": (
        state_of(),
        cores(4),
        ["open 1", "open 1"],
    ),
    "and no more than fit": (state_of(), cores(1), ["open 1"]),
    "nothing is opened while nothing is free": (state_of(), cores(0, total=2), []),
    "a gang that is coming up is counted": (
        state_of(gangs=[gang("a", "opening"), gang("b", "opening")]),
        cores(4),
        [],
    ),
    "a gang that the cluster's report does not show yet is not given away twice": (
        state_of(gangs=[gang("a", "busy", chain=("x",))]),
        cores(1, total=1),
        [],
    ),
    "the longest remaining path comes first, as one chain to a run's end": (
        state_of(gangs=[gang("a")]),
        cores(0, total=1),
        [("a", LONG_45K, 0)],
    ),
    "a sibling is ready as soon as its parent state is accepted, while the chain goes on": (
        state_of(
            accepted=LONG_45K[:1], opened=LONG_45K[1:], gangs=[gang("a", "busy", chain=("x",)), gang("b"), gang("c")]
        ),
        cores(0, total=3),
        [("b", LONG_20K, 0), ("c", ["n45k-d200k-s0 decay"], 156)],
    ),
    "a chain goes on from the newest checkpoint inside its first segment": (
        state_of(
            accepted=ALL_45K,
            segments={LONG_20K[0]: {"resume": StateRef(path="c", manifest_digest="d", step=100)}},
            gangs=[gang("a")],
        ),
        cores(0, total=1),
        [("a", LONG_20K, 100)],
    ),
    "a segment that waits after a failure is left alone until its time": (
        state_of(accepted=ALL_45K, segments={LONG_20K[0]: {"not_before": NOW + 1}}, gangs=[gang("a")]),
        cores(0, total=1),
        [],
    ),
    "and tried again then": (
        state_of(accepted=ALL_45K, segments={LONG_20K[0]: {"not_before": NOW}}, gangs=[gang("a")]),
        cores(0, total=1),
        [("a", LONG_20K, 0)],
    ),
    "no target before its forecast is frozen, for which gangs stay warm": (
        state_of(accepted=ALL_FITTED, gangs=[gang("a")]),
        cores(1, total=2),
        [],
    ),
    "a target whose own segments wait for another's forecast stops before them": (
        state_of(accepted=ALL_FITTED, frozen=TARGETS[:1], gangs=[gang("a")]),
        cores(1, total=2),
        [],
    ),
    "targets open once it is frozen, on gangs that are warm": (
        state_of(accepted=ALL_FITTED, frozen=TARGETS, gangs=[gang("a")]),
        cores(1, total=2),
        [("a", ["n95k-s0 trunk 0-156", "n95k-s0 trunk 156-313", "n95k-d400k-s0 decay"], 0)],
    ),
    "segments that only given-up runs need are not trained": (
        state_of(closed_runs=["n45k-d400k-s0", "n20k-d200k-s0", "n20k-d400k-s0"], gangs=[gang("a")]),
        cores(0, total=1),
        [("a", ["n45k-s0 trunk 0-156", "n45k-d200k-s0 decay"], 0)],
    ),
    "a finished study gives its gangs back": (
        state_of(accepted=[planned.name for planned in PLAN.segments.values()], gangs=[gang("a"), gang("b")]),
        cores(0, total=2),
        ["close a", "close b"],
    ),
    "a gang without work is kept warm for a while": (
        state_of(accepted=ALL_45K, opened=LONG_20K, gangs=[gang("a", "busy", chain=("x",)), gang("b")]),
        cores(0, total=2),
        [],
    ),
    "and then given back": (
        state_of(
            accepted=ALL_45K,
            opened=LONG_20K,
            gangs=[gang("a", "busy", chain=("x",)), replace(gang("b"), idle_since=NOW - IDLE_S - 1)],
        ),
        cores(0, total=2),
        ["close b"],
    ),
    "after a gang could not be opened there is a pause": (state_of(open_not_before=NOW + 1), cores(4), []),
    "stopping asks busy gangs to leave, once, and closes idle ones": (
        state_of(
            stopping=True,
            gangs=[gang("a", "busy", chain=("x",)), gang("b", "busy", chain=("y",), leaving=True), gang("c")],
        ),
        cores(0, total=3),
        ["stop a", "close c"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_decide(case: str) -> None:
    state, inventory, expected = CASES[case]
    assert told(PLAN, decide(PLAN, state, inventory, NOW)) == expected


MIXED_CASES = {
    "idle gangs of another shape make room for the first in the queue": (
        state_of(MIXED, gangs=[gang("a"), gang("b")]),
        cores(0, total=2),
        ["close a", "close b"],
    ),
    "they stay if that would not make room, and take what does not delay the large one": (
        # The large gang can start when the busy one ends, in 100 s; the small chain takes 4 s.
        state_of(MIXED, gangs=[gang("a", "busy", chain=("x",), expected_end=NOW + 100), gang("b")]),
        cores(0, total=2),
        [("b", LONG_20K, 0)],
    ),
    "a small gang is left waiting when a large one is reserved and would be delayed": (
        state_of(MIXED, gangs=[gang("a", "busy", chain=("x",), expected_end=NOW + 1), gang("b")]),
        cores(0, total=2),
        [],
    ),
    "it goes ahead where it fits beside the reserved one": (
        state_of(MIXED, gangs=[gang("a", "busy", size=2, chain=("x",), expected_end=NOW + 1), gang("b")]),
        cores(0, total=3),
        [("b", LONG_20K, 0)],
    ),
    "the reserved one starts as soon as it fits": (
        state_of(MIXED, gangs=[gang("b")]),
        cores(2, total=3),
        ["open 2", ("b", LONG_20K, 0)],
    ),
}


@pytest.mark.parametrize("case", MIXED_CASES)
def test_decide_with_gangs_of_two_sizes(case: str) -> None:
    state, inventory, expected = MIXED_CASES[case]
    assert told(MIXED, decide(MIXED, state, inventory, NOW)) == expected


def test_chain_ends_where_the_next_segment_needs_another_gang() -> None:
    decay = id_of(PLAN, "n45k-d400k-s0 decay")
    small = PLAN.segments[decay].execution.model_copy(update={"micro_batch_sequences": 1})
    state = state_of(segments={"n45k-d400k-s0 decay": {"execution": small}}, gangs=[gang("a")])
    assert told(PLAN, decide(PLAN, state, cores(0, total=1), NOW)) == [("a", LONG_45K[:2], 0)]


def test_idle_gang_with_another_environment_is_not_reused() -> None:
    other = replace(gang("a").request, environment={"OMP_NUM_THREADS": "4"})
    state = state_of(gangs=[replace(gang("a"), request=other)])
    assert told(PLAN, decide(PLAN, state, cores(1, total=2), NOW)) == ["open 1", "close a"]


def test_request_of_a_gang_tells_ranks_their_threads_and_accelerator() -> None:
    execution = PLAN.segments[next(iter(PLAN.segments))].execution
    on_cpu = gang_request("a", execution.model_copy(update={"threads_per_rank": 3}))
    on_gpu = gang_request("b", execution.model_copy(update={"device": "cuda", "world_size": 4}))
    assert (on_cpu.cpus_per_rank, on_cpu.devices_per_rank, on_cpu.environment["OMP_NUM_THREADS"]) == (3.0, 0.0, "3")
    assert (on_gpu.world_size, on_gpu.devices_per_rank, on_gpu.environment["DS_ACCELERATOR"]) == (4, 1.0, "cuda")
    assert isinstance(on_cpu, GangRequest)


def test_decisions_depend_on_their_arguments_alone() -> None:
    state = state_of(gangs=[gang("a")])
    assert decide(PLAN, state, cores(2), NOW) == decide(PLAN, state, cores(2), NOW)
