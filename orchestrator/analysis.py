"""From a study's observations to its laws: the table of a fit, and the forms that it can carry with their mixture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.laws.mixture import Mixture, fit_mixture
from jobs.laws.observations import FitError, Table
from jobs.observation import FLOPS_CONVENTION, PARAMS_CONVENTION, Observation

if TYPE_CHECKING:
    from orchestrator.study import Study

CONVENTIONS = {
    "params": PARAMS_CONVENTION,
    "tokens": "training tokens of the whole path 0 -> D",
    "compute": f"6 * params * tokens to rank rows; train_flops of an observation is {FLOPS_CONVENTION}",
    "loss": "validation loss in nats per token on a fixed set of documents, after the last step",
}


def usable(observations: Iterable[Observation], roles: Sequence[str] = ("fit",)) -> list[Observation]:
    """Observations that enter a fit: of the given roles and of good quality."""
    return [row for row in observations if row.role in roles and row.quality == "ok"]


def table_of(observations: Iterable[Observation], roles: Sequence[str] = ("fit",)) -> Table:
    """Rows of a fit; runs of one trunk form a cluster, since they share weights and tokens.

    Raises FitError where no observation is left.
    """
    given = list(observations)
    rows = usable(given, roles)
    if not rows:
        raise FitError(
            f"none of {len(given)} observations can be fitted (role {' or '.join(roles)}, quality ok): "
            "run the study first; `scaling status` shows what failed"
        )
    return Table(
        params=np.array([row.params for row in rows], dtype=float),
        tokens=np.array([row.tokens for row in rows], dtype=float),
        loss=np.array([row.loss for row in rows]),
        clusters=tuple(row.trunk for row in rows),
        names=tuple(row.name for row in rows),
        dropped=sum(row.role in roles for row in given) - len(rows),
        conventions=CONVENTIONS,
    )


def fit_study(study: Study, table: Table, forms: Sequence[str] | None = None) -> Mixture:
    """The forms that the table can carry, judged by the study's hold-out and weighed. Raises FitError."""
    return fit_mixture(
        table,
        forms or study.fit.forms,
        holdout=None if study.fit.hold_out == "none" else study.fit.hold_out,
        delta=study.fit.delta,
        bootstrap=study.fit.bootstrap,
        level=study.forecast.level,
    )
