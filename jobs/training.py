"""The training loop of one attempt: executes the segments of a chain and commits the state at the end of each."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt
import torch

from jobs.accounting import train_flops_per_token
from jobs.checkpoints import drop_state, load_state, save_state
from jobs.engine import Engine, StepResult
from jobs.evaluating import document_losses
from jobs.identity import state_fingerprint
from jobs.journal import JournalWriter, LineKind
from jobs.peers import Peers
from jobs.records import FinalLoss, is_recorded
from jobs.spec import ChainPayload, Segment
from jobs.storage import AttemptPaths

logger = logging.getLogger(__name__)

# A model that guesses uniformly has loss ln V. One that stays this far above it for this many steps does not come
# back: the bound is far beyond every spike from which runs were seen to recover (guess; lower it where a quality
# gate shows runs that were trained on in vain). It looks at the loss alone, not at its past, so that a resumed run is
# judged like an undisturbed one.
DIVERGED_ABOVE_UNIFORM_NATS = 3.0
DIVERGED_STEPS = 50

# Checkpoints in the middle of a segment that are kept: the newest, and the one before it.
KEPT_CHECKPOINTS = 2


class Link(Protocol):
    """What the loop says to its host, and hears from it."""

    def heartbeat(self, step: int) -> None: ...

    def should_leave(self) -> bool: ...


class Corpus(Protocol):
    """Where batches come from (jobs.corpus.PreparedCorpus)."""

    def batch(
        self, data_seed: int, step: int, batch_sequences: int, sequence_length: int, rows: slice
    ) -> npt.NDArray[Any]: ...

    def evaluation(self, tokens: int, sequence_length: int) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, at which step, and why if not by finishing."""

    kind: Literal["finished", "diverged", "preempted"]
    step: int
    reason: str = ""


@dataclass(frozen=True)
class Pulse:
    """What the ranks know of a step together: the loss of the whole batch in nats per token, and what is asked."""

    loss: float
    leave: bool
    checkpoint: bool


@dataclass
class Attempt:
    """One try of a gang at a chain, as one rank sees it. `journal` is rank 0's alone."""

    payload: ChainPayload
    engine: Engine
    corpus: Corpus
    peers: Peers
    link: Link
    journal: JournalWriter | None
    checkpoints: list[Path] = field(default_factory=list)
    leaving: bool = False
    saved_at: float = field(default_factory=time.monotonic)
    steps_above_uniform: int = 0

    def run(self) -> Outcome:
        """Execute the chain from its start or its checkpoint. Raises CheckpointError if that cannot be loaded."""
        step = self._start()
        for segment in self.payload.segments:
            if segment.end_step <= step:
                continue
            outcome = self._train(segment, step) or self._finish(segment)
            if outcome is not None:
                return self._end(segment, outcome)
            step = segment.end_step
        return self._end(self.payload.segments[-1], Outcome("finished", step))

    def _start(self) -> int:
        resume, first = self.payload.resume, self.payload.segments[0]
        step = first.start_step if resume is None else resume.step
        if (resume is None and step) or not first.start_step <= step < self.payload.segments[-1].end_step:
            raise ValueError(
                f"the chain [{first.start_step}, {self.payload.segments[-1].end_step}) cannot begin at step {step} "
                f"{'without' if resume is None else 'from'} a state. Give the state at its start, or one inside it"
            )
        if resume is not None:
            load_state(resume, self.engine, self.peers, spec=self.payload.spec)
        self._note(
            "begin",
            first,
            step,
            {
                "resumed_from": step,
                "world_size": self.peers.world_size,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            },
        )
        return step

    def _train(self, segment: Segment, step: int) -> Outcome | None:
        """Steps up to the end of the segment. Returns the outcome if the attempt ends inside it."""
        gauges = Gauges(self.payload)
        while step < segment.end_step:
            pulse = self._exchange(self.engine.backward(self._rows(step)))
            if not math.isfinite(pulse.loss):
                return Outcome("diverged", step, f"loss {pulse.loss} at step {step}")
            multiplier = self.payload.spec.schedule.multiplier(step)
            result = self.engine.step(multiplier)
            if not result.applied or not math.isfinite(result.gradient_norm):
                return Outcome("diverged", step, f"gradient norm {result.gradient_norm} at step {step}")
            step += 1
            gauges.count()
            self.link.heartbeat(step)
            if is_recorded(step):
                self._note("metrics", segment, step, gauges.read(step, pulse, multiplier, result))
            if self._is_lost(pulse.loss):
                return Outcome("diverged", step, f"loss {pulse.loss:.3f} stayed above that of uniform guessing")
            if step < segment.end_step and (pulse.leave or pulse.checkpoint):
                self._save_checkpoint(segment, step)
                gauges.pause()
                if pulse.leave:
                    return Outcome("preempted", step, "asked to leave")
        return None

    def _rows(self, step: int) -> torch.Tensor:
        """This rank's sequences of the batch of a step: the batch is the same for every gang, cut in order."""
        spec = self.payload.spec
        per_rank = spec.recipe.batch_sequences // self.peers.world_size
        rows = slice(self.peers.rank * per_rank, (self.peers.rank + 1) * per_rank)
        return torch.from_numpy(
            self.corpus.batch(spec.data_seed, step, spec.recipe.batch_sequences, spec.shape.sequence_length, rows)
        )

    def _exchange(self, own_loss: float) -> Pulse:
        """One exchange a step: all ranks hear the same loss, and leave or save at the same step."""
        due = self.peers.is_first and time.monotonic() - self.saved_at > self.payload.checkpoint_interval_s
        loss, leave, checkpoint = self.peers.sum([own_loss, self.link.should_leave(), due])
        self.leaving = leave > 0
        return Pulse(loss=loss / self.peers.world_size, leave=self.leaving, checkpoint=checkpoint > 0)

    def _is_lost(self, loss: float) -> bool:
        bound = math.log(self.payload.spec.shape.vocab_size) + DIVERGED_ABOVE_UNIFORM_NATS
        self.steps_above_uniform = self.steps_above_uniform + 1 if loss > bound else 0
        return self.steps_above_uniform >= DIVERGED_STEPS

    def _save_checkpoint(self, segment: Segment, step: int) -> None:
        """Commit a state in the middle of a segment; of the older ones the last is kept."""
        reference = self._save(step)
        self._note("checkpoint", segment, step, {"path": reference.path, "manifest_digest": reference.manifest_digest})
        self.checkpoints.append(Path(reference.path))
        self._drop(self.checkpoints[:-KEPT_CHECKPOINTS])

    def _finish(self, segment: Segment) -> Outcome | None:
        """Commit the state that ends a segment, with the final loss if a run ends here."""
        step = segment.end_step
        assert segment.state_id == state_fingerprint(self.payload.spec, step), "the plan names another state"
        final = self._evaluate(step) if segment.state_id in self.payload.final_segments else None
        if final is not None and not math.isfinite(final.loss_nats_per_token):
            return Outcome("diverged", step, f"held-out loss {final.loss_nats_per_token}")
        reference = self._save(step, final)
        data = {"path": reference.path, "manifest_digest": reference.manifest_digest}
        self._note("state", segment, step, {"state_id": segment.state_id, **data})
        if final is not None:
            self._note("final", segment, step, final.journal_data(segment.state_id))
        self._drop(list(self.checkpoints))
        if self.leaving and segment is not self.payload.segments[-1]:
            return Outcome("preempted", step, "asked to leave")
        return None
