"""Parameters, FLOPs and memory of a shape in closed form, by part, so that every published convention can be derived.

Default N: weights that take part in matrix products (`matmul`: unembedding included, input embedding not).
Default C: exact, attention scores included and without causal halving.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.spec import Execution, Precision, Shape

# Backward costs twice forward: one product for the input's gradient, one for the weight's (Kaplan 2020, sec. 2.1).
TRAIN_OVER_FORWARD = 3
FLOPS_PER_MULTIPLY_ADD = 2


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by group."""

    embedding: int
    attention: int
    mlp: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """Every trained number (Hoffmann et al. 2022)."""
        return self.embedding + self.attention + self.mlp + self.norm + self.head

    @property
    def matmul(self) -> int:
        """Weights that take part in matrix products: the default N."""
        return self.attention + self.mlp + self.head

    @property
    def non_embedding(self) -> int:
        """Neither embedding nor unembedding (Kaplan et al. 2020); gains left out, as there."""
        return self.attention + self.mlp


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations per token of one forward pass, by component."""

    attention_projections: int
    attention_scores: int
    mlp: int
    head: int

    @property
    def total(self) -> int:
        return self.attention_projections + self.attention_scores + self.mlp + self.head


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one rank of a gang needs for training."""

    states_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.states_bytes + self.activations_bytes


def count_parameters(shape: Shape) -> ParameterCount:
    """Parameters of the decoder (jobs.model) by group."""
    embedding = shape.vocab_size * shape.width
    return ParameterCount(
        embedding=embedding,
        attention=4 * shape.width**2 * shape.num_layers,
        mlp=3 * shape.width * shape.mlp_width * shape.num_layers,
        norm=(2 * shape.width + 2 * shape.head_dim) * shape.num_layers + shape.width,
        head=embedding,
    )


def forward_flops_per_token(shape: Shape) -> FlopCount:
    """Matrix products of one forward pass per token, 2 per multiply-add.

    Attention scores: q.k and the weighted sum of values over all T positions, 2 x 2 T width a layer, the masked half
    included (as torch counts, and Hoffmann et al. 2022, app. F). Look-ups, norms and softmax are not counted.
    """
    params = count_parameters(shape)
    return FlopCount(
        attention_projections=FLOPS_PER_MULTIPLY_ADD * params.attention,
        attention_scores=2 * FLOPS_PER_MULTIPLY_ADD * shape.sequence_length * shape.width * shape.num_layers,
        mlp=FLOPS_PER_MULTIPLY_ADD * params.mlp,
        head=FLOPS_PER_MULTIPLY_ADD * params.head,
    )


def train_flops_per_token(shape: Shape) -> int:
    """Exact training FLOPs per token: forward and backward."""
    return TRAIN_OVER_FORWARD * forward_flops_per_token(shape).total


def training_memory(shape: Shape, execution: Execution, precision: Precision = "fp32") -> MemoryEstimate:
    """Memory of one rank under ZeRO (Rajbhandari et al. 2020, sec. 3): states, and activations of one micro-batch.

    States per parameter: working weight and gradient (4 + 4 bytes in fp32, 2 + 2 in bf16), fp32 master, two moments,
    and the fp32 gradient that the optimizer reads, 16 bytes shared among ranks from stage 1; gradients are shared from
    stage 2, working weights from stage 3.
    """
    total = count_parameters(shape).total
    ranks = execution.world_size
    width_bytes = 4 if precision == "fp32" else 2
    weights = total * width_bytes / (ranks if execution.zero_stage >= 3 else 1)
    gradients = total * width_bytes / (ranks if execution.zero_stage >= 2 else 1)
    optimizer = total * 16 / ranks
    return MemoryEstimate(
        states_bytes=round(weights + gradients + optimizer),
        activations_bytes=_activation_bytes(shape, execution, width_bytes),
    )


def _activation_bytes(shape: Shape, execution: Execution, width_bytes: int) -> int:
    """What backward keeps of one micro-batch.

    Per token and layer, in elements: two norms' inputs and outputs (4 width), qkv (3), normalised and rotated q and k
    (6), attention output and its projection's input (2), gate and up (2 mlp), silu and product (2 mlp), the residual
    sums (2). The head keeps logits, their fp32 copy and the log-softmax.
    """
    tokens = execution.micro_batch_sequences * shape.sequence_length
    layer_elements = 17 * shape.width + 4 * shape.mlp_width
    kept_layers = 1 if execution.activation_checkpointing else shape.num_layers
    boundaries = shape.num_layers * shape.width if execution.activation_checkpointing else 0
    body = tokens * (layer_elements * kept_layers + boundaries + 3 * shape.width) * width_bytes
    head = tokens * shape.vocab_size * (width_bytes + 3 * 4)
    return body + head
