"""The smallest run on which training can be seen: a spec, its chain of segments, and a corpus in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jobs.evaluation_windows import Evaluation, cut_evaluation
from jobs.identity import curve_fingerprint, state_fingerprint
from jobs.schedules import warmup_stable_decay
from jobs.spec import (
    ChainPayload,
    EvaluationSpec,
    Execution,
    Parametrization,
    Recipe,
    RunSpec,
    Segment,
    Shape,
    StateRef,
)

VOCAB_SIZE = 61


def tiny_spec(total_steps: int = 30, decay_steps: int = 6, **recipe: Any) -> RunSpec:
    """Width 16, 2 layers, 32 tokens a sequence, 8 sequences a batch; no tensor size is a multiple of another's."""
    values = {"learning_rate": 0.01, "batch_sequences": 8, "weight_decay": 0.1, "epsilon": 1e-10, **recipe}
    return RunSpec(
        shape=Shape(vocab_size=VOCAB_SIZE, width=16, num_layers=2, num_heads=2, mlp_width=23, sequence_length=32),
        parametrization=Parametrization(kind="completep", base_width=8, base_layers=1),
        recipe=Recipe(**values),
        schedule=warmup_stable_decay(total_steps, 4, decay_steps),
        corpus_digest="tiny",
    )


def segments_of(spec: RunSpec, *ends: int) -> tuple[Segment, ...]:
    """The path of a run cut at these steps."""
    segments: list[Segment] = []
    for end in ends:
        segments.append(
            Segment(
                state_id=state_fingerprint(spec, end),
                parent_id=segments[-1].state_id if segments else None,
                curve_id=curve_fingerprint(spec, end),
                start_step=segments[-1].end_step if segments else 0,
                end_step=end,
                kind="decay" if end == spec.total_steps else "trunk",
            )
        )
    return tuple(segments)


def tiny_payload(
    folder: Path,
    spec: RunSpec,
    segments: tuple[Segment, ...],
    *,
    resume: StateRef | None = None,
    checkpoint_interval_s: float = 1e6,
    attempt: int = 1,
    **execution: Any,
) -> ChainPayload:
    """The chain as told to a gang; the end of the schedule is a run's end."""
    last = segments[-1]
    return ChainPayload(
        spec=spec,
        segments=segments,
        final_segments=(last.state_id,) if last.end_step == spec.total_steps else (),
        execution=Execution(**{"micro_batch_sequences": 4, **execution}),
        attempt=attempt,
        attempt_dir=str(folder),
        resume=resume,
        corpus_dir="",
        evaluation=EvaluationSpec(tokens=500),
        checkpoint_interval_s=checkpoint_interval_s,
    )


class TinyCorpus:
    """Tokens that mostly count upwards: something to be learnt in a few steps."""

    digest = "tiny"

    def batch(self, data_seed: int, step: int, batch_sequences: int, sequence_length: int, rows: slice) -> np.ndarray:
        random = np.random.default_rng((data_seed, step))
        starts = random.integers(0, VOCAB_SIZE, (batch_sequences, 1))
        noise = random.random((batch_sequences, sequence_length + 1)) < 0.1
        return ((starts + np.cumsum(1 + 7 * noise, axis=1)) % VOCAB_SIZE).astype(np.int64)[rows]

    def evaluation(self, tokens: int, sequence_length: int) -> Evaluation:
        text = self.batch(99, 0, 1, 1000, slice(None))[0].astype(np.uint16)
        starts = np.array([0, 150, 210, 450, len(text)])
        return cut_evaluation(text, starts, np.ones(len(text), dtype=np.uint32), 0, tokens, sequence_length)
