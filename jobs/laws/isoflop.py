"""Approach 2: at each compute budget a parabola of the loss in ln N, its minimum N*, and N*(C) through the minima.

    L(ln N) = c0 + c1 ln N + c2 (ln N)^2,   ln N* = -c1 / (2 c2)        (Hoffmann et al. 2022, sec. 3.2)

A budget whose parabola opens downwards, or whose minimum lies beyond its smallest or largest run, has no N*: it is
rejected with the reason, never extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.laws.links import Floats
from jobs.laws.observations import FitError, Table

# Runs asked for at one budget differ in realised 6ND through rounding of N and of steps; a guess that suits the
# published tables, whose budgets lie a factor of 1.5 or more apart.
SAME_BUDGET = 0.1
FEWEST_SIZES = 4


@dataclass(frozen=True)
class BudgetOptimum:
    """The minimum at one budget: N*, D*, the loss there, and the standard error of ln N*.

    D* lies on the budget's own line of ln D against ln N, whatever its convention of C; with C = 6ND it is C / 6N*.
    `coefficients` are c0, c1, c2 of the parabola in ln N.
    """

    train_flops: float
    rows: int
    params: float
    tokens: float
    loss: float
    log_params_se: float
    coefficients: tuple[float, float, float]

    def loss_at(self, params: float) -> float:
        """The parabola at a size."""
        constant, slope, bend = self.coefficients
        x = math.log(params)
        return constant + slope * x + bend * x**2


@dataclass(frozen=True)
class RejectedBudget:
    """A budget without a usable minimum, and why."""

    train_flops: float
    rows: int
    reason: str


@dataclass(frozen=True)
class Frontier:
    """N*(C) = scale * C^exponent by least squares on logarithms; `exponent_se` needs three optima (else infinite)."""

    scale: float
    exponent: float
    exponent_se: float

    def at(self, train_flops: float) -> float:
        return float(self.scale * train_flops**self.exponent)


@dataclass(frozen=True)
class Isoflop:
    """Optima by rising budget, the budgets rejected, and the power laws through the optima."""

    optima: tuple[BudgetOptimum, ...]
    rejected: tuple[RejectedBudget, ...]
    params: Frontier
    tokens: Frontier


def fit_isoflop(table: Table, budgets: Sequence[float] | None = None) -> Isoflop:
    """Parabola minima per budget and the power laws through them.

    `budgets` gives each row's nominal compute; without it rows are grouped by 6ND. Raises FitError where fewer than
    two budgets have a minimum.
    """
    nominal = table.train_flops if budgets is None else np.asarray(budgets, dtype=float)
    if nominal.shape != (len(table),) or not np.all(np.isfinite(nominal) & (nominal > 0)):
        raise FitError(f"budgets must be {len(table)} finite positive numbers, one a row")
    optima: list[BudgetOptimum] = []
    rejected: list[RejectedBudget] = []
    for rows in group_budgets(nominal):
        train_flops = float(np.exp(np.mean(np.log(nominal[rows]))))
        found = _minimum(np.log(table.params[rows]), np.log(table.tokens[rows]), table.loss[rows], train_flops)
        if isinstance(found, BudgetOptimum):
            optima.append(found)
        else:
            rejected.append(found)
    if len(optima) < 2:
        raise FitError(
            f"{len(optima)} of {len(optima) + len(rejected)} budgets have a minimum inside their sizes; "
            "N*(C) needs two. " + "; ".join(f"{item.train_flops:.3g} FLOPs: {item.reason}" for item in rejected)
        )
    log_compute = np.log([optimum.train_flops for optimum in optima])
    return Isoflop(
        tuple(optima),
        tuple(rejected),
        _frontier(log_compute, np.log([optimum.params for optimum in optima])),
        _frontier(log_compute, np.log([optimum.tokens for optimum in optima])),
    )


def group_budgets(train_flops: Floats) -> list[np.ndarray]:
    """Row numbers by rising budget; a new one begins where sorted compute rises by more than 10 % at once."""
    order = np.argsort(train_flops, kind="stable")
    if not len(order):
        return []
    rises = np.flatnonzero(np.diff(np.log(train_flops[order])) > math.log1p(SAME_BUDGET)) + 1
    return list(np.split(order, rises))


def _minimum(
    log_params: Floats, log_tokens: Floats, loss: Floats, train_flops: float
) -> BudgetOptimum | RejectedBudget:
    rows, sizes = len(loss), len(np.unique(log_params))
    if sizes < FEWEST_SIZES:
        return RejectedBudget(train_flops, rows, f"{sizes} sizes, a parabola with doubt needs {FEWEST_SIZES}")
    middle, half = float(np.mean(log_params)), float(np.ptp(log_params)) / 2
    x = (log_params - middle) / half
    columns = np.stack([np.ones_like(x), x, x**2], axis=1)
    coefficients, *_ = np.linalg.lstsq(columns, loss, rcond=None)
    constant, slope, bend = (float(value) for value in coefficients)
    if not bend > 0:
        return RejectedBudget(train_flops, rows, "the parabola opens downwards: no minimum")
    at = -slope / (2 * bend)
    if not x.min() <= at <= x.max():
        side = "smallest" if at < x.min() else "largest"
        return RejectedBudget(
            train_flops, rows, f"the minimum lies beyond the {side} size: add sizes on that side of this budget"
        )
    variance = float(np.sum((loss - columns @ coefficients) ** 2)) / max(rows - 3, 1)
    covariance = variance * np.linalg.inv(columns.T @ columns)
    by_coefficient = np.array([0.0, -1.0 / (2 * bend), slope / (2 * bend**2)])
    params = math.exp(middle + half * at)
    order = np.argsort(log_params, kind="stable")
    log_optimum_tokens = float(np.interp(math.log(params), log_params[order], log_tokens[order]))
    return BudgetOptimum(
        train_flops=train_flops,
        rows=rows,
        params=params,
        tokens=math.exp(log_optimum_tokens),
        loss=constant - slope**2 / (4 * bend),
        log_params_se=half * math.sqrt(max(float(by_coefficient @ covariance @ by_coefficient), 0.0)),
        coefficients=(
            constant - slope * middle / half + bend * (middle / half) ** 2,
            slope / half - 2 * bend * middle / half**2,
            bend / half**2,
        ),
    )


def _frontier(log_compute: Floats, log_value: Floats) -> Frontier:
    centred = log_compute - log_compute.mean()
    spread = float(centred @ centred)
    exponent = float(centred @ log_value) / spread
    offset = float(log_value.mean()) - exponent * float(log_compute.mean())
    freedom = len(log_value) - 2
    rest = log_value - offset - exponent * log_compute
    se = math.sqrt(float(rest @ rest) / freedom / spread) if freedom else math.inf
    return Frontier(math.exp(offset), exponent, se)
