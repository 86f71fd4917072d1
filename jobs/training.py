"""The training loop of one attempt: executes the segments of a chain and commits the state at the end of each."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt
import torch

from jobs.accounting import train_flops_per_token
from jobs.checkpoints import drop_state, load_state, save_state
from jobs.engine import Engine, StepResult
from jobs.evaluating import document_losses
from jobs.evaluation_windows import Evaluation
from jobs.identity import state_fingerprint
from jobs.journal import JournalWriter, LineKind
from jobs.peers import Peers
from jobs.records import DocumentLosses, FinalLoss, is_recorded
from jobs.spec import ChainPayload, Segment, StateRef
from jobs.storage import AttemptPaths

logger = logging.getLogger(__name__)

# A model that guesses uniformly has loss ln V. One that stays this far above it for this many steps does not come
# back: both are far beyond every spike from which a run was seen to recover (guess; lower them if a quality gate shows
# runs that trained on in vain). The rule does not look at earlier losses, so a resumed run is judged like any other.
DIVERGED_ABOVE_UNIFORM_NATS = 3.0
DIVERGED_STEPS = 50

# Checkpoints inside a segment that are kept: the newest, and the one before it in case the newest is damaged.
KEPT_CHECKPOINTS = 2


class Link(Protocol):
    """What the loop tells its host, and hears from it."""

    def heartbeat(self, step: int) -> None: ...

    def should_leave(self) -> bool: ...


class Corpus(Protocol):
    """Where tokens come from (jobs.corpus.PreparedCorpus)."""

    def batch(
        self, data_seed: int, step: int, batch_sequences: int, sequence_length: int, rows: slice
    ) -> npt.NDArray[Any]: ...

    def evaluation(self, tokens: int, sequence_length: int) -> Evaluation: ...


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, at which step, and why if it did not finish."""

    kind: Literal["finished", "diverged", "preempted"]
    step: int
    reason: str = ""


@dataclass(frozen=True)
class Pulse:
    """What all ranks know of a step: the loss of the whole batch in nats per token, and what is asked of them."""

    loss: float
    leave: bool
    checkpoint: bool


class Attempt:
    """One try of a gang at a chain, as one rank sees it. `journal` is given to rank 0 alone."""

    def __init__(
        self,
        payload: ChainPayload,
        engine: Engine,
        corpus: Corpus,
        peers: Peers,
        link: Link,
        journal: JournalWriter | None,
    ) -> None:
        self._payload = payload
        self._spec = payload.spec
        self._paths = AttemptPaths(Path(payload.attempt_dir))
        self._engine = engine
        self._corpus = corpus
        self._peers = peers
        self._link = link
        self._journal = journal
        self._checkpoints: list[Path] = []
        self._saved_at = time.monotonic()
        self._gauges = Gauges(payload)
        self._leave = False
        self._steps_above_uniform = 0

    def run(self) -> Outcome:
        """Execute the chain from its start, or from the state that it resumes.

        Raises CheckpointError if that state is damaged or of another run, ValueError if it lies outside the chain.
        """
        step = self._begin()
        for segment in self._payload.segments:
            if segment.end_step <= step:
                continue
            outcome = self._train(segment, step) or self._finish(segment)
            if outcome is not None:
                return self._end(segment, outcome)
            step = segment.end_step
        return self._end(self._payload.segments[-1], Outcome("finished", step))

    def _begin(self) -> int:
        resume, segments = self._payload.resume, self._payload.segments
        step = resume.step if resume is not None else 0
        if not segments[0].start_step <= step < segments[-1].end_step:
            raise ValueError(
                f"a chain of steps [{segments[0].start_step}, {segments[-1].end_step}) cannot begin at step {step}. "
                "Resume it from the state of its parent, or from one inside it"
            )
        if resume is not None:
            load_state(resume, self._engine, self._peers, spec=self._spec)
        where = {"world_size": self._peers.world_size, "host": socket.gethostname(), "pid": os.getpid()}
        self._note("begin", segments[0], step, {"resumed_from": step, **where})
        return step

    def _train(self, segment: Segment, step: int) -> Outcome | None:
        """Take the steps of a segment from `step` on. Returns an outcome if the attempt ends among them."""
        self._gauges.reset()
        while step < segment.end_step:
            pulse = self._exchange(self._engine.backward(self._own_rows(step)))
            if not math.isfinite(pulse.loss):
                return Outcome("diverged", step, f"loss {pulse.loss} in step {step + 1}")
            multiplier = self._spec.schedule.multiplier(step)
            result = self._engine.step(multiplier)
            if not result.applied or not math.isfinite(result.gradient_norm):
                return Outcome("diverged", step, f"gradient norm {result.gradient_norm} in step {step + 1}")
            step += 1
            self._link.heartbeat(step)
            self._gauges.count_step()
            if is_recorded(step):
                self._note("metrics", segment, step, self._gauges.read(step, multiplier, pulse, result))
            if self._stays_above_uniform(pulse.loss):
                return Outcome("diverged", step, f"loss {pulse.loss:.3f} after {DIVERGED_STEPS} steps above uniform")
            if step < segment.end_step and (pulse.leave or pulse.checkpoint):
                self._save_checkpoint(segment, step)
                if pulse.leave:
                    return Outcome("preempted", step, "asked to leave")
        return None

    def _own_rows(self, step: int) -> torch.Tensor:
        """This rank's sequences, [B / ranks, T + 1]: the batch of a step is the same for every gang, cut in order."""
        num_rows = self._spec.recipe.batch_sequences // self._peers.world_size
        rows = slice(self._peers.rank * num_rows, (self._peers.rank + 1) * num_rows)
        return torch.from_numpy(
            self._corpus.batch(
                self._spec.data_seed, step, self._spec.recipe.batch_sequences, self._spec.shape.sequence_length, rows
            )
        )

    def _exchange(self, own_loss: float) -> Pulse:
        """One exchange a step: all ranks hear the same loss, and save or leave after the same step."""
        due = self._peers.is_first and time.monotonic() - self._saved_at > self._payload.checkpoint_interval_s
        loss, leave, checkpoint = self._peers.sum((own_loss, float(self._link.should_leave()), float(due)))
        self._leave = leave > 0
        return Pulse(loss=loss / self._peers.world_size, leave=self._leave, checkpoint=checkpoint > 0)

    def _stays_above_uniform(self, loss: float) -> bool:
        bound = math.log(self._spec.shape.vocab_size) + DIVERGED_ABOVE_UNIFORM_NATS
        self._steps_above_uniform = self._steps_above_uniform + 1 if loss > bound else 0
        return self._steps_above_uniform >= DIVERGED_STEPS

    def _save_checkpoint(self, segment: Segment, step: int) -> None:
        """Commit a state inside a segment."""
        reference = self._save(step)
        self._note("checkpoint", segment, step, {"path": reference.path, "manifest_digest": reference.manifest_digest})
        self._checkpoints.append(Path(reference.path))
        self._drop_checkpoints(self._checkpoints[:-KEPT_CHECKPOINTS])

    def _finish(self, segment: Segment) -> Outcome | None:
        """Commit the state that ends a segment, with the final loss if a run ends there."""
        step = segment.end_step
        assert segment.state_id == state_fingerprint(self._spec, step), f"{segment} names the state of another run"
        final = None
        if segment.state_id in self._payload.final_segments:
            evaluation = self._corpus.evaluation(self._payload.evaluation.tokens, self._spec.shape.sequence_length)
            losses = document_losses(
                self._engine,
                evaluation,
                self._peers,
                windows_a_pass=self._payload.execution.micro_batch_sequences,
                alive=lambda: self._link.heartbeat(step),
            )
            if not math.isfinite(losses.loss):
                return Outcome("diverged", step, f"held-out loss {losses.loss} after step {step}")
            final = self._record_losses(step, losses, evaluation)
        reference = self._save(step, final)
        data = {"path": reference.path, "manifest_digest": reference.manifest_digest}
        self._note("state", segment, step, {"state_id": segment.state_id, **data})
        if final is not None:
            self._note("final", segment, step, final.journal_data(segment.state_id))
        self._drop_checkpoints(list(self._checkpoints))
        if self._leave and segment is not self._payload.segments[-1]:
            return Outcome("preempted", step, "asked to leave")
        return None

    def _record_losses(self, step: int, losses: DocumentLosses, evaluation: Evaluation) -> FinalLoss:
        path = self._paths.evaluation(step)
        return FinalLoss(
            loss_nats_per_token=losses.loss,
            loss_standard_error=losses.standard_error,
            bits_per_byte=losses.bits_per_byte,
            tokens=evaluation.num_tokens,
            documents=evaluation.num_documents,
            evaluation_digest=evaluation.digest,
            path=str(path),
            sha256=losses.save(path) if self._peers.is_first else "",
        )

    def _save(self, step: int, final: FinalLoss | None = None) -> StateRef:
        reference = save_state(
            self._paths.state(step),
            self._engine,
            self._peers,
            spec=self._spec,
            step=step,
            attempt=self._payload.attempt,
            final=final,
        )
        self._saved_at = time.monotonic()
        self._gauges.reset()
        return reference

    def _drop_checkpoints(self, folders: list[Path]) -> None:
        for folder in folders:
            self._checkpoints.remove(folder)
            if self._peers.is_first:
                drop_state(folder)

    def _note(self, kind: LineKind, segment: Segment, step: int, data: dict[str, Any]) -> None:
        """Write a line of the journal, on rank 0; what others act on is on the disk before they can read it."""
        if self._journal is None:
            return
        self._journal.write(kind, segment.curve_id, step, step * self._spec.batch_tokens, data)
        if kind != "metrics":
            self._journal.sync()

    def _end(self, segment: Segment, outcome: Outcome) -> Outcome:
        self._note("end", segment, outcome.step, {"outcome": outcome.kind, "reason": outcome.reason})
        if self._peers.is_first:
            logger.info(
                "attempt %d: %s at step %d %s", self._payload.attempt, outcome.kind, outcome.step, outcome.reason
            )
        return outcome


class Gauges:
    """What the journal says of a recorded step."""

    def __init__(self, payload: ChainPayload) -> None:
        self._spec = payload.spec
        self._train_flops_per_token = train_flops_per_token(payload.spec.shape)
        self.reset()

    def reset(self) -> None:
        """Begin a new measurement of speed: what lay between was not training."""
        self._num_steps = 0
        self._since = time.perf_counter()

    def count_step(self) -> None:
        self._num_steps += 1

    def read(self, step: int, multiplier: float, pulse: Pulse, result: StepResult) -> dict[str, float]:
        """Gauges after `step` optimizer steps; the loss is that of the last step's batch before its update."""
        tokens_per_s = self._num_steps * self._spec.batch_tokens / (time.perf_counter() - self._since)
        self.reset()
        return {
            "train/loss": pulse.loss,
            "train/learning_rate": self._spec.recipe.learning_rate * multiplier,
            "train/grad_norm": result.gradient_norm,
            "train/tokens_per_s": tokens_per_s,
            "train/flops": float(step * self._spec.batch_tokens * self._train_flops_per_token),
            "train/optimizer_step": float(step),
        }
