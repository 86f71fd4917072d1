"""A form laid on a table, ready to be minimised; refuses tables that cannot carry the form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.laws.forms import Centre, Feature, Form
from jobs.laws.links import Floats
from jobs.laws.objective import Problem
from jobs.laws.observations import FitError, Table

# Points of a grid in one variable below which its exponent and the floor cannot be told apart (DESIGN, "Laws").
FEWEST_DISTINCT = 4


@dataclass(frozen=True)
class Setup:
    """A form on a table, ready to be minimised: targets are ln L relative to the centre."""

    form: Form
    table: Table
    centre: Centre
    problem: Problem
    target: Floats
    weights: Floats
    largest_floor: float


def check_design(table: Table, form: Form) -> None:
    """Raises FitError where the table cannot carry the form, with what it would need."""
    if not len(table):
        raise FitError("there are no rows to fit; check the table and the --where clause")
    needed = form.num_parameters + 2
    columns: dict[Feature, Floats] = {
        "params": table.params,
        "tokens": table.tokens,
        "compute": np.asarray(np.round(np.log(table.train_flops), 9), dtype=np.float64),
    }
    if len(form.variables) == 1:
        cells = len(np.unique(columns[form.variables[0]]))
        noun = f"distinct values of {form.variables[0]}"
    else:
        cells = table.num_cells
        noun = "distinct (params, tokens) cells"
    if cells < needed:
        raise FitError(
            f"form {form.name} has {form.num_parameters} parameters and needs at least {needed} {noun}, got {cells}. "
            "Add runs, or fit a form with fewer parameters (power, power_no_floor)."
        )
    for name in form.variables:
        distinct = len(np.unique(columns[name]))
        if distinct < FEWEST_DISTINCT:
            raise FitError(
                f"form {form.name} needs at least {FEWEST_DISTINCT} distinct values of {name}, got {distinct}. "
                f"Add runs at other {name}, or fit a form without them"
                + (" (power_tokens)." if name == "params" else " (power_params)." if name == "tokens" else ".")
            )
    if float(np.ptp(np.log(table.loss))) < 1e-9:
        raise FitError(f"the loss is the same in all {len(table)} rows ({table.loss[0]:g}): there is nothing to fit")


def set_up(table: Table, form: Form) -> Setup:
    log_loss = np.log(table.loss)
    centre = Centre(
        float(np.mean(np.log(table.params))), float(np.mean(np.log(table.tokens))), float(np.mean(log_loss))
    )
    largest_floor = float(np.exp(np.min(log_loss) - centre.log_loss))
    lower, upper = form.bounds(largest_floor)
    problem = Problem(form, centre.features(table.params, table.tokens), lower, upper)
    weights = np.ones(len(table)) if table.weights is None else np.asarray(table.weights)
    return Setup(form, table, centre, problem, log_loss - centre.log_loss, weights, largest_floor)
