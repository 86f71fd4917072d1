"""Where a study lives: its folders, its ledger and its tracking store. Light: reading commands need nothing else."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.storage import Home, StudyPaths
from orchestrator.tracking_store import TrackingStore, tracking_store

if TYPE_CHECKING:
    from orchestrator.study import Study


@dataclass(frozen=True)
class Place:
    """Home, folders and tracking store of one study."""

    home: Home
    paths: StudyPaths
    store: TrackingStore

    @classmethod
    def of(cls, study: Study) -> Place:
        home = Home.from_environment()
        return cls(home, home.study(study.name), tracking_store(study, home))

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.paths.ledger}"

    def make_folders(self) -> None:
        """Raises ValueError with the way out where the home cannot be written."""
        try:
            for folder in (self.paths.root, self.paths.attempts, self.paths.report):
                folder.mkdir(parents=True, exist_ok=True)
            # Permissions alone do not tell: a file system may be full or mounted for reading.
            with tempfile.TemporaryFile(dir=self.paths.root) as probe:
                probe.write(b"?")
        except OSError as error:
            raise ValueError(
                f"{self.paths.root} cannot be written ({error.strerror}): set SCALING_HOME to a folder that can be"
            ) from error
