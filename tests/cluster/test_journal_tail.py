"""A growing file, read line by whole line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cluster.journal_tail import read_new_lines


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert read_new_lines(tmp_path / "none", 0) == ("", 0)


def test_a_long_file_comes_in_parts_and_at_the_end_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("aaaa\nbbbb\ncccc\n")
    assert read_new_lines(path, 0, max_bytes=12) == ("aaaa\nbbbb\n", 10)
    assert read_new_lines(path, 10, max_bytes=12) == ("cccc\n", 15)
    assert read_new_lines(path, 0, max_bytes=12, to_end=True) == ("aaaa\nbbbb\ncccc\n", 15)


def test_a_line_longer_than_a_part_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("a" * 50 + "\nb\n")
    assert read_new_lines(path, 0, max_bytes=10) == ("a" * 50 + "\n", 51)


def test_damaged_bytes_do_not_stop_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"good\n\xff\xfe\nmore\n")
    assert read_new_lines(path, 0) == ("good\n��\nmore\n", 13)


@given(st.lists(st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",)))), st.integers(1, 40))
def test_any_cuts_give_the_same_lines(tmp_path_factory, lines: list[str], max_bytes: int) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("tail") / "journal"
    whole = "".join(f"{line}\n" for line in lines)
    path.write_bytes(whole.encode() + b"torn")
    text, offset = "", 0
    while (part := read_new_lines(path, offset, max_bytes=max_bytes))[0]:
        text, offset = text + part[0], part[1]
    assert (text, offset) == (whole, len(whole.encode()))
