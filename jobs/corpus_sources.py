"""Finds a corpus before a word of it is read: which files, or which commit, and what tells of a change.

A local source is known by the names, sizes and times of its files, a hub data set by its commit.
"""

from __future__ import annotations

import glob
import logging
import os
import platform
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.corpus_spec import CorpusError, CorpusSpec
from jobs.identity import digest
from jobs.storage import sha256_of_file

logger = logging.getLogger(__name__)

# Raised when the same source and spec give other shards than before: prepared corpora are then made anew.
PREPARATION_VERSION = 1

COMMIT_HASH = re.compile(r"[0-9a-f]{40}")

# Loader of `datasets` by file name: a document is a whole .txt file, a row of the others.
LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}

# Folders of the standard library's tree that hold what was installed or built rather than its source.
NOT_STANDARD_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__", "lib-dynload"})
# Files that differ from machine to machine under one version of Python.
MADE_BY_THE_BUILD = ("_sysconfigdata_", "_sysconfig_vars_", "sitecustomize.", "usercustomize.")
MADE_BY_THE_BUILD_FOLDER = "config-"


@dataclass(frozen=True)
class LocatedSource:
    """A source that was found, before its text is read."""

    spec: CorpusSpec
    files: tuple[Path, ...]
    revision: str | None
    states: tuple[Any, ...]

    @property
    def folder_name(self) -> str:
        identity = {
            "preparation_version": PREPARATION_VERSION,
            "spec": self.spec,
            "revision": self.revision,
            "states": self.states,
        }
        return f"{self.spec.source}-{self.spec.tokenizer}-{digest(identity)[:16]}"

    @property
    def description(self) -> dict[str, Any]:
        if self.spec.source == "python-stdlib":
            return {"kind": "python-stdlib", "python": platform.python_version(), "files": len(self.files)}
        if self.revision is None:
            return {"kind": self.spec.source, "path": self.spec.path, "files": len(self.files)}
        spec = self.spec
        return {
            "kind": "hub",
            "path": spec.path,
            "name": spec.name,
            "split": spec.split or "train",
            "revision": self.revision,
        }


def locate(spec: CorpusSpec) -> LocatedSource:
    """Find the files or the commit of a corpus. Raises ValueError for what a user gave, CorpusError for the hub."""
    files: list[Path] = []
    revision = None
    if spec.source == "python-stdlib":
        files = standard_library_files(standard_library_root())
    elif spec.source == "files":
        files = named_files(spec.path or "")
    elif _is_local_folder(spec):
        if spec.revision is not None:
            raise ValueError(f"corpus.revision means nothing for the local folder {spec.path}: remove it")
        files = sorted(path.absolute() for path in Path(spec.path or "").rglob("*") if path.is_file())
    else:
        revision = _pinned_revision(spec)
    states: list[Any] = [list(state) for state in file_states(files)]
    if spec.hf_tokenizer is not None and Path(spec.hf_tokenizer).is_file():
        states.append(sha256_of_file(Path(spec.hf_tokenizer)))
    return LocatedSource(spec, tuple(files), revision, tuple(states))


def _is_local_folder(spec: CorpusSpec) -> bool:
    return spec.path is not None and Path(spec.path).is_dir()


def _pinned_revision(spec: CorpusSpec) -> str:
    """The commit of a hub data set. Raises CorpusError if it must be looked up and the hub cannot be reached."""
    if spec.revision is not None and COMMIT_HASH.fullmatch(spec.revision):
        return spec.revision
    import huggingface_hub

    assert spec.path is not None
    try:
        commit_hash = huggingface_hub.HfApi().dataset_info(spec.path, revision=spec.revision).sha
    except Exception as error:  # Its HTTP client raises errors of its own, and which client it is changes by release.
        raise unreachable(spec, error) from error
    if commit_hash is None:
        raise CorpusError(f"corpus.path: the hub names no commit of {spec.path!r}. Give corpus.revision.")
    logger.warning(
        "corpus %s: revision %s is not a commit; pinned to %s. Write it into the study file to keep it.",
        spec.path,
        spec.revision or "(none)",
        commit_hash,
    )
    return commit_hash


def unreachable(spec: CorpusSpec, error: Exception) -> CorpusError:
    """What to say when the hub did not give a data set: its reason in one line, and the ways out."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return CorpusError(
        f"corpus.path: data set {spec.path!r} could not be had from the Hugging Face hub: {reason}. Check its name "
        "(owner/name) and revision. Without a network: prepare it where there is one and share HF_HOME, "
        "give the folder of a downloaded copy as path, or use source: files or python-stdlib."
    )


def standard_library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def standard_library_files(root: Path) -> list[Path]:
    """All .py files of a standard library, its own tests included, sorted by their path inside it.

    Tests are kept: they are over half of the text (31 MB in all for Python 3.11), and ordinary Python.
    """
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in NOT_STANDARD_LIBRARY and not name.startswith(MADE_BY_THE_BUILD_FOLDER)
        ]
        found += [
            Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(MADE_BY_THE_BUILD)
        ]
    if not found:
        raise ValueError(
            f"corpus source python-stdlib: no .py file under {root}; this interpreter has its library elsewhere "
            "(a zip?). Use a corpus of source: files."
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def named_files(path: str) -> list[Path]:
    """The files behind a path: one file, every .txt, .jsonl and .parquet below a folder, or what a glob matches.

    Sorted, absolute. Raises ValueError if there is none, or one of another kind was named outright.
    """
    kinds = ", ".join(LOADERS)
    given = Path(path).expanduser()
    if given.is_dir():
        files = [file for file in given.rglob("*") if file.is_file() and file.suffix in LOADERS]
    elif given.is_file():
        files = [given]
    else:
        files = [Path(name) for name in glob.glob(str(given), recursive=True) if Path(name).is_file()]
    if not files:
        raise ValueError(f"corpus.path: {path!r} is neither a file, nor a folder or glob with {kinds} files in it")
    for file in files:
        if file.suffix not in LOADERS:
            raise ValueError(f"corpus.path: {file} is not of a kind that can be read ({kinds})")
    return sorted(file.absolute() for file in files)


def file_states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file: equal while nobody touched them, and quick to ask."""
    states = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise ValueError(f"corpus: {file} cannot be read: {error.strerror}") from error
        states.append((str(file), status.st_size, status.st_mtime_ns))
    return states
