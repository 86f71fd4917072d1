"""Cuts the fixed evaluation set out of validation documents: the same tokens for every run of a study.

Documents are taken from the first on, in the order of a hash of their content, until the tokens asked for are reached.
Each contributes at most its first `cap` tokens, since the standard error of a loss is over documents and one long file
must not stand for many. The cap is DOCUMENT_CAP_TOKENS, doubled as often as the validation part needs to reach the
tokens asked for. A document is cut into windows of sequence_length targets; its first token is predicted from a
boundary token, and every window starts with the last token of the one before, as in training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Guess: short enough that 256k tokens of source code cover 60 documents or more, long enough that the loss is not
# that of the opening lines. To test it: standard error and mean of the losses against the cap, on one finished run.
DOCUMENT_CAP_TOKENS = 4096

PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class Evaluation:
    """Targets are windows[:, 1:]; those whose document id is -1 are padding and count nowhere."""

    windows: npt.NDArray[np.int64]
    """[n, T + 1]: inputs are [:, :-1], targets [:, 1:]."""
    document_ids: npt.NDArray[np.int32]
    """[n, T]: from 0 in the order of the set, for the target at the same place."""
    document_bytes: npt.NDArray[np.int64]
    """[num_documents]: bytes of text that the targets of each document stand for."""
    num_tokens: int
    """Targets that count."""
    num_documents: int
    bytes_total: int
    """Bytes of text that all targets stand for: bits per byte = summed nats / ln 2 / bytes_total."""
    digest: str
    """sha256 of windows and document ids: the identity of what was measured."""


def cut_evaluation(
    tokens: npt.NDArray[np.unsignedinteger[Any]],
    starts: npt.NDArray[np.int64],
    text_bytes: npt.NDArray[np.uint32],
    boundary_id: int,
    target_tokens: int,
    sequence_length: int,
) -> Evaluation:
    """The first documents of flat `tokens` (document i is [starts[i], starts[i + 1])) up to exactly `target_tokens`.

    The last document is cut where the count is reached. Raises ValueError if there are fewer tokens.
    """
    if not 1 <= target_tokens <= len(tokens):
        raise ValueError(f"an evaluation set of {target_tokens:,} tokens cannot be cut from {len(tokens):,} tokens")
    taken = _taken_tokens(np.diff(starts), target_tokens)
    num_windows_of = -(-taken // sequence_length)
    windows = np.full((int(num_windows_of.sum()), sequence_length + 1), boundary_id, dtype=np.int64)
    document_ids = np.full((len(windows), sequence_length), PADDING_DOCUMENT, dtype=np.int32)
    document_bytes = np.zeros(len(taken), dtype=np.int64)
    row = 0
    for document, (start, count, rows) in enumerate(
        zip(starts[: len(taken)].tolist(), taken.tolist(), num_windows_of.tolist(), strict=True)
    ):
        targets = np.full(rows * sequence_length, boundary_id, dtype=np.int64)
        targets[:count] = tokens[start : start + count]
        block = slice(row, row + rows)
        windows[block, 1:] = targets.reshape(rows, sequence_length)
        windows[row + 1 : row + rows, 0] = windows[row : row + rows - 1, -1]
        document_ids[block].reshape(-1)[:count] = document
        document_bytes[document] = int(text_bytes[start : start + count].sum(dtype=np.int64))
        row += rows
    digest = hashlib.sha256(windows.astype("<i8").tobytes() + document_ids.astype("<i4").tobytes()).hexdigest()
    for array in (windows, document_ids, document_bytes):
        array.setflags(write=False)
    return Evaluation(
        windows=windows,
        document_ids=document_ids,
        document_bytes=document_bytes,
        num_tokens=int(taken.sum()),
        num_documents=len(taken),
        bytes_total=int(document_bytes.sum()),
        digest=digest,
    )


def _taken_tokens(lengths: npt.NDArray[np.int64], target_tokens: int) -> npt.NDArray[np.int64]:
    """Tokens taken from each of the first documents; they sum to `target_tokens`."""
    cap = DOCUMENT_CAP_TOKENS
    while np.minimum(lengths, cap).sum() < target_tokens:
        cap *= 2
    ends = np.cumsum(np.minimum(lengths, cap))
    num_documents = int(np.searchsorted(ends, target_tokens)) + 1
    taken = np.minimum(lengths, cap)[:num_documents]
    taken[-1] -= ends[num_documents - 1] - target_tokens
    return taken
