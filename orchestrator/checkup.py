"""`scaling doctor`: the cluster's checks, the tracking store among them, as one table with what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cluster.doctor import Check, examine, is_broken
from jobs.storage import Home
from orchestrator.gang_requests import PRELOAD
from orchestrator.rows import aligned

__all__ = ["checkup", "checkup_text", "is_broken"]


def checkup(address: str | None) -> list[Check]:
    """All checks of this machine, of the cluster at `address` or RAY_ADDRESS, and of MLFLOW_TRACKING_URI."""
    home = Home.from_environment()
    return examine(home.root, address or os.environ.get("RAY_ADDRESS"), PRELOAD, [lambda: _check_tracking(home)])


def _check_tracking(home: Home) -> Check:
    from jobs.tracking import Tracker, TrackingError, redacted

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        return Check("mlflow", "ok", f"a store of our own at {home.mlflow_database}")
    try:
        Tracker(uri)
    except TrackingError as error:
        return Check(
            "mlflow", "fail", str(error), "Start the server, or unset MLFLOW_TRACKING_URI to use a local store."
        )
    return Check("mlflow", "ok", f"{redacted(uri)} answers")


def checkup_text(checks: Sequence[Check]) -> str:
    """The checks for a person: what was found, and what to do where something is not right."""
    lines = aligned([(check.name, check.status.rjust(4)) for check in checks])
    told = []
    for line, check in zip(lines, checks, strict=True):
        told.append(f"{line}  {check.found}")
        if check.status != "ok" and check.way_out:
            told.append(f"    -> {check.way_out}")
    return "\n".join(told)
