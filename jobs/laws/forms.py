"""The functional forms of a law, each with its equation, paper, coordinates and starting points: see FORMS.

A form is fitted in *coordinates*, which are near each other in size and little correlated: the floor E and both terms
are taken relative to the typical loss, and the terms at the centre of the design (the mean of ln N and of ln D), where
the data are, rather than at N = 1. `natural` turns coordinates into the parameters of the equation.
To add a form, write its predictors, its two translations and its starts, and add a line to FORMS.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jobs.laws.links import (
    LOG_2,
    Floats,
    Link,
    floor_plus_power_mean,
    floor_plus_terms,
    log_linear,
    power_mean_without_floor,
)

Feature = Literal["one", "params", "tokens", "compute"]

# Exponents seen in the literature lie between .03 (Kaplan) and .8; wider bounds only let ill-posed fits wander off.
EXPONENT_BOUNDS = (0.01, 2.0)
# ln of a term at the centre of the design, relative to the typical loss: below exp(-12) it cannot be seen in any data.
TERM_BOUNDS = (-12.0, 3.0)
# gamma couples the two terms: .05 is nearly their maximum, 4 nearly their geometric mean; published fits lie below 1.
LOG_GAMMA_BOUNDS = (math.log(0.05), math.log(4.0))
LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Centre:
    """Where coordinates are centred: means of ln N, ln D and ln L over the fitted rows."""

    log_params: float
    log_tokens: float
    log_loss: float

    @property
    def log_compute(self) -> float:
        return math.log(6.0) + self.log_params + self.log_tokens

    def features(self, params: Floats, tokens: Floats) -> dict[Feature, Floats]:
        """Centred logarithms of N, D and C = 6ND."""
        by_params = np.log(params) - self.log_params
        by_tokens = np.log(tokens) - self.log_tokens
        return {
            "one": np.ones_like(by_params),
            "params": by_params,
            "tokens": by_tokens,
            "compute": by_params + by_tokens,
        }


@dataclass(frozen=True)
class Entry:
    """A coordinate enters predictor `predictor` with the factor sign * feature."""

    predictor: int
    feature: Feature
    sign: float = 1.0


@dataclass(frozen=True)
class Coordinate:
    """One number that is fitted. The upper bound of a floor is the smallest loss, so it is set per table."""

    name: str
    lower: float
    upper: float
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Form:
    """A functional form; `parameters` are those of `equation`, in the order in which they are printed."""

    name: str
    equation: str
    paper: str
    parameters: tuple[str, ...]
    variables: tuple[Feature, ...]
    coordinates: tuple[Coordinate, ...]
    num_predictors: int
    link: Link
    natural: Callable[[Floats, Centre], dict[str, Floats]]
    coordinates_of: Callable[[Mapping[str, float], Centre], Floats]
    starts: Callable[[float], Floats]

    @property
    def num_parameters(self) -> int:
        return len(self.coordinates)

    @property
    def has_floor(self) -> bool:
        return self.coordinates[0].name == "E"

    def bounds(self, largest_floor: float) -> tuple[Floats, Floats]:
        """Bounds of the coordinates; `largest_floor` is the smallest loss relative to the typical one."""
        lower = np.array([coordinate.lower for coordinate in self.coordinates])
        upper = np.array([coordinate.upper for coordinate in self.coordinates])
        if self.has_floor:
            upper[0] = largest_floor
        return lower, upper

    def predictors(self, theta: Floats, features: Mapping[Feature, Floats]) -> tuple[Floats, ...]:
        """z_1 ... z_m, [batch, rows] (or [batch, 1] where no row enters), at coordinates theta [batch, coordinates]."""
        z: list[Floats | None] = [None] * self.num_predictors
        for index, coordinate in enumerate(self.coordinates):
            column = theta[:, index, None]
            for entry in coordinate.entries:
                part = entry.sign * column
                if entry.feature != "one":
                    part = part * features[entry.feature]
                held = z[entry.predictor]
                z[entry.predictor] = part if held is None else held + part
        return tuple(part for part in z if part is not None)

    def log_loss(self, theta: Floats, features: Mapping[Feature, Floats], centre: Centre) -> Floats:
        """ln L, [batch, rows]."""
        value = self.link(self.predictors(theta, features)).log_loss
        return value + centre.log_loss

    def jacobian(self, theta: Floats, features: Mapping[Feature, Floats]) -> Floats:
        """d ln L / d theta, [batch, rows, coordinates]."""
        gradient = self.link(self.predictors(theta, features)).gradient
        rows = len(features["one"])
        out = np.zeros((len(theta), rows, self.num_parameters))
        for index, coordinate in enumerate(self.coordinates):
            for entry in coordinate.entries:
                out[:, :, index] += entry.sign * gradient[entry.predictor] * features[entry.feature]
        return out


def _exp(log_value: Floats) -> Floats:
    return np.exp(np.clip(log_value, -LARGEST_LOG, LARGEST_LOG))


def _log(value: float, name: str) -> float:
    if not value > 0:
        raise ValueError(f"parameter {name} must be positive, got {value:g}")
    return math.log(value)


def _floor() -> Coordinate:
    return Coordinate("E", 0.0, 1.0, (Entry(0, "one"),))


def _term(name: str, predictor: int) -> Coordinate:
    return Coordinate(name, *TERM_BOUNDS, (Entry(predictor, "one"),))


def _exponent(name: str, predictor: int, feature: Feature, *more: Entry) -> Coordinate:
    return Coordinate(name, *EXPONENT_BOUNDS, (Entry(predictor, feature, -1.0), *more))


FLOOR_STARTS = (0.0, 0.3, 0.6, 0.85, 0.95)
SHARE_STARTS = (0.2, 0.5, 0.8)
EXPONENT_STARTS = (0.1, 0.3, 0.6, 1.0)
GAMMA_STARTS = (0.4, 1.0, 2.5)


def _two_term_starts(
    largest_floor: float, floors: tuple[float, ...] = FLOOR_STARTS, exponents: tuple[float, ...] = EXPONENT_STARTS
) -> Floats:
    """Rows (E, ln X, alpha, ln Y, beta): the part of the typical loss above the floor is cut between X and Y."""
    rows = []
    for fraction, share, alpha, beta in itertools.product(floors, SHARE_STARTS, exponents, exponents):
        floor = fraction * largest_floor
        above = max(1.0 - floor, 0.02)
        rows.append((floor, math.log(above * share), alpha, math.log(above * (1 - share)), beta))
    return np.array(rows)


def _coupled_starts(largest_floor: float) -> Floats:
    base = _two_term_starts(largest_floor)
    return np.concatenate([np.column_stack([base, np.full(len(base), math.log(gamma))]) for gamma in GAMMA_STARTS])


def _kaplan_starts(largest_floor: float) -> Floats:
    return _two_term_starts(largest_floor, floors=(0.0,), exponents=(0.03, 0.06, 0.1, 0.2, 0.4))[:, 1:]


def _power_starts(largest_floor: float) -> Floats:
    rows = [
        (fraction * largest_floor, math.log(max(1.0 - fraction * largest_floor, 0.02)), exponent)
        for fraction, exponent in itertools.product(FLOOR_STARTS, (0.03, *EXPONENT_STARTS))
    ]
    return np.array(rows)


def _chinchilla_natural(theta: Floats, centre: Centre) -> dict[str, Floats]:
    floor, x, alpha, y, beta = np.moveaxis(theta, -1, 0)
    return {
        "E": floor * math.exp(centre.log_loss),
        "A": _exp(centre.log_loss + x + alpha * centre.log_params),
        "B": _exp(centre.log_loss + y + beta * centre.log_tokens),
        "alpha": alpha,
        "beta": beta,
    }


def _chinchilla_coordinates(params: Mapping[str, float], centre: Centre) -> Floats:
    x = _log(params["A"], "A") - params["alpha"] * centre.log_params - centre.log_loss
    y = _log(params["B"], "B") - params["beta"] * centre.log_tokens - centre.log_loss
    return np.array([params["E"] * math.exp(-centre.log_loss), x, params["alpha"], y, params["beta"]])


def _coupled_natural(theta: Floats, centre: Centre) -> dict[str, Floats]:
    floor, x, slope_n, y, slope_d, log_gamma = np.moveaxis(theta, -1, 0)
    gamma = np.exp(log_gamma)
    alpha, beta = slope_n / gamma, slope_d / gamma
    scale = centre.log_loss + (1.0 - gamma) * LOG_2
    return {
        "E": floor * math.exp(centre.log_loss),
        "A": _exp((scale + x) / gamma + alpha * centre.log_params),
        "B": _exp((scale + y) / gamma + beta * centre.log_tokens),
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
    }


def _coupled_coordinates(params: Mapping[str, float], centre: Centre) -> Floats:
    gamma, alpha, beta = params["gamma"], params["alpha"], params["beta"]
    scale = centre.log_loss + (1.0 - gamma) * LOG_2
    x = gamma * (_log(params["A"], "A") - alpha * centre.log_params) - scale
    y = gamma * (_log(params["B"], "B") - beta * centre.log_tokens) - scale
    floor = params["E"] * math.exp(-centre.log_loss)
    return np.array([floor, x, alpha * gamma, y, beta * gamma, _log(gamma, "gamma")])


def _kaplan_natural(theta: Floats, centre: Centre) -> dict[str, Floats]:
    x, alpha, y, beta = np.moveaxis(theta, -1, 0)
    scale = centre.log_loss + (1.0 - beta) * LOG_2
    return {
        "A": _exp((scale + x) / alpha + centre.log_params),
        "B": _exp((scale + y) / beta + centre.log_tokens),
        "alpha": alpha,
        "beta": beta,
    }


def _kaplan_coordinates(params: Mapping[str, float], centre: Centre) -> Floats:
    alpha, beta = params["alpha"], params["beta"]
    scale = centre.log_loss + (1.0 - beta) * LOG_2
    x = alpha * (_log(params["A"], "A") - centre.log_params) - scale
    y = beta * (_log(params["B"], "B") - centre.log_tokens) - scale
    return np.array([x, alpha, y, beta])


def _power(name: str, variable: Literal["params", "tokens", "compute"], *, floor: bool) -> Form:
    """L = E + A / V^alpha, or L = A / V^alpha without floor, in one variable V."""
    symbol = {"params": "N", "tokens": "D", "compute": "C"}[variable]
    first = 1 if floor else 0

    def log_centre(centre: Centre) -> float:
        return {"params": centre.log_params, "tokens": centre.log_tokens, "compute": centre.log_compute}[variable]

    def natural(theta: Floats, centre: Centre) -> dict[str, Floats]:
        x, alpha = theta[..., first], theta[..., first + 1]
        rest = {"A": _exp(centre.log_loss + x + alpha * log_centre(centre)), "alpha": alpha}
        return {"E": theta[..., 0] * math.exp(centre.log_loss), **rest} if floor else rest

    def coordinates_of(params: Mapping[str, float], centre: Centre) -> Floats:
        x = _log(params["A"], "A") - params["alpha"] * log_centre(centre) - centre.log_loss
        head = [params["E"] * math.exp(-centre.log_loss)] if floor else []
        return np.array([*head, x, params["alpha"]])

    return Form(
        name=name,
        equation=f"L = {'E + ' if floor else ''}A/{symbol}^alpha",
        paper="Hestness et al. 2017, arXiv 1712.00409; C = 6ND, Kaplan et al. 2020, arXiv 2001.08361",
        parameters=("E", "A", "alpha") if floor else ("A", "alpha"),
        variables=(variable,),
        coordinates=((_floor(),) if floor else ()) + (_term("A", first), _exponent("alpha", first, variable)),
        num_predictors=first + 1,
        link=floor_plus_terms if floor else log_linear,
        natural=natural,
        coordinates_of=coordinates_of,
        starts=_power_starts if floor else lambda _: np.array([(0.0, 0.05), (0.0, 0.5)]),
    )


FORMS: dict[str, Form] = {
    "chinchilla": Form(
        name="chinchilla",
        equation="L = E + A/N^alpha + B/D^beta",
        paper="Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
        parameters=("E", "A", "B", "alpha", "beta"),
        variables=("params", "tokens"),
        coordinates=(
            _floor(),
            _term("A", 1),
            _exponent("alpha", 1, "params"),
            _term("B", 2),
            _exponent("beta", 2, "tokens"),
        ),
        num_predictors=3,
        link=floor_plus_terms,
        natural=_chinchilla_natural,
        coordinates_of=_chinchilla_coordinates,
        starts=_two_term_starts,
    ),
    # The coordinates hold the exponents of the loss itself, alpha*gamma and beta*gamma: what the data see directly.
    "coupled": Form(
        name="coupled",
        equation="L = E + (A/N^alpha + B/D^beta)^gamma",
        paper="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, with a floor and a free outer exponent",
        parameters=("E", "A", "B", "alpha", "beta", "gamma"),
        variables=("params", "tokens"),
        coordinates=(
            _floor(),
            _term("A", 1),
            _exponent("alpha", 1, "params"),
            _term("B", 2),
            _exponent("beta", 2, "tokens"),
            Coordinate("gamma", *LOG_GAMMA_BOUNDS, (Entry(3, "one"),)),
        ),
        num_predictors=4,
        link=floor_plus_power_mean,
        natural=_coupled_natural,
        coordinates_of=_coupled_coordinates,
        starts=_coupled_starts,
    ),
    "kaplan": Form(
        name="kaplan",
        equation="L = [(A/N)^(alpha/beta) + B/D]^beta",
        paper="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 (A = N_c, B = D_c)",
        parameters=("A", "B", "alpha", "beta"),
        variables=("params", "tokens"),
        coordinates=(
            _term("A", 0),
            _exponent("alpha", 0, "params"),
            _term("B", 1),
            _exponent("beta", 1, "tokens", Entry(2, "one")),
        ),
        num_predictors=3,
        link=power_mean_without_floor,
        natural=_kaplan_natural,
        coordinates_of=_kaplan_coordinates,
        starts=_kaplan_starts,
    ),
    "power": _power("power", "compute", floor=True),
    "power_no_floor": _power("power_no_floor", "compute", floor=False),
    "power_params": _power("power_params", "params", floor=True),
    "power_tokens": _power("power_tokens", "tokens", floor=True),
}


def form_named(name: str) -> Form:
    """The form of that name. Raises ValueError that lists the known ones."""
    if name not in FORMS:
        raise ValueError(f"unknown form {name!r}; known forms: {', '.join(FORMS)}")
    return FORMS[name]
