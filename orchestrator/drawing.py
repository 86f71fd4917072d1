"""How our figures look: style, colours, logarithmic axes with readable ticks; and files, equal for equal input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.numbers import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Predict = Callable[[float, float], tuple[float, float, float]]

# Colours that colour-blind readers tell apart: Okabe and Ito 2008; viridis for ordered series.
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


@contextmanager
def styled() -> Iterator[Callable[[float, float], Figure]]:
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


def save(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG; equal figures give equal SVG bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(png, dpi=PNG_DPI)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def ordered_colours(count: int) -> list[Any]:
    """Distinct colours for an ordered series, without viridis's yellow, which is faint on white."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](place) for place in np.linspace(0.05, 0.78, max(count, 1))]


def log_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
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
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def scientific(axes: Axes) -> None:
    """Powers of ten for FLOPs, which nobody reads as 12G."""
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


def power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if float(mantissa) == 1 else f"${float(mantissa):g}{{\\times}}{power}$"
