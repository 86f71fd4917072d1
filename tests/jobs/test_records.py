"""What is kept of a curve depends on the step alone, and the error of a loss is that of its documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.records import DocumentLosses, is_recorded


def test_points_are_dense_early_and_sparse_later() -> None:
    recorded = [step for step in range(1, 100_001) if is_recorded(step)]
    assert recorded[:79] == list(range(1, 80))
    assert 40 <= sum(10_000 < step <= 27_183 for step in recorded) <= 100
    spacings = np.diff(recorded)
    assert (np.diff(spacings) >= 0).all()
    assert spacings[-1] == 2000
    assert len(recorded) < 600


def test_standard_error_is_the_scatter_of_losses_over_draws_of_documents() -> None:
    random = np.random.default_rng(0)

    def drawn() -> DocumentLosses:
        tokens = random.integers(20, 400, 60)
        # A document's mean deviates as a whole: its tokens are not independent.
        nats = tokens * (2.0 + 0.3 * random.standard_normal(60))
        return DocumentLosses(nats=nats, tokens=tokens, text_bytes=3 * tokens)

    draws = [drawn() for _ in range(2000)]
    scatter = np.std([draw.loss for draw in draws])
    # 2,000 draws know a deviation to 1.6 %; the linearised estimator itself is some per cent low at 60 documents.
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(scatter, rel=0.06)


def test_one_document_has_no_standard_error() -> None:
    losses = DocumentLosses(nats=np.array([6.0]), tokens=np.array([3]), text_bytes=np.array([3]))
    assert (losses.loss, losses.standard_error) == (2.0, 0.0)


def test_document_losses_come_back_from_their_file_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "losses.safetensors"
    losses = DocumentLosses(nats=np.array([6.0, 1.5]), tokens=np.array([3, 1]), text_bytes=np.array([4, 2]))
    sha256 = losses.save(path)
    loaded = DocumentLosses.load(path, sha256)
    assert (loaded.nats == losses.nats).all()
    assert loaded.loss == losses.loss == 7.5 / 4
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged, expected sha256"):
        DocumentLosses.load(path, sha256)
