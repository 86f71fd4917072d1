"""The summed robust objective of a form on a table, with exact gradient and Hessian for a batch of fits at once.

    S(theta) = sum_i w_i huber(ln L(theta; N_i, D_i) - ln L_i)
    huber(r) = r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2)

Since predictors are linear in the coordinates, gradient and Hessian are sums over rows of a few arrays times powers
of the features: matrix products, without an array of [batch, rows, coordinates, coordinates].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.laws.forms import Feature, Form
from jobs.laws.links import Floats


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

    def take(self, rows: np.ndarray) -> Evaluation:
        return Evaluation(self.value[rows], self.gradient[rows], self.hessian[rows], self.scale[rows], self.norm[rows])

    def replaced(self, rows: np.ndarray, other: Evaluation) -> None:
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
class Problem:
    """A form on fixed rows: features by name, and which sums over rows make up the Hessian."""

    form: Form
    features: dict[Feature, Floats]
    lower: Floats
    upper: Floats

    @property
    def num_rows(self) -> int:
        return len(self.features["one"])

    def residuals(self, theta: Floats, target: Floats) -> Floats:
        """ln L - target, [batch, rows]; target is ln L relative to the centre of the table."""
        return self.form.link(self.form.predictors(theta, self.features)).log_loss - target

    def value(self, theta: Floats, target: Floats, weights: Floats, delta: float) -> Floats:
        """S(theta), [batch]."""
        residual = self.residuals(theta, target)
        clipped = np.clip(residual, -delta, delta)
        return np.asarray(np.sum(weights * clipped * (residual - 0.5 * clipped), axis=1))

    def evaluate(self, theta: Floats, target: Floats, weights: Floats, delta: float) -> Evaluation:
        """S with gradient and Hessian at theta [batch, p]; target and weights are [batch or 1, rows]."""
        form = self.form
        link = form.link(form.predictors(theta, self.features))
        residual = link.log_loss - target
        clipped = np.clip(residual, -delta, delta)
        pull = weights * clipped
        inside = np.where(clipped == residual, weights, 0.0)
        # q = psi(r) / r; at r = 0 it is 1 by continuity.
        reweighted = weights * np.where(residual == clipped, 1.0, delta / np.maximum(np.abs(residual), delta))
        num = form.num_parameters
        gradient = np.zeros((len(theta), num))
        scale = np.zeros((len(theta), num))
        hessian = np.zeros((len(theta), num, num))
        # Sums over rows of every predictor's slope against the features that multiply it, taken as matrix products.
        members = [(index, entry) for index, coordinate in enumerate(form.coordinates) for entry in coordinate.entries]
        for j in range(form.num_predictors):
            mine = [(index, entry) for index, entry in members if entry.predictor == j]
            columns = np.stack([entry.sign * self.features[entry.feature] for _, entry in mine], axis=1)
            first = (pull * link.gradient[j]) @ columns
            second = (reweighted * link.gradient[j] ** 2) @ columns**2
            for at, (index, _) in enumerate(mine):
                gradient[:, index] += first[:, at]
                scale[:, index] += second[:, at]
            for k in range(j, form.num_predictors):
                theirs = [(index, entry) for index, entry in members if entry.predictor == k]
                others = np.stack([entry.sign * self.features[entry.feature] for _, entry in theirs], axis=1)
                products = (columns[:, :, None] * others[:, None, :]).reshape(len(columns), -1)
                block = inside * link.gradient[j] * link.gradient[k] + pull * link.curvature[j, k]
                sums = (block @ products).reshape(len(theta), len(mine), len(theirs))
                for at, (left, _) in enumerate(mine):
                    for other, (right, _) in enumerate(theirs):
                        hessian[:, left, right] += sums[:, at, other]
                        if k > j:
                            hessian[:, right, left] += sums[:, at, other]
        value = np.sum(pull * (residual - 0.5 * clipped), axis=1)
        norm = np.sqrt(np.sum(pull * residual, axis=1))
        return Evaluation(value, gradient, hessian, np.sqrt(scale), norm)
