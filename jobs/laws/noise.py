"""How far two runs of the same cell differ: from replicates where there are any, else from residuals.

Use replicates (same N and D, another seed) for the noise of a run; residuals also hold what the form misses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jobs.laws.links import Floats
from jobs.laws.observations import Table

# Fewer degrees of freedom say too little of a standard deviation to overrule the residuals.
FEWEST_REPLICATE_FREEDOM = 4
# 95 % efficiency at the normal distribution (Huber 1964, Ann. Math. Stat. 35, 73).
HUBER_TUNING = 1.345
# Standard deviation over median absolute deviation of a normal distribution.
SD_PER_MAD = 1.4826
# A guess where no replicate can tell: runs of one trunk share weights up to the fork, so their noise is half common.
# Two seeds per size measure it.
GUESSED_TRUNK_CORRELATION = 0.5
SMALLEST_SD = 1e-12


@dataclass(frozen=True)
class Noise:
    """Standard deviation of ln L of a new run, its degrees of freedom, and where it comes from.

    `correlation` is the share of the variance that runs of one cluster have in common.
    """

    sd: float
    freedom: float
    source: str
    correlation: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def draws(self, rng: np.random.Generator, size: int) -> Floats:
        """Noise of `size` new runs: Student's t, since the deviation itself is estimated."""
        return self.sd * rng.standard_t(self.freedom, size)


def replicate_noise(table: Table) -> Noise | None:
    """Pooled deviation of ln L within cells, or None where too few cells are repeated."""
    log_loss = np.log(table.loss)
    counts = np.bincount(table.cells)
    deviation = log_loss - (np.bincount(table.cells, weights=log_loss) / counts)[table.cells]
    freedom = float(len(table) - len(counts))
    if freedom < FEWEST_REPLICATE_FREEDOM:
        return None
    sd = float(np.sqrt(np.sum(deviation**2) / freedom))
    return Noise(max(sd, SMALLEST_SD), freedom, "replicates", _replicate_correlation(table, deviation, counts))


def _replicate_correlation(table: Table, deviation: Floats, counts: np.ndarray) -> float:
    """Correlation of the noise of two runs of one cluster, from deviations within replicated cells, in [0, .95]."""
    if table.clusters is None:
        return 0.0
    many = counts[table.cells]
    unbiased = np.where(many > 1, deviation * np.sqrt(many / np.maximum(many - 1, 1)), np.nan)
    products, squares = [], unbiased[~np.isnan(unbiased)] ** 2
    labels = np.array(table.clusters)
    for label in sorted(set(table.clusters)):
        of_trunk = unbiased[(labels == label) & (many > 1)]
        if len(of_trunk) > 1:
            pairs = len(of_trunk) * (len(of_trunk) - 1)
            products.append((np.sum(of_trunk) ** 2 - np.sum(of_trunk**2)) / pairs)
    if not products or not np.mean(squares) > 0:
        return GUESSED_TRUNK_CORRELATION
    return float(np.clip(np.mean(products) / np.mean(squares), 0.0, 0.95))


def cluster_correlation(table: Table, correlation: float) -> Floats:
    """Correlation matrix of the noise of the rows: `correlation` within a cluster, else 0."""
    labels = np.array(table.clusters) if table.clusters is not None else np.arange(len(table))
    same = (labels[:, None] == labels[None, :]).astype(float)
    return np.asarray(correlation * same + (1.0 - correlation) * np.eye(len(table)))


def residual_noise(table: Table, residuals: Floats, jacobian: Floats, correlation: float) -> Noise:
    """Deviation of ln L from the residuals, freed of what the fit absorbed.

    E[r'r] = sd^2 trace((I - H) R) with H the projection on the Jacobian's columns and R the correlation of the rows;
    with independent rows that trace is n - k.
    """
    columns = np.linalg.norm(jacobian, axis=0)
    kept = jacobian[:, columns > 0] / columns[columns > 0]
    basis = np.linalg.svd(kept, full_matrices=False)
    span = basis.U[:, basis.S / basis.S.max(initial=SMALLEST_SD) > 1e-10]
    matrix = cluster_correlation(table, correlation)
    left = float(np.trace(matrix) - np.sum((span.T @ matrix) * span.T))
    left = max(left, 0.5)
    freedom = float(max(len(table) - jacobian.shape[1], 1))
    return Noise(
        max(float(np.sqrt(np.sum(residuals**2) / left)), SMALLEST_SD), max(freedom, 2.0), "residuals", correlation
    )


def run_noise(table: Table, residuals: Floats, jacobian: Floats) -> Noise:
    """The noise of a new run: replicates where they are known and the fit is no worse than they allow."""
    replicates = replicate_noise(table)
    guess = GUESSED_TRUNK_CORRELATION if table.clusters is not None else 0.0
    correlation = replicates.correlation if replicates is not None else guess
    from_residuals = residual_noise(table, residuals, jacobian, correlation)
    if replicates is None:
        return from_residuals
    if from_residuals.sd <= replicates.sd:
        return replicates
    return Noise(
        from_residuals.sd,
        from_residuals.freedom,
        "residuals, which exceed the replicates (the form misses something)",
        correlation,
    )


def robust_sd(residuals: Floats, num_parameters: int) -> float:
    """1.4826 times the median absolute residual, corrected for the degrees of freedom of the fit."""
    rows = len(residuals)
    correction = np.sqrt(rows / max(rows - num_parameters, 1))
    return float(max(SD_PER_MAD * np.median(np.abs(residuals)) * correction, SMALLEST_SD))
