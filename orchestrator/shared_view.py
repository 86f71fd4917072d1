"""The way a study's page in MLflow is laid out when it opens: columns that matter, and charts over tokens and sizes.

MLflow keeps such a view in a tag of the experiment and applies it when the address names its key. The form is that of
its own front end (3.17) and no public interface: a server that does not know it shows its usual page. Pure.
"""

from __future__ import annotations

import json
from typing import Any

from jobs import tracking

VIEW_KEY = "study"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

METRIC_COLUMNS = (
    tracking.PARAMETERS_N,
    tracking.TOKENS_D,
    tracking.COMPUTE_C,
    tracking.VALIDATION_LOSS,
    tracking.VALIDATION_LOSS_SE,
    tracking.VALIDATION_BITS_PER_BYTE,
)
TAG_COLUMNS = (tracking.ROLE_TAG, "scaling.status", "scaling.gang")

# Only runs of the study: the parent and the trunks have no final loss and would stand empty among them.
RUNS_FILTER = f"tags.`{tracking.ROLE_TAG}` != 'study' and tags.`{tracking.ROLE_TAG}` != 'trunk'"


def shared_view() -> str:
    """The view as the text of the experiment's tag."""
    section = "study-charts"
    charts = [
        _line_chart("loss-tokens", section, "Training loss over tokens", tracking.TRAIN_LOSS, {}),
        _line_chart(
            "loss-flops",
            section,
            "Training loss over FLOPs",
            tracking.TRAIN_LOSS,
            {"xAxisKey": "metric", "selectedXAxisMetricKey": tracking.TRAIN_FLOPS, "useGlobalXaxisKey": False},
        ),
        _scatter("loss-params", section, "Final loss by parameters", tracking.PARAMETERS_N),
        _scatter("loss-compute", section, "Final loss by compute", tracking.COMPUTE_C),
    ]
    view = {
        "searchFilter": RUNS_FILTER,
        # Cheapest first. By any order but that of creation the runs stand in one list, not folded under their parent.
        "orderByKey": f"metrics.`{tracking.COMPUTE_C}`",
        "orderByAsc": True,
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in METRIC_COLUMNS),
            *(f"tags.`{name}`" for name in TAG_COLUMNS),
        ],
        # Curves of all runs, not of the first ten.
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": section, "name": "Study", "display": True, "isReordered": False, "deleted": False}
        ],
    }
    return json.dumps(view, sort_keys=True)


def _line_chart(uuid: str, section: str, title: str, metric: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": uuid,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
        "runsCountToCompare": 100,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        # A straight line of a power law is one only where both axes are logarithmic.
        "xAxisScaleType": "log",
        "scaleType": "log",
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "displayPoints": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
        **changes,
    }


def _scatter(uuid: str, section: str, title: str, x: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "uuid": uuid,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
        "runsCountToCompare": 500,
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": tracking.VALIDATION_LOSS, "type": "METRIC"},
    }
