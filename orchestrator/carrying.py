"""Which law forms the fitted points of a plan can carry, said before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.numbers import scientific

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.study import Study

# Fewer cells than parameters and two leave nothing to judge a fit by; fewer levels do not show a power law's bend.
SPARE_CELLS = 2
FEWEST_LEVELS = 4


def carrying_warnings(study: Study, plan: Plan) -> tuple[str, ...]:
    """Forms that the study asks for and its fitted runs cannot carry, one line each."""
    from jobs.laws.forms import FORMS

    fitted = [run for run in plan.runs if run.role == "fit"]
    levels: dict[str, set[float]] = {
        "params": {run.params.matmul for run in fitted},
        "tokens": {run.tokens for run in fitted},
        "compute": {run.train_flops for run in fitted},
    }
    cells = len({(run.params.matmul, run.tokens) for run in fitted})
    found = []
    for name in dict.fromkeys((*study.fit.forms, *study.forecast.forms)):
        form = FORMS[name]
        needed = form.num_parameters + SPARE_CELLS
        if cells < needed or any(len(levels[variable]) < FEWEST_LEVELS for variable in form.variables):
            variables = " and ".join(form.variables)
            has = ", ".join(f"{len(levels[variable])} of {variable}" for variable in form.variables)
            found.append(
                f"form {name} needs {needed} cells and {FEWEST_LEVELS} distinct values of {variables} to fit; "
                f"the fitted runs have {cells} cells, {has}. Add sizes or budgets, or leave the form out"
            )
    return tuple(found)


def sharing_warnings(study: Study, plan: Plan) -> tuple[str, ...]:
    """Recipe rules that look at the horizon, and what the trunks that they part cost."""
    rules = study.recipe.horizon_rules
    if not rules or study.recipe.schedule != "wsd":
        return ()
    decay = study.recipe.decay_fraction
    horizons: dict[tuple[int, int], list[float]] = {}
    for run in plan.runs:
        horizons.setdefault((run.requested_params, run.spec.seed), []).append(run.train_flops)
    # One trunk to the largest D, and every budget's decay.
    shareable = sum((1 - decay) * max(flops) + decay * sum(flops) for flops in horizons.values())
    names = " and ".join(f"recipe.{name}" for name in rules)
    verb = "looks" if len(rules) == 1 else "look"
    return (
        f"{names} {verb} at each run's own tokens, so every budget trains its own trunk: "
        f"{scientific(plan.shared_flops)} FLOPs, where rules of N alone would share trunks and need about "
        f"{scientific(shareable)}",
    )
