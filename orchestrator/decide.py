"""What to do next: gangs to open and close, chains to assign. Pure: the plan, where it stands, what is free, the time.

The run with the longest way still to go comes first. A gang takes a chain: the ready segment and those that follow it
on the longest path, up to a run's end; a sibling becomes ready as soon as the state that it forks from is accepted.
While the first in the queue cannot be placed, later ones fill the gaps, as long as they do not delay it (EASY
backfilling, Lifka 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.placement import Placement, fits
from cluster.resources import GangRequest, Inventory
from jobs.spec import Execution, StateRef
from orchestrator.chains import Chain, needed_segments, ready_chains
from orchestrator.plan import Plan
from orchestrator.state import GangState, StudyState

# An idle gang without work for it is given back after this long, so that a cluster can shrink.
IDLE_S = 60.0


@dataclass(frozen=True)
class OpenGang:
    """Bring up a gang; it is assigned something once it is there."""

    request: GangRequest


@dataclass(frozen=True)
class Assign:
    """Give a chain to an idle gang. `resume` is the state to begin from (None: initialisation)."""

    gang_id: str
    state_ids: tuple[str, ...]
    execution: Execution
    resume: StateRef | None


@dataclass(frozen=True)
class Stop:
    """Ask a gang to checkpoint and leave its attempt."""

    gang_id: str


@dataclass(frozen=True)
class CloseGang:
    """Give a gang's devices back."""

    gang_id: str
    reason: str


Action = OpenGang | Assign | Stop | CloseGang


def decide(plan: Plan, state: StudyState, inventory: Inventory, now: float) -> list[Action]:
    """The actions to perform now, in order. Empty when there is nothing to do but wait."""
    if state.stopping:
        return _stop_all(state)
    chains = ready_chains(plan, state, now)
    # Targets that wait for their forecast will want the gangs that are warm.
    if not needed_segments(plan, state):
        return [CloseGang(gang.gang_id, "there is nothing left to do") for gang in state.gangs if gang.status == "idle"]
    placing = _Placing(state, inventory, now)
    for chain in chains:
        placing.place(chain)
    return placing.actions + placing.released()


def _stop_all(state: StudyState) -> list[Action]:
    actions: list[Action] = [Stop(gang.gang_id) for gang in state.gangs if gang.status == "busy" and not gang.leaving]
    actions += [CloseGang(gang.gang_id, "the study is stopping") for gang in state.gangs if gang.status == "idle"]
    return actions


@dataclass(frozen=True)
class _Reservation:
    """What the first chain that could not be placed waits for: its request, when it fits, and what is free then."""

    request: GangRequest
    at: float
    inventory: Inventory


class _Placing:
    """Hands out what is free, chain by chain."""

    def __init__(self, state: StudyState, inventory: Inventory, now: float) -> None:
        self.actions: list[Action] = []
        self._now = now
        self._may_open = now >= state.open_not_before
        self._gangs = state.gangs
        self._idle = [gang for gang in state.gangs if gang.status == "idle"]
        self._opening = [gang for gang in state.gangs if gang.status == "opening"]
        self._next_gang = state.next_gang
        self._placements = _placements(state.gangs, inventory)
        self._free = _free(inventory, state.gangs, self._placements)
        self._reservation: _Reservation | None = None

    def place(self, chain: Chain) -> None:
        """Assign the chain to a warm gang, else open one, else wait (and keep others from delaying it)."""
        if self._reservation is not None and not self._may_go_ahead(chain, self._reservation):
            return
        request = chain.request(f"gang-{self._next_gang}")
        warm = next((gang for gang in self._idle if _same_shape(gang.request, request)), None)
        if warm is not None:
            self._idle.remove(warm)
            self.actions.append(Assign(warm.gang_id, chain.state_ids, chain.execution, chain.resume))
            return
        coming = next((gang for gang in self._opening if _same_shape(gang.request, request)), None)
        if coming is not None:
            self._opening.remove(coming)
            return
        placement = fits(request, self._free)
        if placement is not None:
            if self._may_open:
                self._open(request, placement)
            return
        if self._make_room(request) or self._reservation is not None:
            return
        self._reservation = self._reserve(request)

    def released(self) -> list[Action]:
        """Gangs that have been idle for long, with nothing to do for them now."""
        return [
            CloseGang(gang.gang_id, f"idle for {IDLE_S:.0f} s")
            for gang in self._idle
            if self._now - gang.idle_since > IDLE_S
        ]

    def _open(self, request: GangRequest, placement: Placement) -> None:
        self._free = _changed(self._free, request, placement, -1)
        self._next_gang += 1
        self.actions.append(OpenGang(request))

    def _make_room(self, request: GangRequest) -> bool:
        """Close idle gangs of another shape if the request fits then; the gang itself is opened next time."""
        free = self._free
        for count, gang in enumerate(self._idle, start=1):
            free = _changed(free, gang.request, self._placements[gang.gang_id], +1)
            if fits(request, free) is None:
                continue
            leaving, self._idle = self._idle[:count], self._idle[count:]
            self.actions += [CloseGang(each.gang_id, "its devices are needed") for each in leaving]
            placement = fits(request, free)
            assert placement is not None
            # What is being freed is spoken for.
            self._free = _changed(free, request, placement, -1)
            return True
        return False

    def _reserve(self, request: GangRequest) -> _Reservation | None:
        free = self._free
        for gang in self._idle:
            free = _changed(free, gang.request, self._placements[gang.gang_id], +1)
        busy = [gang for gang in self._gangs if gang.status == "busy"]
        for gang in sorted(busy, key=lambda gang: gang.expected_end):
            free = _changed(free, gang.request, self._placements[gang.gang_id], +1)
            placement = fits(request, free)
            if placement is not None:
                return _Reservation(request, max(gang.expected_end, self._now), free)
        return None

    def _may_go_ahead(self, chain: Chain, reservation: _Reservation) -> bool:
        """Whether the chain ends before the reserved gang can start, or fits beside it."""
        if self._now + chain.estimated_s <= reservation.at:
            return True
        request = chain.request("beside")
        placement = fits(reservation.request, reservation.inventory)
        assert placement is not None, "a reservation is made of what fits"
        beside = _changed(reservation.inventory, reservation.request, placement, -1)
        return fits(request, beside) is not None


def _same_shape(left: GangRequest, right: GangRequest) -> bool:
    return replace(left, gang_id="") == replace(right, gang_id="")


def _placements(gangs: Sequence[GangState], inventory: Inventory) -> dict[str, Placement]:
    """Where the open gangs sit, as far as requests alone tell: each put by the same rule on what those before left."""
    free = Inventory(
        tuple(replace(node, free_cpus=node.total_cpus, free_devices=node.total_devices) for node in inventory.nodes)
    )
    placements = {}
    for gang in gangs:
        placement = fits(gang.request, free) or Placement(())
        placements[gang.gang_id] = placement
        free = _changed(free, gang.request, placement, -1)
    return placements


def _free(inventory: Inventory, gangs: Sequence[GangState], placements: dict[str, Placement]) -> Inventory:
    """What is free: no more than the cluster reports, and no more than our own gangs leave of the whole.

    The cluster's report may come before a gang that is being opened has taken its place.
    """
    ours = Inventory(
        tuple(replace(node, free_cpus=node.total_cpus, free_devices=node.total_devices) for node in inventory.nodes)
    )
    for gang in gangs:
        ours = _changed(ours, gang.request, placements[gang.gang_id], -1)
    return Inventory(
        tuple(
            replace(
                node,
                free_cpus=min(node.free_cpus, left.free_cpus),
                free_devices=min(node.free_devices, left.free_devices),
            )
            for node, left in zip(inventory.nodes, ours.nodes, strict=True)
        )
    )


def _changed(inventory: Inventory, request: GangRequest, placement: Placement, sign: int) -> Inventory:
    """The inventory after a gang came (-1) or went (+1)."""
    ranks = {share.node_id: share.ranks for share in placement.shares}
    return Inventory(
        tuple(
            replace(
                node,
                free_cpus=node.free_cpus + sign * ranks.get(node.node_id, 0) * request.cpus_per_rank,
                free_devices=node.free_devices + sign * ranks.get(node.node_id, 0) * request.devices_per_rank,
            )
            for node in inventory.nodes
        )
    )
