"""Which documents are trained on and which are held out: exact duplicates dropped first, sides drawn by content alone.

Training and validation are disjoint therefore, and a document keeps its side whatever comes before, after or instead
of the others.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.corpus_spec import CorpusError


@dataclass(frozen=True)
class DocumentSplit:
    """Rows of the documents that are kept."""

    train: npt.NDArray[np.int64]
    """In the order of the source."""
    validation: npt.NDArray[np.int64]
    """By draw, so that a larger validation_fraction only appends documents."""
    draws: npt.NDArray[np.uint64]
    """Of every row: a hash of split_seed and content, uniform on 64 bits."""
    text_bytes: npt.NDArray[np.int64]
    """Of every row."""
    dropped_duplicates: int
    dropped_empty: int


def split_documents(
    batches: Iterable[Sequence[str | None]], validation_fraction: float, split_seed: int
) -> DocumentSplit:
    """Drop empty documents and exact duplicates (the first stays), then draw the side of each by its content.

    A document is held out where blake2b(its content, key=split_seed) is below validation_fraction of its range.
    Raises CorpusError if a side is left without documents.
    """
    key = struct.pack("<Q", split_seed)
    contents = bytearray()
    draws = bytearray()
    sizes = []
    for batch in batches:
        for text in batch:
            encoded = (text or "").encode("utf-8")
            content = hashlib.blake2b(encoded, digest_size=16).digest()
            contents += content
            draws += hashlib.blake2b(content, digest_size=8, key=key).digest()
            sizes.append(len(encoded))
    text_bytes = np.array(sizes, dtype=np.int64)
    rows = np.flatnonzero(text_bytes)
    words = np.frombuffer(bytes(contents), dtype=[("high", "<u8"), ("low", "<u8")])[rows]
    kept = np.sort(rows[np.unique(words, return_index=True)[1]])
    draw_of_row = np.frombuffer(bytes(draws), dtype="<u8").astype(np.uint64)
    is_validation = draw_of_row[kept] < np.uint64(int(validation_fraction * 2.0**64))
    validation = kept[is_validation]
    split = DocumentSplit(
        train=kept[~is_validation],
        validation=validation[np.argsort(draw_of_row[validation], kind="stable")],
        draws=draw_of_row,
        text_bytes=text_bytes,
        dropped_duplicates=len(rows) - len(kept),
        dropped_empty=len(sizes) - len(rows),
    )
    if not len(split.train) or not len(split.validation):
        raise CorpusError(
            f"corpus: {len(kept):,} distinct documents with validation_fraction {validation_fraction} give "
            f"{len(split.train):,} for training and {len(split.validation):,} for validation; both need one. "
            "Use more documents (a .txt file is one), another validation_fraction or another split_seed."
        )
    return split
