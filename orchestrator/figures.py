"""Draws what surrounds a law: residuals, loss curves, IsoFLOP parabolas. Values in, figures out.

Observations are mappings as in orchestrator.law_figure; files are written by orchestrator.drawing.save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.drawing import (
    FORECAST_COLOUR,
    TARGET_COLOUR,
    Predict,
    Row,
    log_axis,
    ordered_colours,
    power_of_ten,
    scientific,
    styled,
)
from orchestrator.numbers import short_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def residual_figure(observations: Sequence[Row], predict: Predict) -> Figure:
    """How far each run lies from the law, in per cent of the loss, against its compute."""
    with styled() as new_figure:
        figure = new_figure(7.6, 4.2)
        axes = figure.subplots()
        sizes = sorted({row["params"] for row in observations})
        colours = dict(zip(sizes, ordered_colours(len(sizes)), strict=True))
        axes.axhline(0.0, color=FORECAST_COLOUR, linewidth=1.0)
        seen: set[tuple[float, str]] = set()
        for row in observations:
            value, _, _ = predict(row["params"], row["tokens"])
            is_target = row["role"] == "target"
            key = (row["params"], row["role"])
            label = f"{short_number(row['params'], 3)}{' (target)' if is_target else ''}" if key not in seen else None
            seen.add(key)
            axes.errorbar(
                row["compute"],
                100 * (row["loss"] / value - 1),
                yerr=100 * row["loss_se"] / value,
                fmt="*" if is_target else "o",
                markersize=12 if is_target else 6.5,
                color=TARGET_COLOUR if is_target else colours[row["params"]],
                elinewidth=1.0,
                label=label,
            )
        log_axis(axes, "x", [row["compute"] for row in observations])
        scientific(axes)
        axes.set_xlabel("training compute (FLOPs)")
        axes.set_ylabel("loss over the law (%)")
        axes.set_title("Residuals: error bars are the noise of a run")
        axes.legend(title="parameters", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def curves_figure(curves: Sequence[Row], *, smooth_points: int = 9) -> Figure:
    """Training loss over tokens: thin on the trunk, thick where a run decays.

    A curve is a mapping with `name`, `params`, `fork_tokens` (where the run leaves its trunk; 0: it has none), and the
    arrays `tokens` and `loss` from the beginning; drawn is the running median over `smooth_points` of its points.
    """
    with styled() as new_figure:
        figure = new_figure(8.4, 5.0)
        axes = figure.subplots()
        sizes = sorted({curve["params"] for curve in curves})
        colours = dict(zip(sizes, ordered_colours(len(sizes)), strict=True))
        labelled: set[float] = set()
        for curve in curves:
            tokens, loss = _smoothed(curve["tokens"], curve["loss"], smooth_points)
            colour = colours[curve["params"]]
            label = None if curve["params"] in labelled else short_number(curve["params"], 3)
            labelled.add(curve["params"])
            fork = int(np.searchsorted(tokens, curve["fork_tokens"], side="right"))
            axes.plot(tokens[:fork], loss[:fork], color=colour, linewidth=0.9)
            axes.plot(tokens[max(0, fork - 1) :], loss[max(0, fork - 1) :], color=colour, linewidth=2.2, label=label)
            axes.plot(tokens[-1:], loss[-1:], "o", color=colour, markersize=4.5)
        everything = np.concatenate([np.asarray(curve["loss"], dtype=float) for curve in curves])
        everything = everything[np.isfinite(everything)]
        log_axis(axes, "x", [float(np.max(curve["tokens"])) for curve in curves] + [_first_token(curves)])
        log_axis(axes, "y", [float(np.min(everything)), float(np.quantile(everything, 0.995))])
        axes.set_xlabel("training tokens")
        axes.set_ylabel("training loss (nats per token)")
        axes.set_title("Loss curves: thin on the shared trunk, thick where a run decays")
        axes.legend(title="parameters", loc="upper right")
        return figure


def isoflop_figure(observations: Sequence[Row], parabolas: Sequence[Row]) -> Figure:
    """Loss against parameters at each compute budget, with the fitted parabola and its minimum.

    A parabola is a mapping with `compute`, `loss_at` (params -> loss), `optimum_params`, `optimum_lo`, `optimum_hi`;
    an observation here also has `budget`, the compute budget that it belongs to.
    """
    with styled() as new_figure:
        figure = new_figure(8.0, 5.0)
        axes = figure.subplots()
        ordered = sorted(parabolas, key=lambda parabola: float(parabola["compute"]))
        losses = [row["loss"] for row in observations]
        for parabola, colour in zip(ordered, ordered_colours(len(ordered)), strict=True):
            rows = [row for row in observations if row["budget"] == parabola["compute"]]
            if not rows:
                continue
            sizes = [row["params"] for row in rows]
            axes.errorbar(
                sizes,
                [row["loss"] for row in rows],
                yerr=[row["loss_se"] for row in rows],
                fmt="o",
                color=colour,
                label=f"{power_of_ten(parabola['compute'])} FLOPs",
            )
            grid = np.geomspace(min(sizes) / 1.2, max(sizes) * 1.2, 100)
            axes.plot(grid, [parabola["loss_at"](size) for size in grid], color=colour, linewidth=1.4)
            optimum = parabola["optimum_params"]
            bottom = parabola["loss_at"](optimum)
            losses.append(bottom)
            axes.plot([parabola["optimum_lo"], parabola["optimum_hi"]], [bottom, bottom], color=colour, linewidth=4)
            axes.plot(optimum, bottom, "*", color=TARGET_COLOUR, markersize=13, zorder=5)
        edges = [parabola[end] for parabola in parabolas for end in ("optimum_lo", "optimum_hi")]
        log_axis(axes, "x", [*edges, *(row["params"] / 1.2 for row in observations)])
        log_axis(axes, "y", losses)
        axes.set_xlabel("parameters N")
        axes.set_ylabel("validation loss (nats per token)")
        axes.set_title("IsoFLOPs: each budget's best size, with its interval")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def _smoothed(tokens: Any, loss: Any, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Running median of the finite points, over a window that narrows towards both ends but stays centred."""
    x, y = np.asarray(tokens, dtype=float), np.asarray(loss, dtype=float)
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    halves = [min(window // 2, i, len(y) - 1 - i) for i in range(len(y))]
    return x, np.array([np.median(y[i - half : i + half + 1]) for i, half in enumerate(halves)])


def _first_token(curves: Sequence[Row]) -> float:
    return float(min(np.min(curve["tokens"]) for curve in curves))
