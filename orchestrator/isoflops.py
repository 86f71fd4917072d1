"""IsoFLOP parabolas of a study whose design has compute budgets: as text, as a document, and as rows of a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.laws.isoflop import Isoflop, fit_isoflop
from orchestrator.analysis import table_of, usable
from orchestrator.numbers import scientific, short_number
from orchestrator.rows import aligned

if TYPE_CHECKING:
    from jobs.observation import Observation
    from orchestrator.study import Study

# A drawn interval of N* holds about 90 % if its logarithm is normal.
INTERVAL_DEVIATIONS = 1.645


def isoflops_of(study: Study, observations: Sequence[Observation]) -> Isoflop | None:
    """The parabola of each of the design's budgets; None where the design has no budgets.

    A run belongs to the budget nearest to its own compute, exact convention. Raises FitError where fewer than two
    budgets have a minimum inside their sizes.
    """
    if study.design.kind != "isoflop":
        return None
    return fit_isoflop(table_of(observations), [_budget(study, row) for row in usable(observations)])


def _budget(study: Study, row: Observation) -> float:
    assert study.design.kind == "isoflop", "only this design has budgets"
    return min(study.design.budgets, key=lambda budget: abs(math.log(budget / row.train_flops)))


def isoflop_lines(isoflop: Isoflop) -> list[str]:
    """Optima by budget, budgets without one and why, and the power laws through the optima."""
    rows = [("budget (FLOPs)", "N*", "D*", "loss", "std. error of ln N*")]
    rows += [
        (
            scientific(optimum.train_flops),
            short_number(optimum.params, 3),
            short_number(optimum.tokens, 3),
            f"{optimum.loss:.4f}",
            f"{optimum.log_params_se:.3f}",
        )
        for optimum in isoflop.optima
    ]
    lines = ["IsoFLOP parabolas", *aligned(rows, indent=2)]
    lines += [f"  {scientific(item.train_flops)} FLOPs left out: {item.reason}" for item in isoflop.rejected]
    for symbol, frontier in (("N*", isoflop.params), ("D*", isoflop.tokens)):
        error = "" if math.isinf(frontier.exponent_se) else f" +- {frontier.exponent_se:.3f}"
        lines.append(f"  {symbol} = {frontier.scale:.3g} C^{frontier.exponent:.3f}{error}")
    return lines


def isoflop_json(isoflop: Isoflop) -> str:
    """The same facts as a document; an unknown standard error is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps(plain(asdict(isoflop)), indent=1) + "\n"


def figure_rows(
    study: Study, isoflop: Isoflop, observations: Sequence[Observation]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Observations with their budget, and parabolas, as `figures.isoflop_figure` draws them."""
    parabolas = []
    for optimum in isoflop.optima:
        spread = math.exp(INTERVAL_DEVIATIONS * optimum.log_params_se)
        parabolas.append(
            {
                "compute": optimum.train_flops,
                "loss_at": optimum.loss_at,
                "optimum_params": optimum.params,
                "optimum_lo": optimum.params / spread,
                "optimum_hi": optimum.params * spread,
            }
        )
    nearest = [optimum.train_flops for optimum in isoflop.optima]
    rows = []
    for row in usable(observations):
        budget = _budget(study, row)
        compute = min(nearest, key=lambda known: abs(math.log(known / budget)))
        if math.isclose(compute, budget, rel_tol=1e-6):
            rows.append({"params": row.params, "loss": row.loss, "loss_se": 0.0, "budget": compute})
    return rows, parabolas
