"""Draws the tables that might have been: pairs, whole clusters, or new noise around the fitted law.

When to use what: pairs (rows drawn with replacement) trust nothing but independence, and need many cells; clusters
(all runs of a trunk drawn together) where runs share weights, and need many trunks; noise around the law for small
designs, where a resample without the largest size is another design. Residual bootstrap is left out: it under-covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.laws.links import Floats
from jobs.laws.noise import Noise, cluster_correlation
from jobs.laws.observations import Table

# With fewer clusters a resample loses whole sizes; DESIGN, "Laws", sets 8. (Cameron, Gelbach & Miller 2008, Rev. Econ.
# Stat. 90, 414, find inference over-confident with five to thirty clusters.)
FEWEST_CLUSTERS = 8
# Cells per parameter below which pairs are not resampled: a guess. To test it, compare the coverage of both kinds of
# replicate over simulated studies of that size.
FEWEST_CELLS_PER_PARAMETER = 6


@dataclass(frozen=True)
class Resamples:
    """Targets (ln L) and row weights of every replicate, each [replicates or 1, rows], and a sentence on how."""

    targets: Floats
    weights: Floats
    kind: str


def resample(table: Table, fitted: Floats, noise: Noise, num_parameters: int, size: int, seed: int) -> Resamples:
    """`size` replicates of a table whose law is `fitted` (ln L per row)."""
    rng = np.random.default_rng([seed, 0])
    log_loss = np.log(table.loss)[None]
    base = np.ones(len(table)) if table.weights is None else table.weights
    num_clusters = len(set(table.clusters)) if table.clusters is not None else 0
    shared = table.clusters is not None and num_clusters < len(table)
    if shared and num_clusters >= FEWEST_CLUSTERS:
        _, member = np.unique(np.array(table.clusters), return_inverse=True)
        counts = rng.multinomial(num_clusters, np.full(num_clusters, 1.0 / num_clusters), size=size)
        return Resamples(log_loss, counts[:, member] * base, f"clusters ({num_clusters} drawn with replacement)")
    enough = table.num_cells >= FEWEST_CELLS_PER_PARAMETER * num_parameters
    if not shared and enough:
        counts = rng.multinomial(len(table), np.full(len(table), 1.0 / len(table)), size=size)
        return Resamples(log_loss, counts * base, "pairs (rows drawn with replacement)")
    why = (
        f"{num_clusters} clusters are fewer than {FEWEST_CLUSTERS}"
        if shared
        else f"{table.num_cells} cells are fewer than {FEWEST_CELLS_PER_PARAMETER} per parameter"
    )
    return Resamples(
        fitted[None] + _noise_fields(table, noise, rng, size),
        base[None],
        f"noise around the law, deviation {noise.sd:.2g} of ln L from {noise.source}"
        + (f", correlation {noise.correlation:.2g} within a cluster" if shared else "")
        + f" ({why})",
    )


def _noise_fields(table: Table, noise: Noise, rng: np.random.Generator, size: int) -> Floats:
    """Correlated normal noise, [size, rows]; its deviation is drawn anew per replicate, as uncertain as it is."""
    root = np.linalg.cholesky(cluster_correlation(table, noise.correlation))
    sd = noise.sd * np.sqrt(noise.freedom / rng.chisquare(noise.freedom, size))
    weights = 1.0 if table.weights is None else np.sqrt(np.mean(table.weights) / table.weights)
    return np.asarray(sd[:, None] * (rng.standard_normal((size, len(table))) @ root.T) * weights)
