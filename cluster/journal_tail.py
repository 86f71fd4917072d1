"""Reads the lines that were added to a growing text file since an offset. Knows nothing of their form."""

from __future__ import annotations

from pathlib import Path

# What one poll carries at most while its writer runs: the rest comes with the next one.
MAX_BYTES = 4 * 2**20


def read_new_lines(path: Path, offset: int, *, to_end: bool = False, max_bytes: int = MAX_BYTES) -> tuple[str, int]:
    """Whole lines from byte `offset` on, and the offset where the next reading begins.

    A last line without its newline is left for the next reading, and a missing file is an empty one. `to_end` reads
    all there is. A line longer than `max_bytes` comes whole. Undecodable bytes become U+FFFD: lines carry checksums.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(-1 if to_end else max_bytes)
            if b"\n" not in data:
                data += file.readline()
    except FileNotFoundError:
        return "", offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", errors="replace"), offset + len(whole)
