"""Paths are named in one place, and a file is seen whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.storage import Home, checked_name, commit, sha256_of_file, write_atomically


def test_home_is_taken_from_the_environment_or_lies_in_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALING_HOME", raising=False)
    assert Home.from_environment().root == tmp_path / ".scaling"
    monkeypatch.setenv("SCALING_HOME", "elsewhere")
    assert Home.from_environment().root == tmp_path / "elsewhere"


def test_paths_of_an_attempt_are_unique_to_its_number_and_step(tmp_path: Path) -> None:
    study = Home(tmp_path).study("quickstart")
    assert study.ledger == tmp_path / "studies/quickstart/ledger.sqlite"
    attempt = study.attempt("n14k-s0", 2)
    assert attempt.journal == tmp_path / "studies/quickstart/attempts/n14k-s0-a002/journal.jsonl"
    assert attempt.state(300) == attempt.root / "states/step-00000300"
    assert attempt.log(1) == attempt.root / "logs/rank-1.log"
    with pytest.raises(ValueError, match="numbered from 1, got 0"):
        study.attempt("n14k-s0", 0)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a..b", "Upper", "-dash", "nul\0", "x" * 65, "ümlaut"])
def test_name_that_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder: use 1 to 64"):
        Home(tmp_path).study(name)


def test_name_as_studies_and_curves_have_them_is_accepted() -> None:
    assert checked_name("n1.3m-d26m-s0") == "n1.3m-d26m-s0"


def test_write_replaces_the_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]
    assert sha256_of_file(path) == hashlib.sha256(b"second").hexdigest()


def test_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_committed_once(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / content).mkdir()
        (tmp_path / content / "file").write_text(content)
    commit(tmp_path / "first", tmp_path / "state")
    with pytest.raises(OSError, match="not empty"):
        commit(tmp_path / "second", tmp_path / "state")
    assert (tmp_path / "state" / "file").read_text() == "first"
