"""Names of runs and trunks that people can read: `n14k-d2M-s0`, `n14k-s0`.

A name tells its numbers exactly, so that it is unique and never depends on which other points the study has. Identity
is the fingerprint, not the name.
"""

from __future__ import annotations

from orchestrator.designs import Point
from orchestrator.numbers import EXACT_DIGITS, parse_number, short_number


def run_name(point: Point) -> str:
    """Name of a run: size and tokens asked for, and seed."""
    return f"n{_exact(point.size)}-d{_exact(point.tokens)}-s{point.seed}"


def trunk_name(point: Point) -> str:
    """Name of the trunk that all budgets of a size and seed share."""
    return f"n{_exact(point.size)}-s{point.seed}"


def folder_name(name: str) -> str:
    """A name as a folder: lower case, no spaces. The suffixes k, M, B, T stay apart without their case."""
    return name.lower().replace(" ", "-")


def _exact(count: int) -> str:
    text = short_number(count, EXACT_DIGITS)
    return text if "+" not in text and parse_number(text) == count else str(count)
