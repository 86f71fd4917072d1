"""Judges a form by rows that it did not see: the dearest runs, or those of a where-expression.

Rules: `compute:0.2` trains on 6ND <= its 80 % quantile and holds out the rest; anything else is a where-expression
over the columns given (`jobs.laws.where`), true for the rows held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.laws.fit import Holdout
from jobs.laws.fitting import Delta, Loss, fit_law
from jobs.laws.observations import FitError, Table
from jobs.laws.where import parse_where

# A naive law in C on the cheapest rows, and the loss of the dearest one: what a form must beat.
BASELINE_FORM = "power_no_floor"


def held_out_rows(table: Table, rule: str, columns: Mapping[str, Sequence[object]] | None = None) -> NDArray[np.bool_]:
    """True for the rows a rule holds out. Raises ValueError for a rule that is neither form."""
    kind, _, amount = rule.partition(":")
    if kind.strip() == "compute" and amount:
        try:
            fraction = float(amount)
        except ValueError:
            raise ValueError(f"hold-out rule {rule!r}: {amount!r} is not a number; write compute:0.2") from None
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"hold-out rule {rule!r}: the fraction must lie between 0 and 1")
        return np.asarray(table.train_flops > np.quantile(table.train_flops, 1.0 - fraction))
    where = parse_where(rule)
    known: dict[str, Sequence[object]] = {
        "params": table.params.tolist(),
        "tokens": table.tokens.tolist(),
        "loss": table.loss.tolist(),
        "train_flops": table.train_flops.tolist(),
        **(columns or {}),
    }
    where.check_names(known)
    used = {name: known[name] for name in where.names}
    return np.array([where({name: used[name][row] for name in used}) for row in range(len(table))], dtype=bool)


def hold_out(
    table: Table,
    form: str,
    rule: str = "compute:0.2",
    *,
    columns: Mapping[str, Sequence[object]] | None = None,
    delta: Delta = "auto",
    loss: Loss = "huber",
    bootstrap: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Holdout:
    """Fits `form` on the rows the rule leaves and predicts the others.

    Raises FitError where nothing is held out or what is left cannot carry the form.
    """
    held = held_out_rows(table, rule, columns)
    if not held.any() or held.all():
        raise FitError(f"hold-out rule {rule!r} holds out {int(held.sum())} of {len(table)} rows; both sides need some")
    train, test = table.take(~held), table.take(held)
    fit = fit_law(train, form, delta=delta, loss=loss, bootstrap=bootstrap, level=level, seed=seed)
    predicted = fit.predict_many(test.params, test.tokens)
    values = np.array([prediction.value for prediction in predicted])
    ends = np.array([prediction.prediction_interval for prediction in predicted])
    inside = (ends[:, 0] <= test.loss) & (test.loss <= ends[:, 1])
    return Holdout(
        rule=rule,
        rows=len(test),
        mean_abs_rel_error=float(np.mean(np.abs(values / test.loss - 1.0))),
        rms_log_error=float(np.sqrt(np.mean(np.log(values / test.loss) ** 2))),
        coverage=float(np.mean(inside)),
        interval_level=level,
        mean_interval_width=float(np.mean((ends[:, 1] - ends[:, 0]) / values)),
        baselines=baselines(train, test),
    )


def baselines(train: Table, test: Table) -> dict[str, float]:
    """Mean |relative error| of predictions without a law in N and D."""
    dearest = float(train.loss[np.argmax(train.train_flops)])
    out = {"loss_of_dearest_run": float(np.mean(np.abs(dearest / test.loss - 1.0)))}
    try:
        power = fit_law(train, BASELINE_FORM, bootstrap=0)
    except FitError:
        return out
    predicted = np.exp(power.log_loss(test.params, test.tokens))
    out["power_law_in_compute"] = float(np.mean(np.abs(predicted / test.loss - 1.0)))
    return out
