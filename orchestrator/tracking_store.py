"""Where a study's MLflow records go: the study file, else MLFLOW_TRACKING_URI, else a SQLite store under the home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.storage import Home

if TYPE_CHECKING:
    from jobs.tracking import Tracker
    from orchestrator.study import Study

SQLITE_PREFIX = "sqlite:///"


@dataclass(frozen=True)
class TrackingStore:
    """A tracking address; `artifact_root` is set for the store that we keep ourselves."""

    uri: str
    artifact_root: Path | None

    @property
    def shown(self) -> str:
        """The address without user and password."""
        from jobs.tracking import redacted

        return redacted(self.uri)

    def open_for_reading(self) -> Tracker:
        """The store as it is. Raises ValueError where its file does not exist: a reader makes none; TrackingError."""
        from jobs.tracking import Tracker

        if self.uri.startswith(SQLITE_PREFIX) and not Path(self.uri.removeprefix(SQLITE_PREFIX)).exists():
            raise ValueError(f"there is no tracking store at {self.shown}: `scaling run` makes it")
        return Tracker(self.uri, self.artifact_root)


def tracking_store(study: Study, home: Home) -> TrackingStore:
    """The store of a study."""
    uri = study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return TrackingStore(uri, None)
    return TrackingStore(f"{SQLITE_PREFIX}{home.mlflow_database}", home.mlflow_artifacts)
