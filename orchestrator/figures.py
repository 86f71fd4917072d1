"""Draws a study: its law with the forecast, residuals, loss curves, IsoFLOP parabolas; values in, figures out.

An observation is a mapping with `name`, `role` ("fit" or "target"), `params`, `tokens`, `compute`, `loss`, `loss_se`;
a forecast one with `name`, `params`, `tokens`, `value`, `lo`, `hi`, `level`, and, once the target has run, `outcome`.
Colours are those that colour-blind readers can tell apart (Okabe and Ito 2008; matplotlib's viridis for ordered series).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Predict = Callable[[float, float], tuple[float, float, float]]

TARGET_COLOUR = "#D55E00"
FORECAST_COLOUR = "#333333"
MUTED = "#6B6B6B"
GRID = "#E3E3E3"
PNG_DPI = 180

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": "#222222",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "path",
    # Same input, same bytes: element ids in an SVG are random without it.
    "svg.hashsalt": "scaling",
}


def short_number(value: float) -> str:
    """A number as people write it: 14k, 1.25M, 3.2e18."""
    for bound, unit, scale in ((1e15, "", 0.0), (1e12, "T", 1e12), (1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e3)):
        if abs(value) >= bound:
            return f"{value:.1e}".replace("e+", "e") if not unit else f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


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
    with _styled() as new_figure:
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
        axes.set_title(title or "Fitted law and forecast" if forecasts else title or "Fitted law")
        axes.set_ylabel("validation loss (nats per token)")
        _draw_marker_legend(axes, level, bool(targets), bool(forecasts))
        return figure


def residual_figure(observations: Sequence[Row], predict: Predict) -> Figure:
    """How far each run lies from the law, in per cent of the loss, against its compute."""
    with _styled() as new_figure:
        figure = new_figure(7.6, 4.2)
        axes = figure.subplots()
        sizes = sorted({row["params"] for row in observations})
        colours = dict(zip(sizes, _ordered_colours(len(sizes)), strict=True))
        axes.axhline(0.0, color=FORECAST_COLOUR, linewidth=1.0)
        seen: set[tuple[float, str]] = set()
        for row in observations:
            value, _, _ = predict(row["params"], row["tokens"])
            is_target = row["role"] == "target"
            key = (row["params"], row["role"])
            label = f"{short_number(row['params'])}{' (target)' if is_target else ''}" if key not in seen else None
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
        _log_axis(axes, "x", [row["compute"] for row in observations])
        _scientific(axes)
        axes.set_xlabel("training compute (FLOPs)")
        axes.set_ylabel("loss over the law (%)")
        axes.set_title("Residuals: error bars are standard errors of the validation loss")
        axes.legend(title="parameters", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def curves_figure(curves: Sequence[Row], *, smooth_points: int = 9) -> Figure:
    """Training loss over tokens: trunks thin, the decay that ends each run thick.

    A curve is a mapping with `name`, `params`, `kind` ("trunk", "decay" or "whole"), `tokens` and `loss` (arrays);
    drawn is the running median over `smooth_points` of its points.
    """
    with _styled() as new_figure:
        figure = new_figure(8.4, 5.0)
        axes = figure.subplots()
        sizes = sorted({curve["params"] for curve in curves})
        colours = dict(zip(sizes, _ordered_colours(len(sizes)), strict=True))
        labelled: set[float] = set()
        for curve in curves:
            tokens, loss = _smoothed(curve["tokens"], curve["loss"], smooth_points)
            trunk = curve["kind"] == "trunk"
            label = None if curve["params"] in labelled else short_number(curve["params"])
            labelled.add(curve["params"])
            axes.plot(
                tokens,
                loss,
                color=colours[curve["params"]],
                linewidth=1.0 if trunk else 2.2,
                alpha=0.75 if trunk else 1.0,
                label=label,
            )
            if not trunk and len(tokens):
                axes.plot(tokens[-1], loss[-1], "o", color=colours[curve["params"]], markersize=4.5)
        everything = np.concatenate([np.asarray(curve["loss"], dtype=float) for curve in curves])
        everything = everything[np.isfinite(everything)]
        _log_axis(axes, "x", [float(np.max(curve["tokens"])) for curve in curves] + [_first_token(curves)])
        _log_axis(axes, "y", [float(np.min(everything)), float(np.quantile(everything, 0.995))])
        axes.set_xlabel("training tokens")
        axes.set_ylabel("training loss (nats per token)")
        axes.set_title("Loss curves: thin on the shared trunk, thick where a run decays")
        legend = axes.legend(title="parameters", loc="upper right")
        for line in legend.get_lines():
            line.set_linewidth(2.5)
        return figure


def isoflop_figure(observations: Sequence[Row], parabolas: Sequence[Row]) -> Figure:
    """Loss against parameters at each compute budget, with the fitted parabola and its minimum.

    A parabola is a mapping with `compute`, `loss_at` (params -> loss), `optimum_params`, `optimum_lo`, `optimum_hi`;
    an observation here also has `budget`, the compute budget that it belongs to.
    """
    with _styled() as new_figure:
        figure = new_figure(8.0, 5.0)
        axes = figure.subplots()
        ordered = sorted(parabolas, key=lambda parabola: float(parabola["compute"]))
        losses = [row["loss"] for row in observations]
        for parabola, colour in zip(ordered, _ordered_colours(len(ordered)), strict=True):
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
                label=f"{short_number(parabola['compute'])} FLOPs",
            )
            grid = np.geomspace(min(sizes) / 1.2, max(sizes) * 1.2, 100)
            axes.plot(grid, [parabola["loss_at"](size) for size in grid], color=colour, linewidth=1.4)
            optimum = parabola["optimum_params"]
            bottom = parabola["loss_at"](optimum)
            losses.append(bottom)
            axes.plot([parabola["optimum_lo"], parabola["optimum_hi"]], [bottom, bottom], color=colour, linewidth=4)
            axes.plot(optimum, bottom, "*", color=TARGET_COLOUR, markersize=13, zorder=5)
        _log_axis(axes, "x", [row["params"] for row in observations])
        _log_axis(axes, "y", losses)
        axes.set_xlabel("parameters N")
        axes.set_ylabel("validation loss (nats per token)")
        axes.set_title("IsoFLOPs: each budget's best size, with its interval")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def save(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG; equal figures give equal SVG bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(png, dpi=PNG_DPI)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


@contextmanager
def _styled() -> Iterator[Callable[[float, float], Figure]]:
    """A maker of figures in our style, without pyplot and its state for the whole process."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def new_figure(width_inches: float, height_inches: float) -> Figure:
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        return figure

    with matplotlib.rc_context(STYLE):
        yield new_figure


def _shares_budgets(rows: Sequence[Row]) -> bool:
    """Whether token budgets are shared between sizes, as in a grid: at least two budgets with two sizes each."""
    sizes: dict[float, set[float]] = {}
    for row in rows:
        sizes.setdefault(row["tokens"], set()).add(row["params"])
    return sum(len(group) >= 2 for group in sizes.values()) >= min(2, len(sizes))


def _draw_by_params(
    axes: Axes, fitted: Sequence[Row], targets: Sequence[Row], predict: Predict, forecasts: Sequence[Row]
) -> None:
    budgets = sorted({row["tokens"] for row in [*fitted, *targets, *forecasts]})
    last_fitted = max(row["params"] for row in fitted)
    sizes = [row["params"] for row in [*fitted, *targets, *forecasts]]
    grid = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.12, 120)
    ends = []
    for budget, colour in zip(budgets, _ordered_colours(len(budgets)), strict=True):
        ends.append((_draw_law(axes, grid, [predict(size, budget) for size in grid], last_fitted, colour), budget, colour))
        _draw_runs(axes, [row for row in fitted if row["tokens"] == budget], "params", colour)
    # Forecasts stand a little to the left of the outcomes, so that neither hides the other.
    for forecast in forecasts:
        _draw_forecast(axes, forecast, forecast["params"] / 1.035)
    _draw_targets(axes, targets, [row["params"] * (1.035 if forecasts else 1.0) for row in targets])
    _log_axis(axes, "x", [grid[0], grid[-1] * 1.45])
    _log_axis(axes, "y", _loss_range(fitted, targets, predict, grid, budgets))
    for end, budget, colour in ends:
        axes.annotate(
            f"{short_number(budget)} tokens",
            (grid[-1], end),
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
    for size, colour in zip(sizes, _ordered_colours(len(sizes)), strict=True):
        own = [row for row in rows if row["params"] == size]
        per_token = own[0]["compute"] / own[0]["tokens"]
        lowest, highest = (pick(row["tokens"] for row in own) for pick in (min, max))
        grid = np.geomspace(lowest / 1.6, highest * 1.6, 60)
        _draw_law(axes, grid * per_token, [predict(size, tokens) for tokens in grid], last_fitted, colour)
        _draw_runs(axes, [row for row in fitted if row["params"] == size], "compute", colour)
        axes.annotate(
            short_number(size),
            (grid[0] * per_token, predict(size, grid[0])[0]),
            xytext=(-3, 4),
            textcoords="offset points",
            color=colour,
            ha="right",
            fontsize=9.5,
            fontweight="bold",
        )
    compute_of = {row["name"]: row["compute"] for row in rows}
    for forecast in forecasts:
        compute = compute_of.get(forecast["name"], 6.0 * forecast["params"] * forecast["tokens"])
        _draw_forecast(axes, forecast, compute / 1.06)
    _draw_targets(axes, targets, [row["compute"] * (1.06 if forecasts else 1.0) for row in targets])
    _log_axis(axes, "x", [row["compute"] / 1.6 for row in rows] + [row["compute"] * 1.6 for row in rows])
    _log_axis(axes, "y", [row["loss"] for row in rows])
    _scientific(axes)
    axes.set_xlabel("training compute C (FLOPs)")


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


def _draw_outcomes(axes: Axes, forecasts: Sequence[Row]) -> None:
    """Each target's outcome in per cent of its forecast, over the frozen interval."""
    level = forecasts[0]["level"]
    for position, forecast in enumerate(forecasts):
        value = forecast["value"]
        low, high = (100 * (forecast[end] / value - 1) for end in ("lo", "hi"))
        axes.plot([low, high], [position, position], color="#C9C9C9", linewidth=13, solid_capstyle="butt", zorder=2)
        axes.plot(0, position, "D", markersize=6, color=FORECAST_COLOUR, markerfacecolor="white", markeredgewidth=1.4, zorder=3)
        outcome = forecast.get("outcome")
        if outcome is None:
            axes.annotate("not yet run", (high, position), xytext=(8, 0), textcoords="offset points", va="center", color=MUTED)
            continue
        error = 100 * (outcome / value - 1)
        axes.plot(
            error, position, "*", markersize=15, color=TARGET_COLOUR, markeredgecolor="white", markeredgewidth=0.8, zorder=4
        )
        axes.annotate(
            f"{error:+.2f} %",
            (error, position),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            color=TARGET_COLOUR,
            fontsize=9.5,
            fontweight="bold",
        )
    axes.axvline(0.0, color=FORECAST_COLOUR, linewidth=0.9)
    axes.set_yticks(range(len(forecasts)), [forecast["name"] for forecast in forecasts])
    axes.set_ylim(len(forecasts) - 0.4, -0.7)
    reach = max(abs(edge) for edge in axes.get_xlim())
    axes.set_xlim(-1.15 * reach, 1.15 * reach)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("outcome over forecast (%)")
    axes.set_title(f"What came out\n(bar: {100 * level:.0f} % interval)")


def _draw_marker_legend(axes: Axes, level: float, with_targets: bool, with_forecasts: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Line2D([], [], marker="o", linestyle="-", color=MUTED, markeredgecolor="white", label="fitted run, law"),
        Patch(facecolor=MUTED, alpha=0.25, label=f"{100 * level:.0f} % interval"),
    ]
    if with_forecasts:
        label = "forecast, frozen before training"
        entries.append(
            Line2D([], [], marker="D", linestyle="-", color=FORECAST_COLOUR, markerfacecolor="white", label=label)
        )
    if with_targets:
        entries.append(
            Line2D([], [], marker="*", markersize=12, linestyle="", color=TARGET_COLOUR, label="what came out")
        )
    axes.legend(handles=entries, loc="lower left")


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


def _ordered_colours(count: int) -> list[Any]:
    """Distinct colours for an ordered series, without viridis's yellow, which is faint on white."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](place) for place in np.linspace(0.05, 0.78, max(count, 1))]


def _loss_range(
    fitted: Sequence[Row], targets: Sequence[Row], predict: Predict, grid: np.ndarray, budgets: Sequence[float]
) -> list[float]:
    values = [row["loss"] for row in [*fitted, *targets]]
    return [*values, *predict(grid[-1], budgets[-1])[1:], *predict(grid[0], budgets[0])[1:]]


def _log_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis around the values, with ticks that read as plain numbers whatever the range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = float(min(values)), float(max(values))
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    margin = (high / low) ** 0.05 if high > low else 1.1
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / margin, high * margin)
    decades = np.log10(high / low)
    if decades > 1.2:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _scientific(axes: Axes) -> None:
    """Powers of ten for FLOPs, which nobody reads as 12G."""
    from matplotlib.ticker import LogFormatterSciNotation

    axes.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def _smoothed(tokens: Any, loss: Any, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Running median of the finite points, narrower at both ends."""
    x, y = np.asarray(tokens, dtype=float), np.asarray(loss, dtype=float)
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    half = window // 2
    return x, np.array([np.median(y[max(0, i - half) : i + half + 1]) for i in range(len(y))])


def _first_token(curves: Sequence[Row]) -> float:
    return float(min(np.min(curve["tokens"]) for curve in curves))
