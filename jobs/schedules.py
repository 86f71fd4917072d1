"""Learning-rate schedules as tuples of pieces: a pure function of the optimizer step.

A schedule that is cut at a step keeps what its past needs and nothing of its future, so that two runs
which agree on [0, s) have equal prefixes whatever their horizons are.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

PieceKind = Literal["constant", "linear", "cosine"]


class Piece(BaseModel):
    """One piece of a schedule on the steps [start_step, end_step), from start_value to end_value.

    The values multiply the peak learning rate. A rise is evaluated at the end of each step and a fall at its
    beginning, so that neither a warm-up from 0 nor a decay to 0 takes a step at zero, and a warm-up of n steps
    reaches the peak on its last one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: PieceKind
    start_step: int
    end_step: int
    start_value: float
    end_value: float

    @model_validator(mode="after")
    def _check(self) -> Piece:
        if not 0 <= self.start_step < self.end_step:
            raise ValueError(f"a schedule piece needs 0 <= start < end, got [{self.start_step}, {self.end_step})")
        return self

    def multiplier(self, step: int) -> float:
        """Multiplier of the peak learning rate at a step inside the piece."""
        if self.kind == "constant":
            return self.start_value
        num_steps = self.end_step - self.start_step
        rising = self.end_value > self.start_value
        # A rise is taken at the end of the step, a fall at its beginning: no step at zero on either side.
        fraction = (step - self.start_step + (1 if rising else 0)) / num_steps
        if self.kind == "linear":
            return self.start_value + (self.end_value - self.start_value) * fraction
        return self.end_value + (self.start_value - self.end_value) * 0.5 * (1.0 + math.cos(math.pi * fraction))


class Schedule(BaseModel):
    """Consecutive pieces from step 0 to `total_steps`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pieces: tuple[Piece, ...]

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        at = 0
        for piece in self.pieces:
            if piece.start_step != at:
                raise ValueError(f"schedule pieces must follow each other: expected a start at {at}, got {piece}")
            at = piece.end_step
        if at == 0:
            raise ValueError("a schedule needs at least one piece")
        return self

    @property
    def total_steps(self) -> int:
        return self.pieces[-1].end_step

    def multiplier(self, step: int) -> float:
        """Multiplier of the peak learning rate at optimizer step `step` (from 0).

        Raises ValueError outside [0, total_steps).
        """
        for piece in self.pieces:
            if piece.start_step <= step < piece.end_step:
                return piece.multiplier(step)
        raise ValueError(f"step {step} is outside the schedule [0, {self.total_steps})")

    def prefix(self, step: int) -> Schedule:
        """The schedule on [0, step): constant pieces are cut, others keep the end that shapes them.

        The prefix of a linear or cosine piece that is cut in its middle still names the whole piece, since its
        slope depends on its end; `total_steps` then lies beyond `step`, and the caller names `step` itself.
        """
        if not 0 < step <= self.total_steps:
            raise ValueError(f"prefix at step {step} is outside (0, {self.total_steps}]")
        kept = [piece for piece in self.pieces if piece.start_step < step]
        last = kept[-1]
        if last.kind == "constant" and last.end_step > step:
            kept[-1] = last.model_copy(update={"end_step": step})
        return Schedule(pieces=tuple(kept))


def warmup_stable_decay(total_steps: int, warmup_steps: int, decay_steps: int, final_value: float = 0.0) -> Schedule:
    """Linear warm-up, constant trunk, linear decay (Hu et al. 2024, arXiv 2404.06395; Haegele et al. 2405.18392)."""
    fork_step = total_steps - decay_steps
    if not 0 <= warmup_steps <= fork_step or decay_steps < 1:
        raise ValueError(
            f"warm-up of {warmup_steps} and decay of {decay_steps} steps do not fit into {total_steps} steps"
        )
    pieces = []
    if warmup_steps:
        pieces.append(Piece(kind="linear", start_step=0, end_step=warmup_steps, start_value=0.0, end_value=1.0))
    if fork_step > warmup_steps:
        pieces.append(
            Piece(kind="constant", start_step=warmup_steps, end_step=fork_step, start_value=1.0, end_value=1.0)
        )
    pieces.append(
        Piece(kind="linear", start_step=fork_step, end_step=total_steps, start_value=1.0, end_value=final_value)
    )
    return Schedule(pieces=tuple(pieces))


def warmup_cosine(total_steps: int, warmup_steps: int, final_value: float = 0.1) -> Schedule:
    """Linear warm-up and cosine decay to `final_value` of the peak (Hoffmann et al. 2022, app. B)."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit into {total_steps} steps")
    pieces = []
    if warmup_steps:
        pieces.append(Piece(kind="linear", start_step=0, end_step=warmup_steps, start_value=0.0, end_value=1.0))
    pieces.append(
        Piece(kind="cosine", start_step=warmup_steps, end_step=total_steps, start_value=1.0, end_value=final_value)
    )
    return Schedule(pieces=tuple(pieces))
