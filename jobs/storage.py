"""Owns every path on disk, with the one way in which a file or folder becomes visible: whole, synced, by rename."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "SCALING_HOME"
DEFAULT_HOME = ".scaling"

# Names become folder names on every file system, and parts of MLflow names: no separators, no upper case.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Suffix of what is being written; a reader never opens it, and it may be deleted when its writer is gone.
UNFINISHED_SUFFIX = ".tmp"

DIGEST_CHUNK_BYTES = 1 << 20


def checked_name(name: str) -> str:
    """The name itself, if it may name a study, a curve or an attempt. Raises ValueError."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{name!r} cannot name a folder: use 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit, "
            "without '..'"
        )
    return name


@dataclass(frozen=True)
class Home:
    """The folder under which everything lies that `scaling` keeps (environment SCALING_HOME, else ./.scaling)."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        return cls(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute())

    @property
    def corpora(self) -> Path:
        """Prepared corpora, one folder each."""
        return self.root / "corpora"

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    @property
    def calibration(self) -> Path:
        """Throughputs measured on this machine."""
        return self.root / "calibration.json"

    @property
    def studies(self) -> Path:
        return self.root / "studies"

    def study(self, name: str) -> StudyPaths:
        return StudyPaths(self.studies / checked_name(name))


@dataclass(frozen=True)
class StudyPaths:
    """Every path of one study."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def attempt(self, name: str, number: int) -> AttemptPaths:
        """Folder of the attempt `number` (from 1) at the chain `name`."""
        if number < 1:
            raise ValueError(f"attempts are numbered from 1, got {number}")
        # The number is appended to a checked name, so the whole may be longer than a name may be.
        return AttemptPaths(self.attempts / f"{checked_name(name)}-a{number:03d}")


@dataclass(frozen=True)
class AttemptPaths:
    """Every path of one attempt, the only folder that its workers write into."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def states(self) -> Path:
        return self.root / "states"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def state(self, step: int) -> Path:
        """Folder of the training state at `step`; unique per step and attempt, since the attempt has its own root."""
        return self.states / f"step-{step:08d}"

    def evaluation(self, step: int) -> Path:
        """Per-document losses of the final evaluation at `step`."""
        return self.evaluations / f"step-{step:08d}.safetensors"


def unfinished(path: Path) -> Path:
    """Where `path` is being built before it is committed."""
    return path.with_name(path.name + UNFINISHED_SUFFIX)


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(source: Path, target: Path) -> None:
    """Make `source` (a synced file or folder) visible as `target`, for good.

    Every rename of the system passes here. A file replaces its predecessor; a folder must have none (a state is
    written once per step and attempt), and a folder that stands there raises OSError.
    """
    os.rename(source, target)
    sync_folder(target.parent)


def write_atomically(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    `mode` is what the umask leaves of it from the first byte on: 0o600 for what others must not read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one path out of each other's half-written file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED_SUFFIX}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of_bytes(content: bytes) -> str:
    """Hexadecimal sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(DIGEST_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
