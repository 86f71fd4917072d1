"""Minimises the objective from many starts, for many resampled tables, at once: damped Newton in a box.

Newton and not Gauss-Newton, since with a small delta most residuals pull with constant force and J'J sees nothing of
them; the exact Hessian is as cheap here. Steps are damped by Levenberg-Marquardt in the scale of each coordinate and
projected on the bounds. `reference_minimum` is the independent second method (SciPy's L-BFGS-B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.laws.links import Floats
from jobs.laws.objective import Evaluation, Problem

# A fit is certified when its scaled projected gradient is at most this (DESIGN, "Laws").
CERTIFIED_GRADIENT = 1e-6
# Newton converges quadratically at the end, so going on to here costs one or two steps.
TARGET_GRADIENT = 1e-9
LARGEST_DAMPING = 1e14
# Residuals of ln L below this are rounding: no loss is known to nine digits, and such a fit is exact.
EXACT_RESIDUAL = 1e-9
# Elements (batch x rows) whose arrays stay in the second-level cache of one core.
CHUNK_ELEMENTS = 16_384


@dataclass(frozen=True)
class Minima:
    """One minimum a batch member: coordinates [batch, p], objective, scaled projected gradient, certificate."""

    theta: Floats
    value: Floats
    scaled_gradient: Floats
    iterations: int

    @property
    def certified(self) -> NDArray[np.bool_]:
        return np.asarray(self.scaled_gradient <= CERTIFIED_GRADIENT)

    def joined(self, *others: Minima) -> Minima:
        """This batch followed by others."""
        parts = (self, *others)
        return Minima(
            np.concatenate([part.theta for part in parts]),
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.scaled_gradient for part in parts]),
            max(part.iterations for part in parts),
        )

    def better_of(self, other: Minima) -> Minima:
        """Member by member the certified one of the lower objective."""
        wins = np.where(self.certified == other.certified, other.value < self.value, other.certified)
        return Minima(
            np.where(wins[:, None], other.theta, self.theta),
            np.where(wins, other.value, self.value),
            np.where(wins, other.scaled_gradient, self.scaled_gradient),
            max(self.iterations, other.iterations),
        )


def projected_gradient(problem: Problem, theta: Floats, at: Evaluation) -> tuple[Floats, NDArray[np.bool_]]:
    """Largest scaled gradient [batch] over the coordinates that may move, and which may [batch, p]."""
    held = ((theta <= problem.lower) & (at.gradient > 0)) | ((theta >= problem.upper) & (at.gradient < 0))
    free: NDArray[np.bool_] = ~held
    unit = at.scale * np.maximum(at.norm, EXACT_RESIDUAL * np.sqrt(problem.num_rows))[:, None]
    cosine = np.abs(at.gradient) / np.where(unit > 0, unit, 1.0)
    return np.where(free, cosine, 0.0).max(axis=1), free


def minimise(
    problem: Problem,
    theta: Floats,
    target: Floats,
    weights: Floats,
    delta: float,
    max_iterations: int = 250,
    tolerance: float = TARGET_GRADIENT,
) -> Minima:
    """Minima from the starts theta [batch, p]; target and weights are [batch or 1, rows]."""
    size = max(1, CHUNK_ELEMENTS // max(problem.num_rows, 1))
    parts = []
    with np.errstate(all="ignore"):
        for first in range(0, len(theta), size):
            chunk = slice(first, first + size)
            parts.append(
                _minimise_chunk(
                    problem,
                    np.clip(theta[chunk], problem.lower, problem.upper),
                    target[chunk] if len(target) > 1 else target,
                    weights[chunk] if len(weights) > 1 else weights,
                    delta,
                    max_iterations,
                    tolerance,
                )
            )
    return parts[0].joined(*parts[1:])


def _minimise_chunk(
    problem: Problem,
    theta: Floats,
    target: Floats,
    weights: Floats,
    delta: float,
    max_iterations: int,
    tolerance: float,
) -> Minima:
    out_theta, out_value, out_gradient = theta.copy(), np.empty(len(theta)), np.empty(len(theta))
    member = np.arange(len(theta))
    damping = np.full(len(theta), 1e-3)
    at = problem.evaluate(theta, target, weights, delta)
    iteration = 0
    while True:
        scaled, free = projected_gradient(problem, theta, at)
        done = (scaled <= tolerance) | (damping > LARGEST_DAMPING) | ~np.isfinite(at.value)
        if iteration >= max_iterations:
            done[:] = True
        if done.any():
            out_theta[member[done]], out_value[member[done]] = theta[done], at.value[done]
            out_gradient[member[done]] = np.where(np.isfinite(at.value[done]), scaled[done], np.inf)
            keep = ~done
            if not keep.any():
                return Minima(out_theta, out_value, out_gradient, iteration)
            member, theta, damping, free = member[keep], theta[keep], damping[keep], free[keep]
            at = at.take(keep)
            target = target[keep] if len(target) > 1 else target
            weights = weights[keep] if len(weights) > 1 else weights
        iteration += 1
        step = _newton_step(problem, theta, at, free, damping)
        trial = np.clip(theta + step, problem.lower, problem.upper)
        promised = -np.einsum("bp,bp->b", at.gradient, step) - 0.5 * np.einsum("bp,bpq,bq->b", step, at.hessian, step)
        after = problem.evaluate(trial, target, weights, delta)
        gained = at.value - after.value
        ratio = gained / np.where(promised > 0, promised, np.inf)
        # Near the end both gains are below rounding of the sum; then a smaller gradient decides.
        tiny = np.abs(promised) <= 1e-12 * np.abs(at.value)
        closer = projected_gradient(problem, trial, after)[0] < projected_gradient(problem, theta, at)[0]
        accepted = np.where(tiny, closer, gained > 1e-4 * np.maximum(promised, 0.0)) & np.isfinite(after.value)
        eased = np.where(ratio > 0.9, 0.1, np.where(ratio > 0.5, 0.35, np.where(ratio < 0.2, 2.0, 1.0)))
        damping = np.clip(np.where(accepted, damping * eased, damping * 6.0), 1e-14, None)
        theta = np.where(accepted[:, None], trial, theta)
        at.replaced(accepted, after)


def _newton_step(problem: Problem, theta: Floats, at: Evaluation, free: NDArray[np.bool_], damping: Floats) -> Floats:
    """Damped Newton step inside the box.

    Coordinates that would cross a bound are put on it and the others solved again given that: cutting the step off
    at the bound alone would crawl along it.
    """
    step = _damped_solution(at, free, np.zeros_like(theta), damping)
    moving = free.copy()
    for _ in range(theta.shape[1] - 1):
        trial = theta + step
        crossing = moving & ((trial < problem.lower) | (trial > problem.upper))
        again = np.asarray(crossing.any(axis=1))
        if not again.any():
            break
        moving = moving & ~crossing
        held = np.where(moving, 0.0, np.clip(trial, problem.lower, problem.upper) - theta)
        step[again] = _damped_solution(at.take(again), moving[again], held[again], damping[again])
    return np.clip(theta + step, problem.lower, problem.upper) - theta


def _damped_solution(at: Evaluation, free: NDArray[np.bool_], held: Floats, damping: Floats) -> Floats:
    """-(H + lift)^-1 (g + H held) over the free coordinates, with `held` the given steps of the others.

    The lift makes H positive: damping times the squared scale, plus 1.5 times its most negative eigenvalue.
    """
    unit = np.where(at.scale > 0, at.scale, 1.0)
    both = free[:, :, None] & free[:, None, :]
    scaled = np.where(both, at.hessian / (unit[:, :, None] * unit[:, None, :]), 0.0)
    pulled = at.gradient + np.einsum("bpq,bq->bp", at.hessian, held)
    gradient = np.where(free, pulled / unit, 0.0)
    eigenvalues, vectors = np.linalg.eigh(np.nan_to_num(scaled, posinf=0.0, neginf=0.0))
    lift = np.maximum(0.0, -1.5 * eigenvalues[:, :1]) + damping[:, None]
    along = np.einsum("bpq,bp->bq", vectors, gradient)
    step = -np.einsum("bpq,bq->bp", vectors, along / (eigenvalues + lift))
    return np.where(free, step / unit, held)


def reference_minimum(
    problem: Problem, theta: Floats, target: Floats, weights: Floats, delta: float
) -> tuple[Floats, float]:
    """Minimum by SciPy's L-BFGS-B from one start theta [p], restarted until it gains nothing.

    The objective is a sum of terms near delta^2, far below L-BFGS-B's absolute tolerances: it is divided by its value
    at the start, and coordinates are measured in their curvature.
    """
    from scipy.optimize import minimize

    row_target, row_weights = target.reshape(1, -1), weights.reshape(1, -1)
    best = np.clip(theta, problem.lower, problem.upper)
    best_value = float(problem.value(best[None], row_target, row_weights, delta)[0])
    for _ in range(6):
        at = problem.evaluate(best[None], row_target, row_weights, delta)
        size = max(best_value, np.finfo(float).tiny)
        unit = np.where(at.scale[0] > 0, at.scale[0], 1.0) / np.sqrt(size)

        def scaled(x: Floats, unit: Floats = unit, size: float = size) -> tuple[float, Floats]:
            value, gradient = problem.value_and_gradient(x / unit, row_target, row_weights, delta)
            return value / size, gradient / (unit * size)

        with np.errstate(all="ignore"):
            found = minimize(
                scaled,
                best * unit,
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(problem.lower * unit, problem.upper * unit, strict=True)),
                options={"maxiter": 1000, "maxfun": 3000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
            )
        candidate = np.clip(np.asarray(found.x) / unit, problem.lower, problem.upper)
        value = float(problem.value(candidate[None], row_target, row_weights, delta)[0])
        gained = best_value - value
        if gained > 0:
            best, best_value = candidate, value
        if not gained > 1e-10 * best_value:
            break
    return best, best_value
