"""The journal of an attempt: append-only lines with a checksum, the truth of the curves.

Each line is `crc32(json) json`, so that a torn or damaged line is seen. A line that was written wins: readers keep
the first of each (curve, key, step) with its own timestamp, which makes every replay harmless.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import Field, ValidationError

from jobs.spec import Frozen

LineKind = Literal["begin", "metrics", "checkpoint", "state", "final", "end"]


class JournalError(ValueError):
    """A journal line that is torn, damaged or of an unknown form."""


class JournalLine(Frozen):
    """One event of an attempt, written by rank 0.

    kind        data
    begin       {"resumed_from": step, "world_size": .., "host": .., "pid": ..}
    metrics     {"train/loss": .., "learning_rate": .., "grad_norm": .., "tokens_per_s": .., ..} at `step` steps done
    checkpoint  {"path", "manifest_digest"}: a state in the middle of a segment
    state       {"state_id", "path", "manifest_digest"}: the state that ends a segment
    final       {"state_id", "val/loss", "val/loss_se", "val/bits_per_byte", "tokens", "documents", "path", "sha256"}
    end         {"outcome": "finished" | "diverged" | "preempted", "reason"}
    """

    kind: LineKind
    curve_id: str
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    time_ms: int
    data: dict[str, Any]


def encode(line: JournalLine) -> str:
    """One line of text, checksum first, newline last."""
    text = json.dumps(line.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def decode(text: str) -> JournalLine:
    """The event in one line. Raises JournalError."""
    checksum, _, body = text.rstrip("\n").partition(" ")
    if f"{zlib.crc32(body.encode()):08x}" != checksum:
        raise JournalError(f"journal line fails its checksum: {text[:80]!r}")
    try:
        return JournalLine.model_validate_json(body)
    except ValidationError as error:
        raise JournalError(f"journal line of an unknown form: {text[:80]!r}") from error


def decode_lines(text: str) -> list[JournalLine]:
    """Events of whole lines; a last line without its newline is left for the next reading.

    A damaged line is passed over: the attempt that follows it writes the same points again.
    """
    lines = []
    for row in text.splitlines(keepends=True):
        if not row.endswith("\n"):
            break
        try:
            lines.append(decode(row))
        except JournalError:
            continue
    return lines


class JournalWriter:
    """Appends events of one attempt; flushed at every line, synced when told."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, kind: LineKind, curve_id: str, step: int, tokens: int, data: dict[str, Any]) -> JournalLine:
        line = JournalLine(
            kind=kind, curve_id=curve_id, step=step, tokens=tokens, time_ms=time.time_ns() // 1_000_000, data=data
        )
        self._file.write(encode(line))
        self._file.flush()
        return line

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
