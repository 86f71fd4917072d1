"""One row of a fit: a finished run with N, D and C under stated conventions, and its held-out loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.spec import Frozen

# Conventions of the default columns, stated with every row so that an exported law can name them.
PARAMS_CONVENTION = "matmul: weights in matrix products, unembedding included, input embedding not"
FLOPS_CONVENTION = "exact: whole path 0 -> D alone, attention without causal halving"


class Observation(Frozen):
    """A run's final observation. N, D and C describe the whole path 0 -> D as if trained alone."""

    name: str
    role: Literal["fit", "target"]
    state_id: str
    seed: int
    data_seed: int
    params: int = Field(gt=0)
    """N: weights that take part in matrix products."""
    total_params: int = Field(gt=0)
    non_embedding_params: int = Field(gt=0)
    tokens: int = Field(gt=0)
    """D: training tokens of the whole path."""
    train_flops: float = Field(gt=0)
    """C: exact."""
    loss: float
    """Held-out loss in nats per token."""
    loss_se: float = Field(ge=0)
    """Standard error over documents of the evaluation set: common to all runs, so the error between two is smaller."""
    bits_per_byte: float
    evaluation_tokens: int = Field(gt=0)
    evaluation_digest: str
    document_losses_path: str
    document_losses_sha256: str
    trunk: str
    """Curve of the first segment: runs of one trunk share weights and tokens, and are resampled together."""
    world_size: int = Field(gt=0)
    quality: Literal["ok"] = "ok"
    """A run that diverged gives no observation; later gates mark those that trained unsteadily."""
    params_convention: str = PARAMS_CONVENTION
    flops_convention: str = FLOPS_CONVENTION

    def as_row(self) -> dict[str, Any]:
        """Flat values for a table."""
        return self.model_dump(mode="json")
