"""Finds the best minimum of a form on a table, every other one near it, and what a second method says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jobs.laws.links import Floats
from jobs.laws.objective import Problem
from jobs.laws.optimize import Minima, minimise, projected_gradient, reference_minimum
from jobs.laws.setup import Setup

# Wide to narrow: the first is nearly least squares, whose basin is broad; each next starts where the last ended.
CONTINUATION_DELTAS = (0.1, 0.03, 0.01, 0.003, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
# Distinct candidates carried from the broad objective to the real one.
NUM_CANDIDATES = 24
# Basins whose coordinates all agree to this are one.
SAME_BASIN = 0.02
# Minima within this of the best objective are reported.
BASIN_OBJECTIVE = 0.01
# A fit without floor is a start for the replicates while its objective is within this factor of the best.
FLOORLESS_REACH = 2.0
# Two methods agree when their objectives do to this, relative.
AGREEMENT = 1e-6


@dataclass(frozen=True)
class Optimum:
    """Best coordinates with their certificate; basins are (coordinates, objective), the best first.

    `broad_theta` minimises the broad objective: a start for the second method that owes nothing to the first's end.
    """

    theta: Floats
    value: float
    scaled_gradient: float
    reference_value: float
    condition: float
    basins: tuple[tuple[Floats, float], ...]
    broad_theta: Floats


def _distinct(theta: Floats, values: Floats, limit: int) -> list[int]:
    """Indices of the best members that differ from all better ones, best first."""
    chosen: list[int] = []
    for at in np.argsort(values, kind="stable"):
        if not np.isfinite(values[at]):
            break
        if all(np.max(np.abs(theta[at] - theta[other])) > SAME_BASIN for other in chosen):
            chosen.append(int(at))
        if len(chosen) == limit:
            break
    return chosen


@dataclass(frozen=True)
class Explored:
    """Minima from every start, and the minimiser of the broad objective."""

    minima: Minima
    broad_theta: Floats

    @property
    def best(self) -> int:
        return int(np.argmin(np.where(np.isfinite(self.minima.value), self.minima.value, np.inf)))


def explore(setup: Setup, delta: float) -> Explored:
    """Minimises from all starts of the form: through ever narrower objectives, and some directly."""
    problem, target, weights = setup.problem, setup.target[None], setup.weights[None]
    starts = np.clip(setup.form.starts(setup.largest_floor), problem.lower, problem.upper)
    ladder = [step for step in CONTINUATION_DELTAS if step > delta * 1.5] or [delta]
    broad = minimise(problem, starts, target, weights, ladder[0], max_iterations=30, tolerance=1e-4)
    chosen = _distinct(broad.theta, broad.value, NUM_CANDIDATES)
    candidates = broad.theta[chosen]
    for step in ladder[1:]:
        candidates = minimise(problem, candidates, target, weights, step, max_iterations=15).theta
    # Beside the followed ones, starts that meet the real objective at once: continuation may leave a narrow basin.
    direct = starts[np.argsort(problem.value(starts, target, weights, delta))[:NUM_CANDIDATES]]
    found = minimise(problem, np.concatenate([candidates, direct]), target, weights, delta)
    return Explored(found, broad.theta[chosen[0]])


def find_optimum(setup: Setup, delta: float) -> Optimum:
    """Best minimum over all starts, the others near it, and what a second method finds."""
    problem, target, weights = setup.problem, setup.target[None], setup.weights[None]
    explored = explore(setup, delta)
    final, best = explored.minima, explored.best
    reference_theta, reference_value = reference_minimum(problem, explored.broad_theta, target, weights, delta)
    if reference_value < final.value[best] * (1.0 - AGREEMENT):
        extra = minimise(problem, reference_theta[None], target, weights, delta)
        final = final.joined(extra)
        best = int(np.argmin(final.value))
    elif reference_value > final.value[best] * (1.0 + AGREEMENT):
        # Another basin, or the slow end of L-BFGS: it gets a second go from near, but not at, the optimum.
        near = final.theta[best] + 0.01 * np.where(np.arange(final.theta.shape[1]) % 2, -1.0, 1.0)
        _, again = reference_minimum(problem, near, target, weights, delta)
        reference_value = min(reference_value, again)
    value = float(final.value[best])
    close = final.certified & (final.value <= value * (1.0 + BASIN_OBJECTIVE) + 1e-300)
    near_theta, near_value = final.theta[close], final.value[close]
    basins = tuple((near_theta[at], float(near_value[at])) for at in _distinct(near_theta, near_value, NUM_CANDIDATES))
    return Optimum(
        final.theta[best],
        value,
        float(final.scaled_gradient[best]),
        reference_value,
        _condition(problem, final.theta[best], target, weights, delta),
        basins or ((final.theta[best], value),),
        explored.broad_theta,
    )


def floorless_start(setup: Setup, optimum: Optimum, delta: float) -> list[Floats]:
    """The best fit with E = 0, where it is near enough that a resampled table may prefer it; else nothing."""
    if not setup.form.has_floor or optimum.theta[0] <= 0:
        return []
    upper = setup.problem.upper.copy()
    upper[0] = 0.0
    pinned = replace(setup.problem, upper=upper)
    found = minimise(pinned, optimum.theta[None], setup.target[None], setup.weights[None], delta)
    return [found.theta[0]] if found.value[0] <= FLOORLESS_REACH * optimum.value else []


def _condition(problem: Problem, theta: Floats, target: Floats, weights: Floats, delta: float) -> float:
    """Condition number of the Hessian in scaled coordinates, over those that are free of a bound."""
    at = problem.evaluate(theta[None], target, weights, delta)
    _, free = projected_gradient(problem, theta[None], at)
    keep = np.flatnonzero(free[0] & (at.scale[0] > 0))
    if not len(keep):
        return 1.0
    unit = at.scale[0][keep]
    eigenvalues = np.abs(np.linalg.eigvalsh(at.hessian[0][np.ix_(keep, keep)] / np.outer(unit, unit)))
    return float(eigenvalues.max() / max(eigenvalues.min(), eigenvalues.max() * 1e-300, 1e-300))
