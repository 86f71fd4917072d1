"""The rows of a fit as one frozen value, `Table`: N, D and loss, with what is known of each row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jobs.laws.links import Floats

DEFAULT_CONVENTIONS = {
    "params": "as given in the table",
    "tokens": "as given in the table",
    "compute": "6 * params * tokens",
    "loss": "as given in the table",
}


class FitError(ValueError):
    """A fit that would have no meaning: the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Table:
    """Observations of runs: params N, tokens D, final loss, one entry a run.

    `clusters` labels runs that share weights (trunks); `weights` multiplies a row's share of the objective; `dropped`
    counts rows that were left out before. Raises FitError on rows that no law can hold.
    """

    params: Floats
    tokens: Floats
    loss: Floats
    weights: Floats | None = None
    clusters: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    dropped: int = 0
    conventions: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_CONVENTIONS))

    def __post_init__(self) -> None:
        rows = len(self.loss)
        for name in ("params", "tokens", "loss", "weights"):
            value = getattr(self, name)
            if value is None:
                continue
            array = np.array(value, dtype=float)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            if array.shape != (rows,):
                raise FitError(f"{name} has shape {array.shape}, but loss has {rows} rows")
            bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
            if len(bad):
                raise FitError(
                    f"{name} of row {bad[0] + 1} is {array[bad[0]]:g}; it must be finite and positive "
                    f"({len(bad)} such rows). Leave them out, for instance with --where."
                )
        for name in ("clusters", "names"):
            labels = getattr(self, name)
            if labels is not None and len(labels) != rows:
                raise FitError(f"{name} has {len(labels)} entries, but the table has {rows} rows")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def train_flops(self) -> Floats:
        """C = 6ND, the convention by which rows are ranked for hold-outs and extrapolation factors."""
        return 6.0 * self.params * self.tokens

    @cached_property
    def cells(self) -> NDArray[np.int64]:
        """Number of the distinct (N, D) cell of each row: rows of one cell are replicates."""
        _, inverse = np.unique(np.stack([self.params, self.tokens], axis=1), axis=0, return_inverse=True)
        return np.asarray(inverse, dtype=np.int64).reshape(-1)

    @property
    def num_cells(self) -> int:
        return int(self.cells.max()) + 1 if len(self) else 0

    def take(self, keep: ArrayLike) -> Table:
        """The rows where `keep` is true; the others are counted as neither used nor dropped."""
        rows = np.flatnonzero(np.asarray(keep, dtype=bool))
        return Table(
            self.params[rows],
            self.tokens[rows],
            self.loss[rows],
            None if self.weights is None else self.weights[rows],
            None if self.clusters is None else tuple(self.clusters[row] for row in rows),
            None if self.names is None else tuple(self.names[row] for row in rows),
            self.dropped,
            self.conventions,
        )

    def with_clusters(self, clusters: Sequence[object] | None) -> Table:
        labels = None if clusters is None else tuple(str(label) for label in clusters)
        return Table(
            self.params, self.tokens, self.loss, self.weights, labels, self.names, self.dropped, self.conventions
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the used numbers, whatever the order of the rows."""
        columns = [self.params, self.tokens, self.loss, *([] if self.weights is None else [self.weights])]
        lines = sorted(",".join(float(value).hex() for value in row) for row in zip(*columns, strict=True))
        return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()
