"""What people type wrongly: each gives one clear message with a way out, the right exit code and no traceback."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import cli
from tests.orchestrator.paper_study import OVERRIDES
from tests.studies import TEXT

ROWS = "params,tokens,loss\n1e6,1e7,3.1\n2e6,1e7,2.9\n"


def type_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def refused(result: Result, code: int, *said: str) -> None:
    """The command ended with `code` after saying this, and nothing else happened."""
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A corpus of 60 documents, about 60 thousand bytes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"document {number} " * 80)
    return str(folder)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.learning_rat=1", ("unknown key 'learning_rat'. Did you mean 'learning_rate'?",)),
        ("design.sizes=[-20k, 45k]", ("design.sizes[0]: '-20k' must be 1 or more",)),
        ("design.sizes=[lots]", ("design.sizes[0]", "lots")),
        ("recipe.batch_tokens=1000", ("1000 must be a multiple of model.sequence_length 128. Use 896 or 1024",)),
        ("execution.micro_batch_sequences=3", ("8 sequences in a batch cannot be split by 3", "Use 2 or 4, or auto")),
        ("fit.forms=[chinchila]", ("'chinchila' is unknown. Did you mean 'chinchilla'?",)),
        ("recipe.warmup_steps=5000", ("at most half of its fork",)),
        ("name", ("must look like a.b=c",)),
    ],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_study_that_cannot_be_right(command: str, override: str, said: tuple[str, ...], file: str, home: Path) -> None:
    refused(type_command(command, file, override), 2, *said)
    assert not home.exists()


def test_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(TEXT.replace("learning_rate:", "learning_rat:"))
    refused(type_command("validate", str(path)), 2, f"{path}:10: recipe.learning_rat")


@pytest.mark.parametrize(("written", "tokens"), [("1e18", 10**18), ("1.3M", 1_300_480), ("1_000_000", 1_000_448)])
def test_numbers_as_people_write_them_are_read(written: str, tokens: int, file: str) -> None:
    result = type_command("plan", file, f"design.tokens=[{written}]", "--json")
    assert result.exit_code == 0, result.output
    assert f'"tokens": {tokens}' in result.stdout


def test_study_file_that_cannot_be_read(tmp_path: Path) -> None:
    refused(type_command("plan", str(tmp_path / "none.yaml")), 2, "there is no such file")
    refused(type_command("plan", str(tmp_path)), 2, "cannot be read (Is a directory)")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(type_command("plan", str(tmp_path / "binary.yaml")), 2, "is not text in UTF-8")
    (tmp_path / "torn.yaml").write_text("name: [")
    refused(type_command("plan", str(tmp_path / "torn.yaml")), 2, "torn.yaml:2: is not YAML")


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (ROWS + "3e6,1e7,nan\n", (), "line 4: column 'loss' is nan; it must be finite and positive"),
        (ROWS + "3e6,1e7,\n", (), "line 4: column 'loss' is empty"),
        (ROWS + "-3e6,1e7,2\n", (), "line 4: column 'params' is -3e6"),
        ("N,tokens,loss\n1,2,3\n", (), "no column 'params' for params; columns are N, tokens, loss"),
        (ROWS, ("--where", "size > 1"), "no column 'size'"),
        (ROWS, ("--form", "chinchila"), "chinchilla"),
        (ROWS, ("--columns", "size=N"), "--columns: 'size=N'"),
        ("", (), "is empty"),
    ],
)
def test_table_that_cannot_be_fitted(rows: str, options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(rows)
    refused(type_command("fit", "--table", str(path), *options), 2, said)


def test_table_that_is_not_there(tmp_path: Path) -> None:
    refused(type_command("fit", "--table", str(tmp_path / "none.csv")), 2, "cannot read the table")


def test_table_that_is_too_short_is_no_fit(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(ROWS)
    refused(type_command("fit", "--table", str(path)), 1, "no fit: form coupled")


def test_unknown_option_and_command() -> None:
    refused(type_command("rum", "x.yaml"), 2, "No such command 'rum'")
    refused(type_command("fit", "--bootstrap", "-1", "--table", "x.csv"), 2, "--bootstrap")
    refused(type_command("plan"), 2, "Missing argument 'STUDY'")


@pytest.mark.parametrize("place", ["/proc/none", "FILE"])
def test_home_that_cannot_be_written(place: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions mean nothing to root: a path that nobody can make serves for both.
    monkeypatch.setenv("SCALING_HOME", file if place == "FILE" else place)
    refused(type_command("run", file), 2, "cannot be written", "set SCALING_HOME to a folder that can be")


def test_corpus_that_is_not_there(file: str) -> None:
    refused(type_command("run", file, "corpus.source=files", "corpus.path=/none"), 2, "corpus.path: '/none' is neither")


def test_corpus_that_is_too_short_for_the_budget(file: str, texts: str) -> None:
    result = type_command("run", file, "corpus.source=files", f"corpus.path={texts}", *OVERRIDES)
    refused(result, 2, "design: run n", "unique tokens", "Use a larger corpus, or budgets of at most")
    status = type_command("status", file)
    assert status.exit_code == 0
    assert "nothing is planned yet" in status.stdout


def test_address_of_a_cluster_for_a_study_without_one(file: str) -> None:
    refused(type_command("run", file, *OVERRIDES, "--address", "10.0.0.1:6379"), 2, "execution.launcher is inline")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["nobody", "silent"])
def test_ray_that_does_not_answer(kind: str, file: str, texts: str, silent_port: int) -> None:
    address = f"127.0.0.1:{silent_port if kind == 'silent' else 9}"
    settings = (
        *("corpus.source=files", f"corpus.path={texts}", "corpus.validation_fraction=0.2", "evaluation.tokens=1024"),
        *("design.tokens=[8192]", "recipe.warmup_steps=2"),
    )
    began = time.monotonic()
    result = type_command("run", file, *settings, "--address", address)
    refused(result, 3, "the cluster cannot be reached: ", address)
    assert time.monotonic() - began < 90.0
    # What was planned is kept: the same command goes on once the cluster answers.
    assert "waiting" in type_command("status", file).stdout


def test_ray_address_that_is_none(file: str, texts: str) -> None:
    settings = ("corpus.source=files", f"corpus.path={texts}", "design.tokens=[8192]", "recipe.warmup_steps=2")
    more = ("corpus.validation_fraction=0.2", "evaluation.tokens=1024", "--address", "ray://head:10001")
    refused(type_command("run", file, *settings, *more), 2, "Ray address 'ray://head:10001' is not host:port")
