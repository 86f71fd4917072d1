"""The summed robust objective of a form on a table, with exact gradient and Hessian for a batch of fits at once.

    S(theta) = sum_i w_i huber(ln L(theta; N_i, D_i) - ln L_i)
    huber(r) = r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2)

Since predictors are linear in the coordinates, gradient and Hessian are sums over rows of a few arrays times powers
of the features: matrix products, without an array of [batch, rows, coordinates, coordinates].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.laws.forms import Feature, Form
from jobs.laws.links import Floats

# Guards a division that is only used where the residual exceeds delta.
SMALLEST_RESIDUAL = 1e-300


@dataclass(frozen=True)
class Evaluation:
    """Objective [batch], gradient [batch, p], Hessian [batch, p, p], and the scale of each coordinate [batch, p].

    `scale` is sqrt(sum_i w_i q_i J_ip^2) with q = psi(r)/r, the weight of iteratively reweighted least squares, and
    `norm` is sqrt(sum_i w_i q_i r_i^2), so that gradient / (scale * norm) is a cosine: free of every unit.
    """

    value: Floats
    gradient: Floats
    hessian: Floats
    scale: Floats
    norm: Floats

    def take(self, rows: NDArray[np.bool_]) -> Evaluation:
        return Evaluation(self.value[rows], self.gradient[rows], self.hessian[rows], self.scale[rows], self.norm[rows])

    def replaced(self, rows: NDArray[np.bool_], other: Evaluation) -> None:
        """Overwrites, in place, the batch members where `rows` is true with those of `other`."""
        for mine, theirs in (
            (self.value, other.value),
            (self.gradient, other.gradient),
            (self.hessian, other.hessian),
            (self.scale, other.scale),
            (self.norm, other.norm),
        ):
            mine[rows] = theirs[rows]


@dataclass(frozen=True)
class _Block:
    """The coordinates that enter one predictor, and the signed features [rows, members] that multiply its slope."""

    members: NDArray[np.int64]
    columns: Floats


@dataclass(frozen=True)
class _Pair:
    """Products of the features of two predictors [rows, pairs], and the Hessian entries they belong to."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    products: Floats


@dataclass(frozen=True)
class Problem:
    """A form on fixed rows, with the bounds of its coordinates."""

    form: Form
    features: dict[Feature, Floats]
    lower: Floats
    upper: Floats

    @property
    def num_rows(self) -> int:
        return len(self.features["one"])

    @cached_property
    def _blocks(self) -> tuple[_Block, ...]:
        blocks = []
        for j in range(self.form.num_predictors):
            entries = [
                (index, entry.sign * self.features[entry.feature])
                for index, coordinate in enumerate(self.form.coordinates)
                for entry in coordinate.entries
                if entry.predictor == j
            ]
            members = np.array([index for index, _ in entries], dtype=np.int64)
            blocks.append(_Block(members, np.stack([column for _, column in entries], axis=1)))
        return tuple(blocks)

    @cached_property
    def _pairs(self) -> dict[tuple[int, int], _Pair]:
        pairs = {}
        for j, mine in enumerate(self._blocks):
            for k, theirs in enumerate(self._blocks[j:], start=j):
                left, right = np.repeat(mine.members, len(theirs.members)), np.tile(theirs.members, len(mine.members))
                products = mine.columns[:, :, None] * theirs.columns[:, None, :]
                pairs[j, k] = _Pair(left, right, products.reshape(self.num_rows, -1))
        return pairs

    def residuals(self, theta: Floats, target: Floats) -> Floats:
        """ln L - target, [batch, rows]; target is ln L relative to the centre of the table."""
        return np.asarray(self.form.link(self.form.predictors(theta, self.features)).log_loss - target)

    def value(self, theta: Floats, target: Floats, weights: Floats, delta: float) -> Floats:
        """S(theta), [batch]."""
        residual = self.residuals(theta, target)
        clipped = np.clip(residual, -delta, delta)
        return np.asarray(np.sum(weights * clipped * (residual - 0.5 * clipped), axis=1))

    def value_and_gradient(self, theta: Floats, target: Floats, weights: Floats, delta: float) -> tuple[float, Floats]:
        """S and its gradient [p] at one theta [p], without the Hessian."""
        link = self.form.link(self.form.predictors(theta[None], self.features))
        residual = link.log_loss - target
        clipped = np.clip(residual, -delta, delta)
        pull = weights * clipped
        gradient = np.zeros(self.form.num_parameters)
        for slope, block in zip(link.gradient, self._blocks, strict=True):
            gradient[block.members] += ((pull * slope) @ block.columns)[0]
        return float(np.sum(pull * (residual - 0.5 * clipped))), gradient

    def evaluate(self, theta: Floats, target: Floats, weights: Floats, delta: float) -> Evaluation:
        """S with gradient and Hessian at theta [batch, p]; target and weights are [batch or 1, rows]."""
        link = self.form.link(self.form.predictors(theta, self.features))
        residual = link.log_loss - target
        clipped = np.clip(residual, -delta, delta)
        is_inside = clipped == residual
        pull = weights * clipped
        inside = np.where(is_inside, weights, 0.0)
        # q = psi(r) / r; at r = 0 it is 1 by continuity.
        reweighted = inside + np.where(is_inside, 0.0, np.abs(pull) / np.maximum(np.abs(residual), SMALLEST_RESIDUAL))
        batch, num = len(theta), self.form.num_parameters
        gradient, scale, hessian = np.zeros((batch, num)), np.zeros((batch, num)), np.zeros((batch, num, num))
        for slope, block in zip(link.gradient, self._blocks, strict=True):
            gradient[:, block.members] += (pull * slope) @ block.columns
            scale[:, block.members] += (reweighted * slope**2) @ block.columns**2
        for (j, k), pair in self._pairs.items():
            bend = inside * link.gradient[j] * link.gradient[k] + pull * link.curvature[j, k]
            sums = bend @ pair.products
            hessian[:, pair.left, pair.right] += sums
            if k > j:
                hessian[:, pair.right, pair.left] += sums
        value = np.sum(pull * (residual - 0.5 * clipped), axis=1)
        norm = np.sqrt(np.sum(pull * residual, axis=1))
        return Evaluation(value, gradient, hessian, np.sqrt(scale), norm)
