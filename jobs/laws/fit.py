"""A fitted law as a value: parameters, doubt, and predictions that say how far they reach."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from jobs.laws.forms import FORMS, Centre, Form
from jobs.laws.links import Floats
from jobs.laws.noise import Noise

Status = Literal["OK", "BOUND_HIT", "SECOND_BASIN", "FLAT", "NOT_CONVERGED"]

# Noise samples per draw of the law, so that the quantiles of a prediction are smooth.
NOISE_PER_DRAW = 8


@dataclass(frozen=True)
class Objective:
    """Value of the minimised objective and what it is: a sum over rows of losses of ln-residuals."""

    value: float
    loss: str
    delta: float | None
    delta_source: str
    space: str = "log"
    reduction: str = "sum"


@dataclass(frozen=True)
class Bootstrap:
    """Replicates drawn, how (`kind` is a sentence), and how many have a certified minimum."""

    replicates: int
    kind: str
    certified: int


@dataclass(frozen=True)
class Basin:
    """A certified minimum within 1 % of the best objective."""

    params: dict[str, float]
    objective: float


@dataclass(frozen=True)
class Rows:
    """Which rows were fitted: how many, how many were left out, sha256 of the used ones."""

    used: int
    dropped: int
    hash: str


@dataclass(frozen=True)
class Certificate:
    """Why the optimum may be believed: see `jobs.laws.optimize`."""

    scaled_gradient: float
    reference_objective: float
    hessian_condition: float
    bounds_hit: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """Ranges of the fitted rows; C = 6ND."""

    params: tuple[float, float]
    tokens: tuple[float, float]
    train_flops: tuple[float, float]


@dataclass(frozen=True)
class Holdout:
    """How well a form predicts rows it did not see; errors are |predicted/actual - 1|."""

    rule: str
    rows: int
    mean_abs_rel_error: float
    rms_log_error: float
    coverage: float
    interval_level: float
    mean_interval_width: float
    baselines: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """Loss at (params, tokens): the law's value, the interval of the mean, and that of a new run.

    `extrapolation` holds, for params, tokens and train_flops, how many times beyond the fitted range the point lies
    (1 inside).
    """

    params: float
    tokens: float
    value: float
    mean_interval: tuple[float, float]
    prediction_interval: tuple[float, float]
    level: float
    extrapolation: dict[str, float]

    @property
    def relative_width(self) -> float:
        """Width of the prediction interval over the value."""
        return (self.prediction_interval[1] - self.prediction_interval[0]) / self.value

    @property
    def note(self) -> str:
        """One sentence on where the point lies."""
        beyond = {name: factor for name, factor in self.extrapolation.items() if factor > 1.0}
        if not beyond:
            return "inside the range of the fitted runs"
        return "extrapolates " + ", ".join(f"{factor:.3g}x in {name}" for name, factor in beyond.items())


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted form. Change makes a new one (`with_holdout`); `to_json` and back predicts the same."""

    form: str
    params: dict[str, float]
    se: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    level: float
    objective: Objective
    status: Status
    reasons: tuple[str, ...]
    basins: tuple[Basin, ...]
    bootstrap: Bootstrap
    certificate: Certificate
    conventions: dict[str, str]
    rows: Rows
    noise: Noise
    span: Span
    centre: Centre
    coordinates: Floats
    draws: Floats
    seed: int
    holdout: Holdout | None = None

    @property
    def law(self) -> Form:
        return FORMS[self.form]

    @property
    def converged(self) -> bool:
        return self.status != "NOT_CONVERGED"

    def with_holdout(self, holdout: Holdout) -> Fit:
        return replace(self, holdout=holdout)

    def log_loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """ln L of the fitted law at each point."""
        return np.asarray(self._at(self.coordinates[None], params, tokens)[0])

    def log_loss_draws(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """ln L of every certified bootstrap replicate, [draws, points]; the law itself where there is none."""
        return self._at(self.draws if len(self.draws) else self.coordinates[None], params, tokens)

    def _at(self, theta: Floats, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.broadcast_arrays(
            np.atleast_1d(np.asarray(params, dtype=float)), np.atleast_1d(np.asarray(tokens, dtype=float))
        )
        for name, values in (("params", n), ("tokens", d)):
            bad = values[~(np.isfinite(values) & (values > 0))]
            if len(bad):
                raise ValueError(f"{name} to predict at must be finite and positive, got {bad[0]:g}")
        with np.errstate(all="ignore"):
            value = self.law.log_loss(theta, self.centre.features(n, d), self.centre)
        return np.asarray(value, dtype=np.float64)

    def predict(self, params: float, tokens: float, level: float | None = None) -> Prediction:
        """Loss of a run with `params` and `tokens`, counted as in the fitted rows."""
        return self.predict_many([params], [tokens], level)[0]

    def predict_many(self, params: ArrayLike, tokens: ArrayLike, level: float | None = None) -> tuple[Prediction, ...]:
        """`predict` at each point of two equally long arrays."""
        centre = self.log_loss(params, tokens)
        means = self.log_loss_draws(params, tokens)
        runs = noisy_runs(means, self.noise, self.seed)
        return predictions(params, tokens, centre, means, runs, check_level(level or self.level), self.span)

    def document(self) -> dict[str, Any]:
        """The stable JSON document of `scaling fit --json`."""
        law = self.law
        return {
            "form": self.form,
            "equation": law.equation,
            "paper": law.paper,
            "params": dict(self.params),
            "se": dict(self.se),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "level": self.level,
            "objective": asdict(self.objective),
            "bootstrap": asdict(self.bootstrap),
            "status": self.status,
            "reasons": list(self.reasons),
            "basins": [asdict(basin) for basin in self.basins],
            "certificate": {**asdict(self.certificate), "bounds_hit": list(self.certificate.bounds_hit)},
            "holdout": None if self.holdout is None else asdict(self.holdout),
            "noise": self.noise.to_dict(),
            "span": {name: list(ends) for name, ends in asdict(self.span).items()},
            "conventions": dict(self.conventions),
            "rows": asdict(self.rows),
        }

    def to_json(self) -> str:
        """`document` and what predictions need besides: centre, coordinates, draws, seed."""
        replay = {
            "centre": asdict(self.centre),
            "coordinates": self.coordinates.tolist(),
            "draws": self.draws.tolist(),
            "seed": self.seed,
        }
        return json.dumps({**self.document(), "replay": replay}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Fit:
        """The fit that `to_json` wrote. Raises ValueError on other text."""
        try:
            held = json.loads(text)
            replay = held["replay"]
            num = len(FORMS[held["form"]].coordinates)
            return Fit(
                form=held["form"],
                params=held["params"],
                se=held["se"],
                intervals={name: (ends[0], ends[1]) for name, ends in held["intervals"].items()},
                level=held["level"],
                objective=Objective(**held["objective"]),
                status=held["status"],
                reasons=tuple(held["reasons"]),
                basins=tuple(Basin(**basin) for basin in held["basins"]),
                bootstrap=Bootstrap(**held["bootstrap"]),
                certificate=Certificate(
                    **{**held["certificate"], "bounds_hit": tuple(held["certificate"]["bounds_hit"])}
                ),
                conventions=held["conventions"],
                rows=Rows(**held["rows"]),
                noise=Noise(**held["noise"]),
                span=Span(**{name: (ends[0], ends[1]) for name, ends in held["span"].items()}),
                centre=Centre(**replay["centre"]),
                coordinates=np.array(replay["coordinates"], dtype=float),
                draws=np.array(replay["draws"], dtype=float).reshape(-1, num),
                seed=replay["seed"],
                holdout=None if held["holdout"] is None else Holdout(**held["holdout"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not the JSON of a fit (as `Fit.to_json` writes it): {error!r}") from error


def check_level(level: float) -> float:
    """A level of confidence strictly between 0 and 1, else ValueError."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level:g}; 0.9 is a 90 % interval")
    return level


def noisy_runs(means: Floats, noise: Noise, seed: int) -> Floats:
    """ln L of new runs, [NOISE_PER_DRAW * draws, points]: each draw of the law with run noise added."""
    repeated = np.repeat(means, NOISE_PER_DRAW, axis=0)
    rng = np.random.default_rng([seed, 1])
    return np.asarray(repeated + noise.draws(rng, len(repeated))[:, None])


def extrapolation(span: Span, params: float, tokens: float) -> dict[str, float]:
    """How many times beyond the fitted range a point lies, per variable; 1 inside."""
    point = {"params": params, "tokens": tokens, "train_flops": 6.0 * params * tokens}
    ranges = {"params": span.params, "tokens": span.tokens, "train_flops": span.train_flops}
    return {name: max(1.0, value / ranges[name][1], ranges[name][0] / value) for name, value in point.items()}


def predictions(
    params: ArrayLike,
    tokens: ArrayLike,
    centre: Floats,
    means: Floats,
    runs: Floats,
    level: float,
    span: Span,
) -> tuple[Prediction, ...]:
    """Predictions from ln L of the law [points], of its draws, and of new runs [draws, points]."""
    n, d = np.broadcast_arrays(
        np.atleast_1d(np.asarray(params, dtype=float)), np.atleast_1d(np.asarray(tokens, dtype=float))
    )
    tails = [0.5 * (1.0 - level), 0.5 * (1.0 + level)]
    mean_ends, run_ends = np.quantile(means, tails, axis=0), np.quantile(runs, tails, axis=0)
    return tuple(
        Prediction(
            params=float(n[at]),
            tokens=float(d[at]),
            value=math.exp(centre[at]),
            mean_interval=(math.exp(mean_ends[0, at]), math.exp(mean_ends[1, at])),
            prediction_interval=(math.exp(run_ends[0, at]), math.exp(run_ends[1, at])),
            level=level,
            extrapolation=extrapolation(span, float(n[at]), float(d[at])),
        )
        for at in range(len(n))
    )
