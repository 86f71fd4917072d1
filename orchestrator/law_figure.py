"""Draws the fitted law with its forecast, and the forecast beside what came out: the figure of a study.

An observation is a mapping with `name`, `role` ("fit" or "target"), `params`, `tokens`, `compute`, `loss`, `loss_se`;
a forecast one with `name`, `params`, `tokens`, `value`, `lo`, `hi`, `level`, once the target has run `outcome`, and
`blind: False` where something of the target was known before.
`predict(params, tokens)` gives value, lower and upper end of the interval at `level`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.drawing import (
    FORECAST_COLOUR,
    MUTED,
    TARGET_COLOUR,
    Predict,
    Row,
    log_axis,
    ordered_colours,
    scientific,
    styled,
)
from orchestrator.numbers import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def law_figure(
    observations: Sequence[Row], predict: Predict, forecasts: Sequence[Row] = (), *, title: str = "", level: float = 0.9
) -> Figure:
    """Loss against parameters with the fitted law, and the forecast beside what came out.

    The curves are drawn through the fitted points of one token budget each, or, where budgets are not shared between
    sizes, of one size each against compute. The band is the interval of `predict`. With forecasts a second panel shows
    each target's outcome as its deviation from what had been frozen.
    """
    fitted = [row for row in observations if row["role"] == "fit"]
    targets = [row for row in observations if row["role"] == "target"]
    if not fitted:
        raise ValueError("a law figure needs at least one fitted observation")
    with styled() as new_figure:
        figure = new_figure(11.0 if forecasts else 7.6, 5.0)
        if forecasts:
            axes, beside = figure.subplots(1, 2, width_ratios=[2.25, 1])
            _draw_outcomes(beside, forecasts)
        else:
            axes = figure.subplots()
        if _shares_budgets(fitted):
            _draw_by_params(axes, fitted, targets, predict, forecasts)
        else:
            _draw_by_compute(axes, fitted, targets, predict, forecasts)
        axes.set_title(title or ("Fitted law and forecast" if forecasts else "Fitted law"))
        axes.set_ylabel("validation loss (nats per token)")
        _draw_marker_legend(axes, level, targets, forecasts)
        return figure


def _shares_budgets(rows: Sequence[Row]) -> bool:
    """Whether sizes and token budgets form a grid of which at least half is there."""
    cells = {(row["params"], row["tokens"]) for row in rows}
    sizes, budgets = (len({cell[axis] for cell in cells}) for axis in (0, 1))
    return sizes > 1 and 2 * len(cells) >= sizes * budgets


def _draw_by_params(
    axes: Axes, fitted: Sequence[Row], targets: Sequence[Row], predict: Predict, forecasts: Sequence[Row]
) -> None:
    budgets = sorted({row["tokens"] for row in [*fitted, *targets, *forecasts]})
    last_fitted = max(row["params"] for row in fitted)
    sizes = [row["params"] for row in [*fitted, *targets, *forecasts]]
    grid = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.12, 120)
    ends = []
    for budget, colour in zip(budgets, ordered_colours(len(budgets)), strict=True):
        ends.append(
            (_draw_law(axes, grid, [predict(size, budget) for size in grid], last_fitted, colour), budget, colour)
        )
        _draw_runs(axes, [row for row in fitted if row["tokens"] == budget], "params", colour)
    # Forecasts stand a little to the left of the outcomes, so that neither hides the other.
    for forecast in forecasts:
        _draw_forecast(axes, forecast, forecast["params"] / 1.035)
    _draw_targets(axes, targets, [row["params"] * (1.035 if forecasts else 1.0) for row in targets])
    # A fifth of the width is for the labels at the ends of the curves.
    log_axis(axes, "x", [grid[0], grid[-1] * (grid[-1] / grid[0]) ** 0.2])
    log_axis(axes, "y", _loss_range(fitted, targets, predict, grid, budgets))
    places = _spread(axes, [end for end, _, _ in ends])
    for (_, budget, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{short_number(budget, 3)} tokens",
            (grid[-1], place),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9.5,
            fontweight="bold",
        )
    axes.set_xlabel("parameters N")
    if max(sizes) > last_fitted:
        _shade_beyond(axes, float(np.sqrt(last_fitted * min(size for size in sizes if size > last_fitted))))


def _draw_by_compute(
    axes: Axes, fitted: Sequence[Row], targets: Sequence[Row], predict: Predict, forecasts: Sequence[Row]
) -> None:
    rows = [*fitted, *targets]
    sizes = sorted({row["params"] for row in rows})
    last_fitted = max(row["compute"] for row in fitted)
    for size, colour in zip(sizes, ordered_colours(len(sizes)), strict=True):
        own = [row for row in rows if row["params"] == size]
        per_token = own[0]["compute"] / own[0]["tokens"]
        lowest, highest = (pick(row["tokens"] for row in own) for pick in (min, max))
        grid = np.geomspace(lowest / 1.6, highest * 1.6, 60)
        _draw_law(axes, grid * per_token, [predict(size, tokens) for tokens in grid], last_fitted, colour)
        axes.plot([], [], color=colour, linewidth=2.5, label=short_number(size, 3))
        _draw_runs(axes, [row for row in fitted if row["params"] == size], "compute", colour)
    compute_of = {row["name"]: row["compute"] for row in rows}
    for forecast in forecasts:
        compute = compute_of.get(forecast["name"], 6.0 * forecast["params"] * forecast["tokens"])
        _draw_forecast(axes, forecast, compute / 1.06)
    _draw_targets(axes, targets, [row["compute"] * (1.06 if forecasts else 1.0) for row in targets])
    log_axis(axes, "x", [row["compute"] / 1.6 for row in rows] + [row["compute"] * 1.6 for row in rows])
    log_axis(axes, "y", [*(row["loss"] for row in rows), *(row[end] for row in forecasts for end in ("lo", "hi"))])
    scientific(axes)
    axes.set_xlabel("training compute C (FLOPs)")
    axes.add_artist(axes.legend(title="parameters", loc="upper right"))


def _loss_range(
    fitted: Sequence[Row], targets: Sequence[Row], predict: Predict, grid: np.ndarray, budgets: Sequence[float]
) -> list[float]:
    values = [row["loss"] for row in [*fitted, *targets]]
    return [*values, *predict(grid[-1], budgets[-1])[1:], *predict(grid[0], budgets[0])[1:]]


def _spread(axes: Axes, values: Sequence[float], gap: float = 0.045) -> list[float]:
    """Heights at which labels of descending values do not overlap: `gap` of a logarithmic axis's height apart."""
    low, high = np.log(axes.get_ylim())
    heights = [(np.log(value) - low) / (high - low) for value in values]
    for i in range(1, len(heights)):
        heights[i] = min(heights[i], heights[i - 1] - gap)
    # What was pushed below the axis comes back up, and takes those above it along.
    for i in reversed(range(len(heights))):
        heights[i] = max(heights[i], gap / 2 if i == len(heights) - 1 else heights[i + 1] + gap)
    return [float(np.exp(low + height * (high - low))) for height in heights]


def _draw_law(
    axes: Axes, x: np.ndarray, predictions: Sequence[tuple[float, float, float]], last_fitted: float, colour: Any
) -> float:
    """One curve of the law: solid where it was fitted, dashed beyond, with its band. Its last value."""
    value, low, high = (np.asarray(column) for column in zip(*predictions, strict=True))
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    within = x <= last_fitted * 1.001
    axes.plot(x[within], value[within], color=colour, linewidth=1.7)
    beyond = ~within
    if beyond.any():
        # One point of the solid part belongs to the dashed one too, or there is a gap.
        beyond[max(0, int(np.argmax(beyond)) - 1)] = True
        axes.plot(x[beyond], value[beyond], color=colour, linewidth=1.5, linestyle=(0, (4, 2.2)))
    return float(value[-1])


def _draw_runs(axes: Axes, rows: Sequence[Row], x: str, colour: Any) -> None:
    axes.errorbar(
        [row[x] for row in rows],
        [row["loss"] for row in rows],
        yerr=[row["loss_se"] for row in rows],
        fmt="o",
        markersize=6.5,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.1,
        zorder=4,
    )


def _draw_targets(axes: Axes, rows: Sequence[Row], x: Sequence[float]) -> None:
    axes.plot(
        x,
        [row["loss"] for row in rows],
        "*",
        markersize=14,
        color=TARGET_COLOUR,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=6,
    )


def _draw_forecast(axes: Axes, forecast: Row, x: float) -> None:
    axes.errorbar(
        x,
        forecast["value"],
        yerr=[[forecast["value"] - forecast["lo"]], [forecast["hi"] - forecast["value"]]],
        fmt="D",
        markersize=5.5,
        color=FORECAST_COLOUR,
        markerfacecolor="white",
        markeredgewidth=1.4,
        elinewidth=1.6,
        capsize=3.5,
        zorder=5,
    )


def _shade_beyond(axes: Axes, x: float) -> None:
    """Mark where nothing was fitted."""
    right = axes.get_xlim()[1]
    axes.axvspan(x, right, color="#F4F1EA", zorder=0, linewidth=0)
    axes.set_xlim(right=right)
    axes.annotate(
        "beyond the fit",
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        color=MUTED,
        fontsize=9.5,
        style="italic",
    )


def _draw_marker_legend(axes: Axes, level: float, targets: Sequence[Row], forecasts: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Line2D([], [], marker="o", linestyle="-", color=MUTED, markeredgecolor="white", label="fitted run, law"),
        Patch(facecolor=MUTED, alpha=0.25, label=f"{100 * level:.0f} % interval"),
    ]
    if forecasts:
        blind = all(forecast.get("blind", True) for forecast in forecasts)
        label = "forecast, frozen before training" if blind else "forecast (not blind)"
        entries.append(
            Line2D([], [], marker="D", linestyle="-", color=FORECAST_COLOUR, markerfacecolor="white", label=label)
        )
    if targets:
        entries.append(
            Line2D([], [], marker="*", markersize=12, linestyle="", color=TARGET_COLOUR, label="what came out")
        )
    axes.legend(handles=entries, loc="lower left")


def _draw_outcomes(axes: Axes, forecasts: Sequence[Row]) -> None:
    """Each frozen forecast with its interval, in per cent of what came out (of itself, until something has)."""
    reach = 0.0
    for position, forecast in enumerate(forecasts):
        outcome = forecast.get("outcome")
        low, value, high = (
            100 * (forecast[end] / (forecast["value"] if outcome is None else outcome) - 1)
            for end in ("lo", "value", "hi")
        )
        reach = max(reach, abs(low), abs(high))
        axes.plot([low, high], [position, position], color="#C9C9C9", linewidth=13, solid_capstyle="butt", zorder=2)
        axes.plot(
            value,
            position,
            "D",
            markersize=6.5,
            color=FORECAST_COLOUR,
            markerfacecolor="white",
            markeredgewidth=1.4,
            zorder=4,
        )
        if outcome is None:
            _note_above(axes, "not yet run", value, position, MUTED)
            continue
        axes.plot(
            0, position, "*", markersize=14, color=TARGET_COLOUR, markeredgecolor="white", markeredgewidth=0.8, zorder=5
        )
        _note_above(axes, f"{value:+.2f} %", value, position, FORECAST_COLOUR)
    axes.axvline(0.0, color=TARGET_COLOUR, linewidth=1.1)
    axes.set_yticks(range(len(forecasts)), [forecast["name"] for forecast in forecasts])
    axes.set_ylim(len(forecasts) - 0.4, -0.7)
    axes.set_xlim(-1.3 * reach, 1.3 * reach)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("forecast over outcome (%)")
    axes.set_title("Forecast, then outcome")


def _note_above(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=9.5,
        fontweight="bold",
    )
