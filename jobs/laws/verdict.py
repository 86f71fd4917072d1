"""What a fit is worth: its status, with sentences that name parameters."""

from __future__ import annotations

import numpy as np

from jobs.laws.fit import Bootstrap, Status
from jobs.laws.links import Floats
from jobs.laws.optimize import CERTIFIED_GRADIENT
from jobs.laws.search import AGREEMENT, BASIN_OBJECTIVE, Optimum
from jobs.laws.setup import Setup

LARGEST_CONDITION = 1e10
# An exponent known to no better than this factor, or a floor to no better than this share of the smallest loss, is
# called weakly identified.
WEAK_FACTOR = 4.0
WEAK_FLOOR_SHARE = 0.5
FEWEST_CERTIFIED_SHARE = 0.9
# A replicate in another basin widens the interval a little; a fifth of them would make it another interval.
LARGEST_BETTERED_SHARE = 0.2
# Sums below this are rounding of an exact fit (residuals of 1e-9).
EXACT_OBJECTIVE = 1e-17


def bounds_hit(setup: Setup, theta: Floats) -> tuple[str, ...]:
    sentences = []
    for index, coordinate in enumerate(setup.form.coordinates):
        low, high = setup.problem.lower[index], setup.problem.upper[index]
        slack = 1e-9 * (high - low)
        if theta[index] > low + slack and theta[index] < high - slack:
            continue
        at_low = theta[index] <= low + slack
        name = coordinate.name
        if name == "E":
            sentences.append("E was driven to 0" if at_low else "E was driven to the smallest loss")
        elif name in ("A", "B"):
            sentences.append(f"the term of {name} {'vanished' if at_low else 'grew to its upper bound'}")
        else:
            end = float(np.exp(low if at_low else high)) if name == "gamma" else float(low if at_low else high)
            what = name if name == "gamma" or setup.form.name != "coupled" else f"{name}*gamma"
            sentences.append(f"{what} stands at its {'lower' if at_low else 'upper'} bound {end:g}")
    return tuple(sentences)


def weakly_identified(intervals: dict[str, tuple[float, float]], smallest_loss: float, level: float) -> list[str]:
    sentences = []
    for name, (low, high) in intervals.items():
        if name == "E":
            weak = high - low > WEAK_FLOOR_SHARE * smallest_loss
        else:
            weak = name in ("alpha", "beta", "gamma") and high > WEAK_FACTOR * low
        if weak:
            sentences.append(f"{name} is weakly identified: its {level:.0%} interval is {low:.3g} to {high:.3g}")
    return sentences


def judge(
    optimum: Optimum, made: Bootstrap, checked: int, bettered: int, hits: tuple[str, ...], weak: list[str]
) -> tuple[Status, tuple[str, ...]]:
    """The worst thing that is true of a fit, and a sentence for everything that is."""
    wrong: list[str] = []
    if not optimum.scaled_gradient <= CERTIFIED_GRADIENT:
        wrong.append(
            f"the scaled gradient is {optimum.scaled_gradient:.2g}, above {CERTIFIED_GRADIENT:g}: not a minimum"
        )
    if abs(optimum.reference_value - optimum.value) > AGREEMENT * abs(optimum.value) + EXACT_OBJECTIVE:
        wrong.append(
            f"the second method ends at an objective {optimum.reference_value / optimum.value - 1:+.2g} away (relative)"
        )
    if made.certified < FEWEST_CERTIFIED_SHARE * made.replicates:
        wrong.append(f"only {made.certified} of {made.replicates} bootstrap replicates have a certified minimum")
    missed = (
        [f"the second method betters {bettered} of the {checked} bootstrap replicates it looked at"] if bettered else []
    )
    if bettered > LARGEST_BETTERED_SHARE * checked:
        wrong += missed
        missed = []
    second = (
        [f"{len(optimum.basins) - 1} other minima lie within {BASIN_OBJECTIVE:.0%} of the best objective: see basins"]
        if len(optimum.basins) > 1
        else []
    )
    flat = list(weak)
    if optimum.condition > LARGEST_CONDITION:
        flat.append(f"the Hessian's condition number is {optimum.condition:.1g}: some direction is flat")
    reasons = (*wrong, *hits, *second, *flat, *missed)
    if wrong:
        return "NOT_CONVERGED", reasons
    if hits:
        return "BOUND_HIT", reasons
    if second:
        return "SECOND_BASIN", reasons
    return ("FLAT", reasons) if flat else ("OK", reasons)
