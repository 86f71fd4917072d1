"""Where a study's MLflow records go: the study file, else MLFLOW_TRACKING_URI, else a SQLite store under the home."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.storage import Home

if TYPE_CHECKING:
    from orchestrator.study import Study


@dataclass(frozen=True)
class TrackingStore:
    """A tracking address; `artifact_root` is set for the store that we keep ourselves."""

    uri: str
    artifact_root: Path | None

    @property
    def shown(self) -> str:
        """The address without user and password."""
        return re.sub(r"//[^/@]*@", "//***@", self.uri)


def tracking_store(study: Study, home: Home) -> TrackingStore:
    """The store of a study."""
    uri = study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return TrackingStore(uri, None)
    return TrackingStore(f"sqlite:///{home.mlflow_database}", home.mlflow_artifacts)
