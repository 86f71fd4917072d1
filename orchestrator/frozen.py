"""The frozen forecasts of a ledger: which of them count, and each as a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.reading import ForecastRow


def is_revision(forecast: ForecastRow, forecasts: Iterable[ForecastRow]) -> bool:
    """Whether all its targets had been forecast before: the first forecast of a target is the one that is scored."""
    before = {name for other in forecasts if other.sequence < forecast.sequence for name in other.targets}
    return before.issuperset(forecast.targets)


def first_forecasts(forecasts: Sequence[ForecastRow]) -> list[ForecastRow]:
    """Those that count: all but revisions."""
    return [forecast for forecast in forecasts if not is_revision(forecast, forecasts)]


def forecast_document(forecast: ForecastRow) -> dict[str, Any]:
    """A frozen forecast with its digest, and its score once there is one."""
    return {
        "digest": forecast.digest,
        "blind": forecast.blind,
        "frozen_ms": forecast.frozen_ms,
        "record": forecast.record,
        "score": forecast.score,
    }
