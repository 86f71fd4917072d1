"""A cluster that trains by the clock alone: real payloads, journals and state folders, and faults as asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.resources import GangLost, GangReport, GangRequest, Inventory, Node, RankReport
from jobs.checkpoints import MANIFEST, CheckpointError, FileEntry, Manifest, verify_state
from jobs.identity import NUMERICS_VERSION, curve_fingerprint, state_fingerprint
from jobs.journal import JournalWriter
from jobs.records import FinalLoss
from jobs.spec import ChainPayload, Segment
from jobs.storage import AttemptPaths, sha256_of_bytes

STEP_S = 0.04
CHECKPOINT_EVERY_STEPS = 50
RECORD_EVERY_STEPS = 10

FaultKind = Literal["kill", "lose gang", "out of memory", "bug", "diverge", "hang", "damage state", "driver", "refuse"]


class DriverKilled(BaseException):
    """Stands for kill -9 of the controller: nothing below it can handle it."""


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1_750_000_000.0

    def wall_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s - 1_749_000_000.0

    def wait(self, wake: threading.Event, timeout_s: float) -> None:
        self.now_s += timeout_s
        # Threads that open gangs get a moment of real time.
        threading.Event().wait(0.0005)


@dataclass
class Fault:
    """What goes wrong when an attempt reaches a step of its path; once, unless `times` says otherwise.

    `chain` picks attempts by the beginning of their folder's name.
    """

    kind: FaultKind
    at_step: int
    chain: str = ""
    times: int = 1


@dataclass
class FakeGang:
    """One attempt at a time, a step every STEP_S seconds."""

    cluster: FakeCluster
    request: GangRequest
    payload: ChainPayload | None = None
    journal: JournalWriter | None = None
    began_s: float = 0.0
    progressed_s: float = 0.0
    step: int = 0
    exit_codes: list[int | None] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    leaving: bool = False
    hanging: bool = False
    lost: str = ""
    closed: bool = False

    @property
    def gang_id(self) -> str:
        return self.request.gang_id

    def assign(self, attempt_id: str, payload: dict[str, Any], journal_path: str, log_dir: str) -> None:
        self._check()
        assert self._is_free(), "one attempt at a time"
        self.payload = ChainPayload.model_validate(payload)
        assert Path(log_dir).is_dir()
        self.attempt_id, self.journal_path = attempt_id, Path(journal_path)
        self.journal = JournalWriter(self.journal_path)
        self.began_s = self.progressed_s = self.cluster.clock.now_s
        self.step = self.payload.resume.step if self.payload.resume else 0
        self.start = self.step
        self.exit_codes = [None] * self.request.world_size
        self.errors = [("", "")] * self.request.world_size
        self.leaving = self.hanging = False
        self.cluster.attempts.append(self.payload)
        if self.payload.resume is not None:
            try:
                verify_state(Path(self.payload.resume.path), self.payload.resume.manifest_digest)
            except CheckpointError as error:
                self._exit(1, f"Traceback\nCheckpointError: {error}", "CheckpointError")
                return
        self._note("begin", self._segment_at(self.step + 1), self.step, {"resumed_from": self.step})

    def poll(self, offset: int) -> GangReport:
        self._check()
        self._train()
        if self.cluster.driver_dies:
            raise DriverKilled
        self._check()
        text = ""
        if self.payload is not None:
            text = self.journal_path.read_text()[offset:]
        return GangReport(self.attempt_id, text, offset + len(text), self._ranks())

    def leave(self) -> None:
        self._check()
        self.leaving = True

    def kill(self) -> None:
        self._check()
        self._exit(-9)

    def close(self) -> None:
        self.closed = True
        self.cluster.gangs.pop(self.gang_id, None)

    def _is_free(self) -> bool:
        return self.payload is None or all(code is not None for code in self.exit_codes)

    def _check(self) -> None:
        if self.lost or self.closed:
            raise GangLost(self.lost or "closed")

    def _ranks(self) -> tuple[RankReport, ...]:
        idle_s = self.cluster.clock.now_s - self.progressed_s
        return tuple(
            RankReport(rank, 1000 + rank, "node", self.step, idle_s, code, *self.errors[rank], log_path="a log")
            for rank, code in enumerate(self.exit_codes)
        )

    def _exit(self, code: int, error: str = "", error_type: str = "", rank: int | None = None) -> None:
        for index, known in enumerate(self.exit_codes):
            if known is None and rank in (None, index):
                self.exit_codes[index] = code
                self.errors[index] = (error, error_type)

    def _train(self) -> None:
        """Take the steps that time allows since the attempt began."""
        payload = self.payload
        while payload is not None and not self._is_free() and not self.hanging:
            due = self.start + int((self.cluster.clock.now_s - self.began_s) / STEP_S)
            if self.step >= due:
                return
            segment = self._segment_at(self.step + 1)
            self.step += 1
            self.cluster.steps_taken += 1
            self.progressed_s = self.began_s + (self.step - self.start) * STEP_S
            fault = self.cluster.fault_at(self)
            if fault is not None and self._suffer(fault, segment):
                return
            if self.step % RECORD_EVERY_STEPS == 0:
                self._note("metrics", segment, self.step, {"train/loss": loss_at(payload, self.step)})
            if self.step == segment.end_step:
                self._finish(segment, damaged=fault is not None and fault.kind == "damage state")
            elif self.step % CHECKPOINT_EVERY_STEPS == 0 or self.leaving:
                path, digest = self._commit(self.step, None)
                self._note("checkpoint", segment, self.step, {"path": str(path), "manifest_digest": digest})
                if self.leaving:
                    self._leave(segment, "preempted", "asked to leave")

    def _suffer(self, fault: Fault, segment: Segment) -> bool:
        """True if the fault ends the attempt's training."""
        match fault.kind:
            case "kill":
                self._exit(-9, rank=0)
                self._exit(1, "RuntimeError: Connection closed by peer", "RuntimeError")
            case "lose gang":
                self.lost = "node gone"
                self.cluster.gangs.pop(self.gang_id, None)
            case "out of memory":
                self._exit(1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory", "OutOfMemoryError")
            case "bug":
                self._exit(1, "Traceback\nKeyError: 'a bug'", "KeyError")
            case "diverge":
                self._leave(segment, "diverged", f"loss nan in step {self.step}")
            case "hang":
                self.hanging = True
            case "driver":
                # What the gang still does until its next report is committed, but read by nobody.
                self.cluster.driver_dies = True
                return False
            case "damage state":
                return False
        return True

    def _finish(self, segment: Segment, damaged: bool) -> None:
        assert self.payload is not None
        final = None
        if segment.state_id in self.payload.final_segments:
            final = FinalLoss(
                loss_nats_per_token=loss_at(self.payload, self.step),
                loss_standard_error=0.01,
                bits_per_byte=1.0,
                tokens=self.payload.evaluation.tokens,
                documents=7,
                evaluation_digest="an evaluation",
                path="losses",
                sha256="0" * 64,
            )
        path, digest = self._commit(self.step, final)
        if damaged:
            (path / MANIFEST).write_bytes(b"torn")
        data = {"state_id": segment.state_id, "path": str(path), "manifest_digest": digest}
        self._note("state", segment, self.step, data)
        if segment is self.payload.segments[-1]:
            self._leave(segment, "finished", "")
        elif self.leaving:
            self._leave(segment, "preempted", "asked to leave")

    def _leave(self, segment: Segment, outcome: str, reason: str) -> None:
        self._note("end", segment, self.step, {"outcome": outcome, "reason": reason})
        self._exit(0)

    def _commit(self, step: int, final: FinalLoss | None) -> tuple[Path, str]:
        assert self.payload is not None
        folder = AttemptPaths(Path(self.payload.attempt_dir)).state(step)
        folder.mkdir(parents=True)
        shard = f"weights at {step}".encode()
        (folder / "shard.safetensors").write_bytes(shard)
        spec = self.payload.spec
        manifest = Manifest(
            numerics_version=NUMERICS_VERSION,
            state_id=state_fingerprint(spec, step),
            curve_id=curve_fingerprint(spec, step),
            step=step,
            tokens=step * spec.batch_tokens,
            attempt=self.payload.attempt,
            spec=spec,
            files=(FileEntry(name="shard.safetensors", size_bytes=len(shard), sha256=sha256_of_bytes(shard)),),
            final=final,
        )
        content = manifest.model_dump_json().encode()
        (folder / MANIFEST).write_bytes(content)
        return folder, sha256_of_bytes(content)

    def _segment_at(self, step: int) -> Segment:
        assert self.payload is not None
        return next(segment for segment in self.payload.segments if segment.start_step < step <= segment.end_step)

    def _note(self, kind: Any, segment: Segment, step: int, data: dict[str, Any]) -> None:
        assert self.journal is not None
        assert self.payload is not None
        self.journal.write(kind, segment.curve_id, step, step * self.payload.spec.batch_tokens, data)


def loss_at(payload: ChainPayload, step: int) -> float:
    """A loss that depends on the run and the step alone, as training's does."""
    return 2.0 + 100.0 / (payload.spec.shape.width + step) + 1e-9 * payload.spec.seed


class FakeCluster:
    """A launcher of fake gangs on nodes with so many cores."""

    kind: Literal["fake"] = "fake"

    def __init__(self, clock: FakeClock, cpus: Sequence[float] = (2.0,), faults: Sequence[Fault] = ()) -> None:
        self.clock = clock
        self.cpus = cpus
        self.faults = list(faults)
        self.gangs: dict[str, FakeGang] = {}
        self.attempts: list[ChainPayload] = []
        self.opened = 0
        self.most_open = 0
        self.steps_taken = 0
        self.driver_dies = False
        self._lock = threading.Lock()

    def inventory(self) -> Inventory:
        with self._lock:
            used = sum(gang.request.world_size * gang.request.cpus_per_rank for gang in self.gangs.values())
        nodes = []
        for index, total in enumerate(self.cpus):
            taken = min(total, used)
            used -= taken
            nodes.append(Node(f"node-{index}", "here", total, 0.0, total - taken, 0.0))
        return Inventory(tuple(nodes))

    def open(self, request: GangRequest) -> FakeGang:
        if self.take_fault("refuse", "", 0):
            raise GangLost(f"{request.gang_id}: no room now")
        with self._lock:
            used = sum(gang.request.world_size * gang.request.cpus_per_rank for gang in self.gangs.values())
            assert used + request.world_size * request.cpus_per_rank <= sum(self.cpus), "more gangs than fit"
            gang = FakeGang(self, request)
            self.gangs[request.gang_id] = gang
            self.opened += 1
            self.most_open = max(self.most_open, len(self.gangs))
        return gang

    def close(self) -> None:
        for gang in list(self.gangs.values()):
            gang.close()

    def fault_at(self, gang: FakeGang) -> Fault | None:
        assert gang.payload is not None
        return self.take_fault("", Path(gang.payload.attempt_dir).name, gang.step)

    def take_fault(self, kind: str, attempt_name: str, step: int) -> Fault | None:
        for fault in self.faults:
            asked = fault.kind == kind if kind else fault.kind != "refuse"
            if asked and fault.times > 0 and fault.at_step == step and attempt_name.startswith(fault.chain):
                fault.times -= 1
                return fault
        return None
