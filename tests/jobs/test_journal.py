"""Journal lines survive tearing and damage: what is whole is read, what is not is seen."""

from pathlib import Path

import pytest

from jobs.journal import JournalError, JournalWriter, decode, decode_lines, encode


def written(tmp_path: Path) -> str:
    writer = JournalWriter(tmp_path / "attempt" / "journal.jsonl")
    for step in (1, 2, 3):
        writer.write("metrics", "curve", step, step * 64, {"train/loss": 4.0 / step})
    writer.sync()
    writer.close()
    return (tmp_path / "attempt" / "journal.jsonl").read_text()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    lines = decode_lines(written(tmp_path))
    assert [(line.step, line.data["train/loss"]) for line in lines] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    assert decode(encode(lines[1])) == lines[1]


def test_truncation_at_any_byte_loses_only_the_last_line(tmp_path: Path) -> None:
    text = written(tmp_path)
    for length in range(len(text)):
        lines = decode_lines(text[:length])
        assert [line.step for line in lines] == list(range(1, text[:length].count("\n") + 1))


def test_a_flipped_character_is_seen(tmp_path: Path) -> None:
    text = written(tmp_path)
    middle = len(text) // 2
    damaged = text[:middle] + ("x" if text[middle] != "x" else "y") + text[middle + 1 :]
    assert [line.step for line in decode_lines(damaged)] == [1, 3]
    with pytest.raises(JournalError, match="checksum"):
        decode(damaged.splitlines()[1])
