"""Predicts from several forms at once, since an interval within one form takes that form for the truth.

Weights: w ~ 1 / (rms^2 + sd^2), where rms is the form's error in ln L on the held-out dearest runs and sd the noise of
a run (the smallest among the forms): forms that predict equally well up to noise weigh nearly the same, a form that
fails to extrapolate fades. Where any form has no hold-out, all weigh the same. The point prediction is the weighted
mean of the forms' ln L; the interval holds quantiles of their pooled draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jobs.laws.fit import Fit, Prediction, check_level, noisy_runs, predictions
from jobs.laws.fitting import Delta, Loss, fit_law
from jobs.laws.holdout import hold_out
from jobs.laws.links import Floats
from jobs.laws.observations import FitError, Table

# Draws pooled over all forms, shared out by weight.
POOLED_DRAWS = 20_000


@dataclass(frozen=True, eq=False)
class Mixture:
    """Fitted forms with weights that sum to 1, the rule that gave them, and the forms that could not be fitted."""

    fits: tuple[Fit, ...]
    weights: tuple[float, ...]
    rule: str
    refused: dict[str, str]
    level: float

    @property
    def best(self) -> Fit:
        """The fit of the largest weight (the first among equals)."""
        return self.fits[int(np.argmax(self.weights))]

    def fit_of(self, form: str) -> Fit:
        for fit in self.fits:
            if fit.form == form:
                return fit
        raise ValueError(f"form {form!r} is not in this mixture, which holds {', '.join(f.form for f in self.fits)}")

    def predict(self, params: float, tokens: float, level: float | None = None) -> Prediction:
        """Loss of a run with `params` and `tokens`, counted as in the fitted rows, over all forms."""
        return self.predict_many([params], [tokens], level)[0]

    def predict_many(self, params: ArrayLike, tokens: ArrayLike, level: float | None = None) -> tuple[Prediction, ...]:
        centre = np.average([fit.log_loss(params, tokens) for fit in self.fits], axis=0, weights=self.weights)
        means, runs = [], []
        for fit, weight in zip(self.fits, self.weights, strict=True):
            own = fit.log_loss_draws(params, tokens)
            means.append(_share(own, weight))
            runs.append(_share(noisy_runs(own, fit.noise, fit.seed), weight))
        return predictions(
            params,
            tokens,
            centre,
            np.concatenate(means),
            np.concatenate(runs),
            check_level(level or self.level),
            self.fits[0].span,
        )

    def document(self) -> dict[str, Any]:
        """Weights, rule and each form's own document."""
        return {
            "weights": {fit.form: weight for fit, weight in zip(self.fits, self.weights, strict=True)},
            "rule": self.rule,
            "refused": dict(self.refused),
            "level": self.level,
            "fits": {fit.form: fit.document() for fit in self.fits},
        }


def _share(draws: Floats, weight: float) -> Floats:
    """Evenly spaced draws of one form, as many as its weight in the pool; a form without weight gives none."""
    count = round(weight * POOLED_DRAWS)
    return draws[np.linspace(0, len(draws) - 1, count).round().astype(int)] if count else draws[:0]


def fit_mixture(
    observations: Table,
    forms: Sequence[str] = ("chinchilla", "coupled"),
    *,
    holdout: str | None = "compute:0.2",
    delta: Delta = "auto",
    loss: Loss = "huber",
    bootstrap: int = 1000,
    clusters: Sequence[object] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Mixture:
    """Fits every form that the table can carry, holds out by `holdout` (None: nothing), and weighs.

    Raises FitError where no form can be fitted, with each one's reason.
    """
    if not forms:
        raise ValueError("a mixture needs at least one form")
    table = observations if clusters is None else observations.with_clusters(clusters)
    fits: list[Fit] = []
    refused: dict[str, str] = {}
    for form in forms:
        try:
            fit = fit_law(table, form, delta=delta, loss=loss, bootstrap=bootstrap, level=level, seed=seed)
        except FitError as error:
            refused[form] = str(error)
            continue
        if not fit.converged:
            refused[form] = "; ".join(fit.reasons)
            continue
        if holdout is None:
            fits.append(fit)
            continue
        try:
            fit = fit.with_holdout(
                hold_out(
                    table, form, holdout, delta=delta, loss=loss, bootstrap=min(bootstrap, 200), level=level, seed=seed
                )
            )
        except FitError as error:
            fit = replace(fit, reasons=(*fit.reasons, f"no hold-out: {error}"))
        fits.append(fit)
    if not fits:
        raise FitError("no form can be fitted: " + "; ".join(f"{form}: {why}" for form, why in refused.items()))
    weights, rule = _weigh(fits)
    return Mixture(tuple(fits), weights, rule, refused, level)


def _weigh(fits: Sequence[Fit]) -> tuple[tuple[float, ...], str]:
    errors = [fit.holdout.rms_log_error for fit in fits if fit.holdout is not None]
    if len(errors) < len(fits):
        return (1.0 / len(fits),) * len(fits), "equal, since not every form could be held out"
    sd = min(fit.noise.sd for fit in fits)
    raw = np.array([1.0 / (error**2 + sd**2) for error in errors])
    weights = raw / raw.sum()
    return tuple(float(weight) for weight in weights), "1 / (squared hold-out error + squared run noise)"
