"""Rows of plain values as text: CSV, Markdown, JSON, or aligned columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def to_csv(rows: Rows, columns: Sequence[str] = ()) -> str:
    """A header and one line a row. `columns` come first, and make the header where there is no row."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=_columns(rows, columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(rows: Rows, columns: Sequence[str] = ()) -> str:
    """A table; absent values are empty cells."""
    names = _columns(rows, columns)
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(rows: Rows, columns: Sequence[str] = ()) -> str:
    """The rows as they are; `columns` are for tables."""
    return as_json(list(rows))


def as_json(document: Any) -> str:
    """One document as this program writes it everywhere."""
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Rows, Sequence[str]], str]] = {"csv": to_csv, "md": to_markdown, "json": to_json}


def aligned(rows: Sequence[Sequence[str]], indent: int = 0) -> list[str]:
    """Rows of a table with the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        (
            " " * indent
            + "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested values under dotted names; lists as text."""
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in flat(item, f"{path}.{key}").items()}
    return {path.lstrip("."): ", ".join(map(str, value)) if isinstance(value, list) else value}


def _columns(rows: Rows, columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")
