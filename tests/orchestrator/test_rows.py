"""Rows as text: what is absent, what is empty, what has to be escaped."""

from __future__ import annotations

import csv
import io

import pytest

from orchestrator.rows import aligned, flat, to_csv, to_json, to_markdown

ROWS = [{"run": "a|b", "loss": 1.5}, {"run": "c", "reason": 'said "no", twice'}]


def test_csv_reads_back_with_every_column() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows[0] == {"run": "a|b", "loss": "1.5", "reason": ""}
    assert rows[1] == {"run": "c", "loss": "", "reason": 'said "no", twice'}


def test_csv_without_rows_still_has_its_header() -> None:
    assert to_csv([], ["params", "tokens"]) == "params,tokens\n"


def test_markdown_escapes_bars_and_leaves_absent_values_empty() -> None:
    assert to_markdown(ROWS, ["run", "loss"]).splitlines()[2] == "| a\\|b | 1.5 |  |"


def test_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([{"loss": float("inf")}])


def test_flat_joins_names_with_dots_and_lists_with_commas() -> None:
    assert flat({"a": {"b": [1, 2], "c": None}, "d": "x"}) == {"a.b": "1, 2", "a.c": None, "d": "x"}


def test_aligned_keeps_the_first_column_left_and_trails_no_blanks() -> None:
    assert aligned([("run", "loss"), ("n1-d2", "2"), ("n3", "")], indent=1) == [" run    loss", " n1-d2     2", " n3"]
