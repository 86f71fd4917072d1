"""What a run is, and how it is carried out, as frozen values.

Everything in `RunSpec` changes the science and is fingerprinted (`jobs.identity`); nothing in `Execution` does
or is. A field that seems to belong to both is two fields.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.schedules import Schedule

Precision = Literal["fp32", "bf16"]
SegmentKind = Literal["trunk", "decay", "whole"]


class Frozen(BaseModel):
    """A value: compared by content, changed by making a new one, refused with an unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shape(Frozen):
    """Architecture of the decoder: RMSNorm, rotary positions, QK-norm, SwiGLU, no biases, untied embeddings."""

    vocab_size: int = Field(gt=1)
    width: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    mlp_width: int = Field(gt=0)
    sequence_length: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> Shape:
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width {self.width} over {self.num_heads} heads must give an even whole head size (rotary positions)"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


class Parametrization(Frozen):
    """Which rule scales initialisation, learning rate, weight decay and epsilon with the shape."""

    kind: Literal["completep", "mup", "sp"] = "completep"
    base_width: int = Field(default=32, gt=0)
    base_layers: int = Field(default=2, gt=0)


class Recipe(Frozen):
    """Resolved values of the optimization, at the base shape of the parametrization.

    `learning_rate` is the peak that the schedule multiplies, `weight_decay` that of torch's AdamW
    (shrink = learning rate x weight decay), `gradient_clip` the global norm (0 switches it off).
    """

    learning_rate: float = Field(gt=0)
    batch_sequences: int = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    epsilon: float = Field(default=1e-12, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    init_std: float = Field(default=0.02, gt=0)
    embedding_multiplier: float = Field(default=1.0, gt=0)
    output_multiplier: float = Field(default=1.0, gt=0)


class RunSpec(Frozen):
    """Identity of one run: shape, corpus, recipe, schedule to the horizon, precision and both seeds."""

    shape: Shape
    parametrization: Parametrization
    recipe: Recipe
    schedule: Schedule
    corpus_digest: str
    precision: Precision = "fp32"
    seed: int = Field(default=0, ge=0)
    data_seed: int = Field(default=0, ge=0)

    @property
    def batch_tokens(self) -> int:
        """Tokens consumed by one optimizer step."""
        return self.recipe.batch_sequences * self.shape.sequence_length

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def horizon_tokens(self) -> int:
        """D: training tokens of the whole path from step 0."""
        return self.total_steps * self.batch_tokens


class Segment(Frozen):
    """A stretch of training from one state to the next under one piece of the schedule.

    `state_id` names the state at `end_step` (jobs.identity.state_fingerprint), `parent_id` the state that it starts
    from (None: initialisation), `curve_id` the curve on which its points lie (a trunk has one whatever its length).
    """

    state_id: str
    parent_id: str | None
    curve_id: str
    start_step: int = Field(ge=0)
    end_step: int = Field(gt=0)
    kind: SegmentKind

    @property
    def num_steps(self) -> int:
        return self.end_step - self.start_step


class Execution(Frozen):
    """How segments are carried out: changes speed and rounding, never the order of tokens."""

    world_size: int = Field(default=1, gt=0)
    micro_batch_sequences: int = Field(gt=0)
    zero_stage: Literal[1, 2, 3] = 1
    device: Literal["cpu", "cuda"] = "cpu"
    threads_per_rank: int = Field(default=1, gt=0)
    activation_checkpointing: bool = False

    def accumulation_steps(self, batch_sequences: int) -> int:
        """Micro-batches per rank and optimizer step. Raises ValueError if the batch cannot be cut so."""
        per_pass = self.world_size * self.micro_batch_sequences
        if batch_sequences % per_pass:
            raise ValueError(
                f"a batch of {batch_sequences} sequences cannot be split over {self.world_size} ranks x "
                f"{self.micro_batch_sequences} per micro-batch (needs a multiple of {per_pass})"
            )
        return batch_sequences // per_pass


class StateRef(Frozen):
    """A committed training state: its folder and the sha256 of its manifest."""

    path: str
    manifest_digest: str
    step: int = Field(ge=0)


class EvaluationSpec(Frozen):
    """The fixed validation tokens on which a final loss is measured (never a smoothed training loss)."""

    tokens: int = Field(gt=0)


class ChainPayload(Frozen):
    """What a gang is told: consecutive segments of one path, executed without letting go of their state.

    `spec.schedule` covers the whole chain. `resume` is the parent state of the first segment, or a later verified
    checkpoint inside the chain; None starts from initialisation. The attempt writes only into `attempt_dir`.
    `final_segments` are the state ids whose end is a run's end, where the final loss is measured.
    """

    spec: RunSpec
    segments: tuple[Segment, ...] = Field(min_length=1)
    final_segments: tuple[str, ...] = ()
    execution: Execution
    attempt: int = Field(gt=0)
    attempt_dir: str
    resume: StateRef | None = None
    corpus_dir: str
    evaluation: EvaluationSpec
    checkpoint_interval_s: float = Field(default=60.0, gt=0)
