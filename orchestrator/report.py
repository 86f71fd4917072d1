"""Writes report.html: one self-contained page with the question, the law, the forecast against what came out, all runs.

Everything that comes from outside (names, questions, reasons) passes through jinja's autoescape; figures are embedded,
so the page can be mailed, and opens in MLflow's artifact viewer. Values in, text out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class LawSummary:
    """One fitted law. `parameters` are (symbol, value, lower, upper); the interval may be missing (NaN)."""

    form: str
    equation: str
    status: str
    reasons: Sequence[str]
    parameters: Sequence[tuple[str, float, float, float]]
    level: float
    rows_used: int
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """What a naive rule would have said."""

    name: str
    value: float


@dataclass(frozen=True)
class ForecastSummary:
    """One target: what was frozen, and what came out (None: not yet, or void with a `verdict` that says why)."""

    name: str
    value: float
    lo: float
    hi: float
    level: float
    blind: bool
    outcome: float | None = None
    outcome_se: float | None = None
    verdict: str = ""
    extrapolation: str = ""
    baselines: Sequence[Baseline] = ()

    @property
    def inside(self) -> bool | None:
        return None if self.outcome is None else self.lo <= self.outcome <= self.hi

    def error_percent(self, predicted: float) -> float | None:
        """100 (predicted - outcome) / outcome."""
        return None if self.outcome is None else 100 * (predicted - self.outcome) / self.outcome


@dataclass(frozen=True)
class ReportFigure:
    """A PNG or SVG file with what it shows."""

    title: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Report:
    """All that the page says. `summary` is one or two sentences for a reader who stops there."""

    study: str
    question: str
    summary: str
    plan: Mapping[str, str]
    laws: Sequence[LawSummary]
    forecasts: Sequence[ForecastSummary]
    figures: Sequence[ReportFigure]
    runs: Sequence[Mapping[str, Any]]
    excluded: Sequence[tuple[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    study_yaml: str = ""
    created: str = ""


def render_report(report: Report) -> str:
    """The page as HTML. Raises ValueError for a figure that is neither PNG nor SVG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, loss=_loss, signed_percent=_signed_percent, embedded=_embedded)
    columns = list(dict.fromkeys(key for row in report.runs for key in row))
    return environment.get_template("report.html.j2").render(report=report, columns=columns)


def _number(value: Any, digits: int = 4) -> str:
    """A table's cell: integers in groups of three, others to some significant digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        # With its trailing zeros, so that a column keeps its decimals.
        return f"{value:#.{digits}g}".rstrip(".")
    return str(value)


def _loss(value: float | None) -> str:
    """A loss or its error: the same number of decimals in every row."""
    return "–" if value is None else f"{value:.4f}"


def _signed_percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}\u202f%"


def _embedded(path: Path) -> str:
    """A data URI of a figure."""
    media_type = MEDIA_TYPES.get(path.suffix)
    if media_type is None:
        raise ValueError(f"{path}: a figure of the report is a .png or .svg file")
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
