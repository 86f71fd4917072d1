"""Measures the held-out loss of a model by document, its windows shared out among the ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from jobs.records import DocumentLosses

if TYPE_CHECKING:
    from jobs.engine import Engine
    from jobs.evaluation_windows import Evaluation
    from jobs.peers import Peers


def document_losses(
    engine: Engine, evaluation: Evaluation, peers: Peers, windows_a_pass: int, alive: Callable[[], None]
) -> DocumentLosses:
    """Losses of a fixed evaluation set by document. Collective; every rank gets the whole result.

    Each rank takes `windows_a_pass` windows at a time and calls `alive` after each pass. Sums are in double precision,
    so the result depends on the number of ranks by rounding of the fp32 losses alone.
    """
    num_windows = len(evaluation.windows)
    nats = np.zeros(evaluation.num_documents, dtype=np.float64)
    # All ranks make equally many passes, since each may gather weights; what lies beyond the end counts nowhere.
    first = peers.rank * windows_a_pass
    for start in range(first, first + num_windows, peers.world_size * windows_a_pass):
        ids = evaluation.document_ids[start : start + windows_a_pass]
        windows = evaluation.windows[start : start + windows_a_pass] if len(ids) else evaluation.windows[:1]
        # The evaluation set is read-only, which torch does not know: it is copied, a pass at a time.
        tokens = torch.tensor(windows, device=engine.device)
        losses = engine.losses(tokens[:, :-1], tokens[:, 1:]).double().cpu().numpy()
        counted = ids >= 0
        nats += np.bincount(ids[counted], weights=losses[: len(ids)][counted], minlength=len(nats))
        alive()
    counted_ids = evaluation.document_ids[evaluation.document_ids >= 0]
    return DocumentLosses(
        nats=peers.sum_tensor(torch.from_numpy(nats)).numpy(),
        tokens=np.bincount(counted_ids, minlength=len(nats)).astype(np.int64),
        text_bytes=np.asarray(evaluation.document_bytes, dtype=np.int64),
    )
