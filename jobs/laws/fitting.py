"""`fit_law`: from a table of runs to a fitted form with a certificate, intervals and a status."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jobs.laws.bootstrap import resample
from jobs.laws.fit import Basin, Bootstrap, Certificate, Fit, Objective, Rows, Span, check_level
from jobs.laws.forms import Centre, Form, form_named
from jobs.laws.links import Floats
from jobs.laws.noise import HUBER_TUNING, Noise, replicate_noise, robust_sd, run_noise
from jobs.laws.observations import Table
from jobs.laws.optimize import minimise, reference_minimum
from jobs.laws.search import Optimum, explore, find_optimum, floorless_start
from jobs.laws.setup import Setup, check_design, set_up
from jobs.laws.verdict import bounds_hit, judge, weakly_identified

Loss = Literal["huber", "mse", "lad"]
Delta = float | Literal["auto"]

# Hoffmann et al. 2022 and Besiroglu et al. 2024 use this delta: compatibility mode.
PUBLISHED_DELTA = 1e-3
# Least absolute deviation is Huber's loss, divided by delta, with a delta far below every residual that counts.
LAD_DELTA = 1e-7
# The second method looks at this share of the replicates, at most at that many (it is a loop, not a batch).
REFERENCE_SHARE = 0.05
LARGEST_REFERENCE_SAMPLE = 10
# A replicate stands when the second method finds nothing better by more than this, relative.
REPLICATE_AGREEMENT = 1e-4


def fit_law(
    observations: Table,
    form: str = "coupled",
    *,
    delta: Delta = "auto",
    loss: Loss = "huber",
    bootstrap: int = 1000,
    clusters: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Fit:
    """Fits a form to a table of runs by the summed objective on ln L.

    `delta` is Huber's, in ln L; "auto" takes 1.345 deviations of replicates or, without them, of the residuals, and
    says which. `clusters` labels rows that share a trunk (else the table's own). `bootstrap` counts replicates (0:
    none, hence no intervals). Raises FitError where the table cannot carry the form, ValueError for a wrong option.
    """
    law = form_named(form)
    check_level(level)
    if loss not in ("huber", "mse", "lad"):
        raise ValueError(f"unknown loss {loss!r}; known losses: huber, mse, lad")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or more replicates, got {bootstrap}")
    table = observations if clusters is None else observations.with_clusters(clusters)
    check_design(table, law)
    with np.errstate(all="ignore"):
        return _fit(set_up(table, law), delta, loss, bootstrap, level, seed)


def objective_at(
    table: Table, form: str, params: dict[str, float], *, delta: float = PUBLISHED_DELTA, loss: Loss = "huber"
) -> float:
    """The summed objective of given parameters of `form` on a table: to hold published digits against a fit."""
    setup = set_up(table, form_named(form))
    theta = setup.form.coordinates_of(params, setup.centre)[None]
    value = setup.problem.value(theta, setup.target[None], setup.weights[None], _smoothed(loss, delta))
    return _reported(float(value[0]), loss)


def _fit(setup: Setup, delta: Delta, loss: Loss, bootstrap: int, level: float, seed: int) -> Fit:
    form, table, problem, centre = setup.form, setup.table, setup.problem, setup.centre
    resolved, delta_source = _resolve_delta(setup, loss, delta)
    smooth = _smoothed(loss, resolved)
    optimum = find_optimum(setup, smooth)
    theta = optimum.theta
    residuals = problem.residuals(theta[None], setup.target[None])[0]
    noise = run_noise(table, residuals, form.jacobian(theta[None], problem.features)[0])
    sample = _bootstrap(setup, optimum, np.log(table.loss) + residuals, smooth, noise, bootstrap, seed)
    se, intervals = _spread(form, sample.draws, centre, level)
    hits = bounds_hit(setup, theta)
    weak = weakly_identified(intervals, float(table.loss.min()), level)
    status, reasons = judge(optimum, sample.made, sample.checked, sample.bettered, hits, weak)
    return Fit(
        form=form.name,
        params=_natural(form, theta, centre),
        se=se,
        intervals=intervals,
        level=level,
        objective=Objective(_reported(optimum.value, loss), loss, resolved if loss == "huber" else None, delta_source),
        status=status,
        reasons=reasons,
        basins=tuple(Basin(_natural(form, at, centre), _reported(value, loss)) for at, value in optimum.basins),
        bootstrap=sample.made,
        certificate=Certificate(
            optimum.scaled_gradient, _reported(optimum.reference_value, loss), optimum.condition, hits
        ),
        conventions=dict(table.conventions),
        rows=Rows(len(table), table.dropped, table.digest),
        noise=noise,
        span=Span(*(_range(column) for column in (table.params, table.tokens, table.train_flops))),
        centre=centre,
        coordinates=theta,
        draws=sample.draws,
        seed=seed,
    )


def _range(column: Floats) -> tuple[float, float]:
    return float(column.min()), float(column.max())


def _natural(form: Form, theta: Floats, centre: Centre) -> dict[str, float]:
    natural = form.natural(theta, centre)
    return {name: float(natural[name]) for name in form.parameters}


def _smoothed(loss: Loss, delta: float) -> float:
    """The Huber delta that is minimised for a loss."""
    return {"huber": delta, "mse": math.inf, "lad": LAD_DELTA}[loss]


def _reported(value: float, loss: Loss) -> float:
    """From the minimised Huber sum to the sum that is reported: of r^2 for mse, of |r| for lad."""
    return {"huber": value, "mse": 2.0 * value, "lad": value / LAD_DELTA}[loss]


def _resolve_delta(setup: Setup, loss: Loss, delta: Delta) -> tuple[float, str]:
    if loss != "huber":
        return PUBLISHED_DELTA, f"not used by {loss}"
    if delta != "auto":
        if not (isinstance(delta, (int, float)) and math.isfinite(delta) and delta > 0):
            raise ValueError(f"delta must be a positive number or 'auto', got {delta!r}; published fits use 1e-3")
        return float(delta), "given"
    replicates = replicate_noise(setup.table)
    if replicates is not None:
        return HUBER_TUNING * replicates.sd, f"auto: {HUBER_TUNING} times the deviation of replicates"
    rough = explore(setup, PUBLISHED_DELTA)
    residuals = setup.problem.residuals(rough.minima.theta[rough.best][None], setup.target[None])[0]
    sd = robust_sd(residuals, setup.form.num_parameters)
    return HUBER_TUNING * sd, f"auto: {HUBER_TUNING} times 1.4826 times the residuals' median absolute deviation"


@dataclass(frozen=True)
class _Sample:
    """Coordinates of certified replicates [certified, p]; how many were checked, and bettered, by the second method."""

    draws: Floats
    made: Bootstrap
    checked: int
    bettered: int


def _bootstrap(
    setup: Setup, optimum: Optimum, fitted: Floats, delta: float, noise: Noise, size: int, seed: int
) -> _Sample:
    """Refits `size` resampled tables, each from every basin near the best one and (if near) without floor."""
    if not size:
        return _Sample(np.empty((0, setup.form.num_parameters)), Bootstrap(0, "none", 0), 0, 0)
    resamples = resample(setup.table, fitted, noise, setup.form.num_parameters, size, seed)
    targets = resamples.targets - setup.centre.log_loss
    starts = [start for start, _ in optimum.basins] + floorless_start(setup, optimum, delta)
    found = [minimise(setup.problem, np.tile(at, (size, 1)), targets, resamples.weights, delta) for at in starts]
    best = functools.reduce(lambda left, right: left.better_of(right), found)
    checked = min(math.ceil(REFERENCE_SHARE * size), LARGEST_REFERENCE_SAMPLE)
    bettered = 0
    for at in range(checked):
        target = targets[at if len(targets) > 1 else 0]
        weights = resamples.weights[at if len(resamples.weights) > 1 else 0]
        _, value = reference_minimum(setup.problem, optimum.broad_theta, target, weights, delta)
        bettered += bool(value < best.value[at] * (1.0 - REPLICATE_AGREEMENT))
    draws = best.theta[best.certified]
    return _Sample(draws, Bootstrap(size, resamples.kind, len(draws)), checked, bettered)


def _spread(
    form: Form, draws: Floats, centre: Centre, level: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Standard errors and percentile intervals of the equation's parameters over the replicates."""
    if len(draws) < 2:
        return {}, {}
    natural = form.natural(draws, centre)
    tails = [0.5 * (1.0 - level), 0.5 * (1.0 + level)]
    se, intervals = {}, {}
    for name in form.parameters:
        values = np.broadcast_to(natural[name], (len(draws),))
        low, high = np.quantile(values, tails)
        se[name] = min(float(np.std(values, ddof=1)), float(np.finfo(float).max))
        intervals[name] = (float(low), float(high))
    return se, intervals
