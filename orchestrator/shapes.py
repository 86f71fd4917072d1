"""One dial gives a shape: the size asked for picks width, depth, heads and MLP width by a stated rule.

    heads h = 1, 2, 3, ...          width = h head_dim
    layers = num_layers if given, else max(min_layers, round(width / aspect))
    mlp_width = 8/3 width rounded to a multiple of mlp_multiple   (SwiGLU at the cost of a 4 x MLP, Shazeer 2020)

Of all h, the one whose default N (matrix-product weights, unembedding included, input embedding not) is nearest to
the size in log is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.accounting import ParameterCount, count_parameters
from jobs.spec import Shape
from orchestrator.numbers import short_number

SWIGLU_RATIO = 8 / 3

# A realised size farther off than this is not what was asked for, and is refused.
LARGEST_FACTOR_OFF = 1.5

# Beyond this the deviation is worth a line in the plan.
NOTED_DEVIATION = 0.02


@dataclass(frozen=True)
class ShapeRule:
    """What is fixed while the size dial turns."""

    vocab_size: int
    sequence_length: int
    head_dim: int
    aspect: float
    min_layers: int
    num_layers: int | None
    mlp_multiple: int

    def shape(self, num_heads: int) -> Shape:
        """The shape with this many heads."""
        width = num_heads * self.head_dim
        mlp_width = max(1, round(SWIGLU_RATIO * width / self.mlp_multiple)) * self.mlp_multiple
        return Shape(
            vocab_size=self.vocab_size,
            width=width,
            num_layers=self.num_layers or max(self.min_layers, round(width / self.aspect)),
            num_heads=num_heads,
            mlp_width=mlp_width,
            sequence_length=self.sequence_length,
        )


@dataclass(frozen=True)
class SizedShape:
    """A size asked for, and the shape that realises it."""

    requested_params: int
    shape: Shape
    params: ParameterCount

    @property
    def deviation(self) -> float:
        """Realised over requested default N, minus 1."""
        return self.params.matmul / self.requested_params - 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What rounding did, where it is worth saying."""
        if abs(self.deviation) <= NOTED_DEVIATION:
            return ()
        asked, realised = short_number(self.requested_params), short_number(self.params.matmul)
        return (f"size {asked} became {realised} ({self.deviation:+.1%})",)


def shape_for(requested_params: int, rule: ShapeRule) -> SizedShape:
    """The shape nearest to a size.

    Raises ValueError where no shape of the rule is within a factor of 1.5.
    """

    def params(num_heads: int) -> int:
        return count_parameters(rule.shape(num_heads)).matmul

    # N rises with the number of heads, so the two candidates around the size are found by bisection.
    high = 1
    while params(high) < requested_params:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if params(middle) < requested_params else (low, middle)
    heads = min((low, high), key=lambda count: abs(math.log(params(count) / requested_params)))
    if abs(math.log(params(heads) / requested_params)) > math.log(LARGEST_FACTOR_OFF):
        near = " and ".join(
            f"{short_number(params(count))} (width {rule.shape(count).width}, {rule.shape(count).num_layers} layers)"
            for count in sorted({low, high})
        )
        raise ValueError(
            f"{short_number(requested_params)} parameters cannot be reached with heads of {rule.head_dim} and "
            f"vocabulary {rule.vocab_size}: the nearest shapes have {near}, more than a factor of "
            f"{LARGEST_FACTOR_OFF} away. Use a size near one of them, or a smaller model.head_dim"
        )
    shape = rule.shape(heads)
    return SizedShape(requested_params, shape, count_parameters(shape))
