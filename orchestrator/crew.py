"""The gangs that are open: brought up and closed in threads beside the loop, each with the attempt that it executes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from cluster.resources import Gang, GangLost, GangRequest, Launcher
from jobs.journal import JournalLine
from jobs.spec import StateRef
from jobs.storage import AttemptPaths
from orchestrator.intake import Claim
from orchestrator.state import GangState
from orchestrator.watchdog import ProgressWatch

# Bringing up a gang is mostly imports: more at a time would only slow each other down.
GANGS_OPENED_AT_A_TIME = 8
CLOSING_TIMEOUT_S = 30.0


@dataclass
class Work:
    """The attempt that a gang executes now, and how far its journal has been read."""

    claim: Claim
    subject: str
    paths: AttemptPaths
    resume: StateRef | None
    end_step: int
    expected_end: float
    accepted: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    offset: int = 0
    unread: list[JournalLine] = field(default_factory=list)
    end: JournalLine | None = None
    watch: ProgressWatch = field(default_factory=ProgressWatch)
    failed_at: float | None = None
    leaving_since: float | None = None
    step: int = 0
    told_at: float = 0.0

    @property
    def unaccepted(self) -> tuple[str, ...]:
        """Segments of the chain that are still to come."""
        return tuple(state_id for state_id in self.claim.state_ids if state_id not in self.accepted)


@dataclass
class Member:
    """One gang of the crew: coming up while `gang` is None, idle while `work` is None."""

    request: GangRequest
    coming: Future[Gang]
    gang: Gang | None = None
    work: Work | None = None
    idle_since: float = 0.0

    @property
    def gang_id(self) -> str:
        return self.request.gang_id


class Crew:
    """Every gang that this controller holds."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._members: dict[str, Member] = {}
        self._threads = ThreadPoolExecutor(GANGS_OPENED_AT_A_TIME, thread_name_prefix="gang")
        self._closing: list[Future[None]] = []
        self.next_gang = 1

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __getitem__(self, gang_id: str) -> Member:
        return self._members[gang_id]

    def busy(self) -> list[tuple[Member, Gang, Work]]:
        """Gangs that execute an attempt."""
        return [
            (member, member.gang, member.work) for member in self if member.gang is not None and member.work is not None
        ]

    def open(self, request: GangRequest) -> None:
        """Begin to bring a gang up."""
        self.next_gang += 1
        self._members[request.gang_id] = Member(request, self._threads.submit(self._launcher.open, request))

    def arrived(self, now: float) -> list[tuple[Member, GangLost | None]]:
        """Gangs that have come up since the last call, and those that could not be opened now (they are dropped).

        Raises what else `Launcher.open` raised: a gang that never fits, an entry that cannot be imported.
        """
        news: list[tuple[Member, GangLost | None]] = []
        for member in self:
            if member.gang is not None or not member.coming.done():
                continue
            try:
                member.gang = member.coming.result()
            except GangLost as error:
                del self._members[member.gang_id]
                news.append((member, error))
                continue
            member.idle_since = now
            news.append((member, None))
        return news

    def close(self, gang_id: str) -> None:
        """Give a gang back, in a thread beside the loop."""
        member = self._members.pop(gang_id)
        if member.gang is not None:
            self._closing = [future for future in self._closing if not future.done()]
            self._closing.append(self._threads.submit(member.gang.close))

    def close_all(self) -> None:
        """Give everything back. Bounded: what still comes up after that is closed with its launcher."""
        coming = [member.coming for member in self if member.gang is None]
        wait(coming, CLOSING_TIMEOUT_S)
        for member in self:
            if member.gang is None and member.coming.done() and member.coming.exception() is None:
                member.gang = member.coming.result()
            self.close(member.gang_id)
        wait(self._closing, CLOSING_TIMEOUT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def states(self) -> tuple[GangState, ...]:
        """The gangs as `decide` sees them, oldest first."""
        return tuple(_state(member) for member in self)


def _state(member: Member) -> GangState:
    if member.gang is None:
        return GangState(member.gang_id, member.request, "opening")
    if member.work is None:
        return GangState(member.gang_id, member.request, "idle", idle_since=member.idle_since)
    return GangState(
        member.gang_id,
        member.request,
        "busy",
        chain=member.work.unaccepted,
        expected_end=member.work.expected_end,
        leaving=member.work.leaving_since is not None,
    )
