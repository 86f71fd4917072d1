"""Reads other people's runs from a CSV file into a `Table`, with every refusal naming row and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.laws.observations import DEFAULT_CONVENTIONS, FitError, Table
from jobs.laws.where import parse_where

NEEDED = ("params", "tokens", "loss")


@dataclass(frozen=True, eq=False)
class NamedTable:
    """A table with all columns of its file (numbers where they are numbers), for hold-out expressions."""

    table: Table
    columns: dict[str, tuple[str | float | bool, ...]]


def parse_columns(text: str | None) -> dict[str, str]:
    """`params=N,tokens=D,loss=L` to a dictionary. Raises ValueError for another key or a missing `=`."""
    out: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or name not in NEEDED:
            raise ValueError(
                f"--columns: {part.strip()!r} is not one of params=COLUMN, tokens=COLUMN, loss=COLUMN (comma between)"
            )
        out[name] = column
    return out


def read_table(
    path: str | Path,
    *,
    columns: str | Mapping[str, str] | None = None,
    where: str | None = None,
    cluster: str | None = None,
) -> NamedTable:
    """Rows of a CSV file with a header line.

    `columns` maps params, tokens, loss to the file's names, `where` keeps rows (`jobs.laws.where`), `cluster` names
    the column of trunk labels. Raises ValueError for a file that cannot be used, FitError where no row is left.
    """
    path = Path(path)
    names = {name: name for name in NEEDED} | (
        parse_columns(columns) if columns is None or isinstance(columns, str) else dict(columns)
    )
    header, rows = _read(path)
    for name, column in names.items():
        if column not in header:
            raise ValueError(
                f"{path}: no column {column!r} for {name}; columns are {', '.join(header)}. "
                f"Name it with --columns {name}=COLUMN"
            )
    if cluster is not None and cluster not in header:
        raise ValueError(f"{path}: no column {cluster!r} for --cluster; columns are {', '.join(header)}")
    kept = rows
    if where is not None:
        expression = parse_where(where)
        expression.check_names(header)
        kept = [(line, row) for line, row in rows if expression({name: _cell(row[name]) for name in header})]
        if not kept:
            raise FitError(f"{path}: --where {where!r} leaves none of {len(rows)} rows")
    numbers = {
        name: np.array([_number(path, line, column, row[column]) for line, row in kept])
        for name, column in names.items()
    }
    conventions = dict(DEFAULT_CONVENTIONS) | {name: f"column {column!r} as given" for name, column in names.items()}
    table = Table(
        numbers["params"],
        numbers["tokens"],
        numbers["loss"],
        clusters=None if cluster is None else tuple(row[cluster] for _, row in kept),
        dropped=len(rows) - len(kept),
        conventions=conventions,
    )
    return NamedTable(table, {name: tuple(_cell(row[name]) for _, row in kept) for name in header})


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and (line number, row) pairs."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            header = [name for name in (reader.fieldnames or []) if name]
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValueError(f"cannot read the table {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not header:
        raise ValueError(f"{path} is empty; a table has a header line, such as params,tokens,loss")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path}: column {twice!r} appears twice in the header")
    if not rows:
        raise FitError(f"{path} has a header and no rows")
    return header, rows


def _cell(text: str) -> str | float | bool:
    """A number or a truth value where the text is one, else the text."""
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        shown = "is empty" if not text.strip() else f"holds {text!r}, which is not a number"
        raise ValueError(f"{path}, line {line}: column {column!r} {shown}; leave such rows out with --where") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"{path}, line {line}: column {column!r} is {text}; it must be finite and positive. "
            "Leave such rows out with --where"
        )
    return value
