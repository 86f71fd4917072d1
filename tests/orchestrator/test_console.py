"""How a command ends: one message and its exit code for what a user can act on, a traceback for a bug."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from cluster.resources import ClusterUnreachable
from jobs.corpus_spec import CorpusError
from jobs.laws.observations import FitError
from jobs.tracking import TrackingConflict, TrackingError, TrackingUnreachable
from orchestrator.console import CommandFailed, exit_codes, is_interactive, known_failure, program, say_json
from orchestrator.database import LedgerError
from orchestrator.loading import StudyError
from orchestrator.writing import LeaseLost


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandFailed(7, "so"), 7),
        (FitError("too few rows"), 1),
        (StudyError(["x.yaml:1: wrong"]), 2),
        (CorpusError("too short"), 2),
        (LedgerError("refused"), 2),
        (LeaseLost("taken over"), 2),
        (TrackingError("wrong password"), 2),
        (TrackingConflict("another value"), 2),
        (ValueError("--level 2"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/proc/x"), 2),
        (ClusterUnreachable("no answer"), 3),
        (TrackingUnreachable("no answer"), 3),
        (sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full")), 3),
    ],
)
def test_what_a_user_can_act_on_has_a_code_and_no_traceback(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise error
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert told.startswith("scaling: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("error", [KeyError("a bug"), RuntimeError("a bug"), OSError("of no file"), UnicodeError("x")])
def test_bug_keeps_its_traceback(error: Exception) -> None:
    assert known_failure(error) is None
    with pytest.raises(type(error)), exit_codes():
        raise error


def test_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_json_is_strict_and_sorted(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"b": 1, "a": [1.5, None]})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": [1.5, None], "b": 1}
    assert text.index('"a"') < text.index('"b"')
    with pytest.raises(ValueError, match="not JSON compliant"):
        say_json({"a": float("nan")})


def test_program_is_called_as_this_shell_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "venv" / "scaling"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == "venv/scaling"
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "scaling"


def test_live_view_needs_a_terminal_that_moves_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_interactive()
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert is_interactive()
    monkeypatch.setenv("TERM", "dumb")
    assert not is_interactive()


def test_reader_that_leaves_early_changes_neither_code_nor_message(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    program = (
        "import sys; from orchestrator.console import say, tell\n"
        "assert not say('x' * 100_000); say('more'); tell('still here'); sys.exit(5)"
    )
    process = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (process.returncode, process.stderr) == (5, "still here\n")
