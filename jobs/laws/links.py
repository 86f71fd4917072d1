"""How linear predictors become a log loss: value, gradient and curvature, for whole batches at once.

A law is ln L = link(z_1, ..., z_m) in which every predictor z_j is linear in the coordinates of the fit. So the link
needs derivatives in its own few predictors only, and the optimizer builds gradient and Hessian from sums over rows.
Shapes: every z_j is [batch, rows] or [batch, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOG_2 = float(np.log(2.0))


@dataclass(frozen=True)
class LinkValue:
    """ln L with its first and second derivatives in the predictors (upper triangle, keys j <= k)."""

    log_loss: Floats
    gradient: tuple[Floats, ...]
    curvature: dict[tuple[int, int], Floats]


Link = Callable[[tuple[Floats, ...]], LinkValue]


def floor_plus_terms(z: tuple[Floats, ...]) -> LinkValue:
    """L = E + exp(z_1) + exp(z_2) + ...; z = (E, z_1, z_2, ...)."""
    floor, *exponents = z
    terms = [np.exp(exponent) for exponent in exponents]
    loss = floor + sum(terms[1:], terms[0])
    inverse = 1.0 / loss
    gradient = (inverse, *(term * inverse for term in terms))
    curvature = {}
    for j, left in enumerate(gradient):
        for k in range(j, len(gradient)):
            curvature[j, k] = -left * gradient[k]
            if j == k and j > 0:
                curvature[j, k] += left
    return LinkValue(np.log(loss), gradient, curvature)


def log_linear(z: tuple[Floats, ...]) -> LinkValue:
    """ln L = z_1: a power law without floor."""
    (predictor,) = z
    return LinkValue(predictor, (np.ones_like(predictor),), {(0, 0): np.zeros_like(predictor)})


@dataclass(frozen=True)
class _PowerMean:
    """t = ln 2 + gamma ln[(exp(x/gamma) + exp(y/gamma)) / 2] with derivatives in x, y and c = ln gamma."""

    value: Floats
    gradient: tuple[Floats, Floats, Floats]
    curvature: dict[tuple[int, int], Floats]


def _power_mean(x: Floats, y: Floats, gamma: Floats) -> _PowerMean:
    ratio = (x - y) / gamma
    distance = np.abs(ratio)
    decayed = np.exp(-distance)
    small_share = decayed / (1.0 + decayed)
    share = np.where(ratio >= 0, 1.0 - small_share, small_share)
    log_sum = np.log1p(decayed)
    value = np.maximum(x, y) + gamma * log_sum + (1.0 - gamma) * LOG_2
    by_log_gamma = gamma * (log_sum + small_share * distance - LOG_2)
    spread = share * (1.0 - share)
    mixed = spread / gamma
    return _PowerMean(
        value,
        (share, 1.0 - share, by_log_gamma),
        {
            (0, 0): mixed,
            (0, 1): -mixed,
            (1, 1): mixed,
            (0, 2): -ratio * spread,
            (1, 2): ratio * spread,
            (2, 2): by_log_gamma + gamma * ratio**2 * spread,
        },
    )


def floor_plus_power_mean(z: tuple[Floats, ...]) -> LinkValue:
    """L = E + 2 [(exp(x/gamma) + exp(y/gamma)) / 2]^gamma; z = (E, x, y, ln gamma).

    gamma = 1 is the sum exp(x) + exp(y), gamma -> 0 twice the larger term, gamma -> infinity twice their geometric
    mean: x and y keep their meaning for every gamma, which (A/N^alpha + B/D^beta)^gamma written plainly does not.
    """
    floor, x, y, log_gamma = z
    mean = _power_mean(x, y, np.exp(log_gamma))
    term = np.exp(mean.value)
    loss = floor + term
    inverse = 1.0 / loss
    part = term * inverse
    curvature: dict[tuple[int, int], Floats] = {(0, 0): -inverse * inverse}
    for j, slope in enumerate(mean.gradient):
        curvature[0, j + 1] = -part * inverse * slope
        for k in range(j, 3):
            curvature[j + 1, k + 1] = part * (mean.curvature[j, k] + (1.0 - part) * slope * mean.gradient[k])
    return LinkValue(np.log(loss), (inverse, *(part * slope for slope in mean.gradient)), curvature)


def power_mean_without_floor(z: tuple[Floats, ...]) -> LinkValue:
    """L = 2 [(exp(x/g) + exp(y/g)) / 2]^g; z = (x, y, g), g itself and not its logarithm."""
    x, y, gamma = z
    mean = _power_mean(x, y, gamma)
    by_x, by_y, by_log_gamma = mean.gradient
    curvature = dict(mean.curvature)
    curvature[0, 2] = curvature[0, 2] / gamma
    curvature[1, 2] = curvature[1, 2] / gamma
    curvature[2, 2] = (curvature[2, 2] - by_log_gamma) / gamma**2
    return LinkValue(mean.value, (by_x, by_y, by_log_gamma / gamma), curvature)
