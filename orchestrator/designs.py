"""Where the points of a study lie: sizes, token budgets and seeds, by one of four designs.

What to use when: `grid` for laws in N and D with shared trunks (sizes x budgets); `isoflop` for the compute-optimal
frontier (compute budgets x sizes, Hoffmann et al. 2022, approach 2; D seldom repeats, so little is shared); `ladder`
for sizes at multiples of 20 tokens per parameter (Bhagia et al. 2024, arXiv 2412.04403); `points` for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.accounting import train_flops_per_token
from jobs.spec import Frozen
from orchestrator.numbers import Count, Positive, Step, parse_number, short_number
from orchestrator.shapes import SizedShape

# Compute-optimal training of Hoffmann et al. 2022 is near this many tokens per parameter.
LADDER_TOKENS_PER_PARAM = 20.0

Sizes = Annotated[
    tuple[Count, ...], Field(min_length=1, description="Parameters asked for, default convention (see `model`)")
]
Seeds = Annotated[
    tuple[Annotated[Step, Field(lt=2**63)], ...],
    Field(min_length=1, description="Replicates of every point; a seed sets initialisation and order of data"),
]


class GridDesign(Frozen):
    """Every size at every token budget."""

    kind: Literal["grid"]
    sizes: Sizes
    tokens: tuple[Count, ...] | None = Field(
        default=None, min_length=1, description="Training tokens D of the runs, the same for every size"
    )
    tokens_per_param: tuple[Positive, ...] | None = Field(
        default=None, min_length=1, description="D as multiples of the realised parameters; instead of `tokens`"
    )
    seeds: Seeds = (0,)

    @model_validator(mode="after")
    def _check(self) -> GridDesign:
        if (self.tokens is None) == (self.tokens_per_param is None):
            given = "neither" if self.tokens is None else "both"
            raise ValueError(
                f"a grid needs exactly one of tokens and tokens_per_param, {given} given. "
                "Use tokens: [0.5M, 1M] to share trunks among budgets, or tokens_per_param: [20, 40]"
            )
        return self


class IsoflopDesign(Frozen):
    """Every size at every compute budget: D = C / (training FLOPs per token of the realised shape)."""

    kind: Literal["isoflop"]
    budgets: tuple[Positive, ...] = Field(min_length=1, description="Training FLOPs C, exact convention")
    sizes: Sizes
    seeds: Seeds = (0,)
    tokens_per_param_range: tuple[Positive, Positive] | None = Field(
        default=None, description="Leave out cells whose D / N lies outside [low, high]"
    )

    @model_validator(mode="after")
    def _check(self) -> IsoflopDesign:
        bounds = self.tokens_per_param_range
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(
                f"tokens_per_param_range: [{bounds[0]:g}, {bounds[1]:g}] must rise. Use for example [2, 200]"
            )
        return self


class LadderDesign(Frozen):
    """Sizes, each at multiples of 20 tokens per realised parameter."""

    kind: Literal["ladder"]
    sizes: Sizes
    multiples: tuple[Positive, ...] = Field(
        default=(1.0,), min_length=1, description="Multiples of 20 tokens per parameter, e.g. [0.5, 1, 2, 5]"
    )
    seeds: Seeds = (0,)


class DesignPoint(Frozen):
    """One point written out."""

    size: Count
    tokens: Count
    seed: Step = Field(default=0, lt=2**63)


class PointsDesign(Frozen):
    """Points written out one by one."""

    kind: Literal["points"]
    points: tuple[DesignPoint, ...] = Field(min_length=1)


Design = Annotated[GridDesign | IsoflopDesign | LadderDesign | PointsDesign, Field(discriminator="kind")]


@dataclass(frozen=True)
class Point:
    """One point asked for, before rounding to whole steps. `path` says where in the design it was asked."""

    size: int
    tokens: int
    seed: int
    path: tuple[str | int, ...]


def design_sizes(design: Design) -> tuple[int, ...]:
    """Sizes of a design, each once, in the order of first mention."""
    if isinstance(design, PointsDesign):
        return tuple(dict.fromkeys(point.size for point in design.points))
    return tuple(dict.fromkeys(design.sizes))


def count_points(design: Design) -> int:
    """Points that the design asks for, without making them."""
    match design:
        case GridDesign():
            return len(design.sizes) * len(design.tokens or design.tokens_per_param or ()) * len(design.seeds)
        case IsoflopDesign():
            return len(design.sizes) * len(design.budgets) * len(design.seeds)
        case LadderDesign():
            return len(design.sizes) * len(design.multiples) * len(design.seeds)
        case PointsDesign():
            return len(design.points)


def repeated_entries(design: Design) -> list[tuple[tuple[str | int, ...], object]]:
    """Path and value of every list entry of the design that was given before in the same list."""
    found: list[tuple[tuple[str | int, ...], object]] = []
    if isinstance(design, PointsDesign):
        return found  # a repeated point is found as a repeated run, which says more
    for name in type(design).model_fields:
        entries = getattr(design, name)
        if name in ("kind", "tokens_per_param_range") or entries is None:
            continue
        found.extend(((name, i), entry) for i, entry in enumerate(entries) if entry in entries[:i])
    return found


def expand(design: Design, shapes: Mapping[int, SizedShape]) -> tuple[Point, ...]:
    """All points of the design, in the order size, budget, seed. `shapes` has the realised shape of every size."""
    if isinstance(design, PointsDesign):
        return tuple(Point(p.size, p.tokens, p.seed, ("points", i)) for i, p in enumerate(design.points))
    return tuple(
        Point(size, tokens, seed, path)
        for size in design.sizes
        for tokens, path in _budgets(design, shapes[size])
        for seed in design.seeds
    )


def left_out(design: Design, shapes: Mapping[int, SizedShape]) -> tuple[str, ...]:
    """Cells of an IsoFLOP design that its tokens_per_param_range leaves out, one line each."""
    if not isinstance(design, IsoflopDesign):
        return ()
    return tuple(
        f"{budget:.3g} FLOPs at {short_number(size)}: D/N would be {tokens / shapes[size].params.matmul:.3g}"
        for size in design.sizes
        for budget, tokens in ((b, b / train_flops_per_token(shapes[size].shape)) for b in design.budgets)
        if not _inside(design, tokens / shapes[size].params.matmul)
    )


def _budgets(
    design: GridDesign | IsoflopDesign | LadderDesign, sized: SizedShape
) -> list[tuple[int, tuple[str | int, ...]]]:
    params = sized.params.matmul
    if isinstance(design, LadderDesign):
        return [
            (_readable(multiple * LADDER_TOKENS_PER_PARAM * params), ("multiples", i))
            for i, multiple in enumerate(design.multiples)
        ]
    if isinstance(design, IsoflopDesign):
        cells = [(budget / train_flops_per_token(sized.shape), i) for i, budget in enumerate(design.budgets)]
        return [(_readable(tokens), ("budgets", i)) for tokens, i in cells if _inside(design, tokens / params)]
    if design.tokens is not None:
        return [(tokens, ("tokens", i)) for i, tokens in enumerate(design.tokens)]
    return [
        (_readable(ratio * params), ("tokens_per_param", i)) for i, ratio in enumerate(design.tokens_per_param or ())
    ]


def _inside(design: IsoflopDesign, tokens_per_param: float) -> bool:
    low, high = design.tokens_per_param_range or (0.0, math.inf)
    return low <= tokens_per_param <= high


def _readable(tokens: float) -> int:
    """Tokens to four digits, so that names stay short; rounding to whole steps moves most budgets by more."""
    return max(1, int(parse_number(f"{tokens:.4g}")))
