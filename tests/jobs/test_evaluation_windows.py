"""The evaluation set is the same tokens for every run, cut by document."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from jobs.evaluation_windows import DOCUMENT_CAP_TOKENS, Evaluation, cut_evaluation

BOUNDARY = 9


def cut(lengths: list[int], target_tokens: int, sequence_length: int = 4) -> tuple[npt.NDArray[np.uint16], Evaluation]:
    """Documents of given lengths (boundary included) with recognisable tokens, and their evaluation set."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tokens = (np.arange(starts[-1]) % 9).astype(np.uint16)
    tokens[starts[1:] - 1] = BOUNDARY
    text_bytes = (tokens != BOUNDARY).astype(np.uint32) * 2
    return tokens, cut_evaluation(tokens, starts, text_bytes, BOUNDARY, target_tokens, sequence_length)


def test_targets_are_the_tokens_of_documents_in_order() -> None:
    tokens, evaluation = cut([6, 4, 11], target_tokens=21)
    targets = evaluation.windows[:, 1:][evaluation.document_ids >= 0]
    assert targets.tolist() == tokens.tolist()
    assert evaluation.document_ids[evaluation.document_ids >= 0].tolist() == [0] * 6 + [1] * 4 + [2] * 11
    assert (evaluation.num_tokens, evaluation.num_documents) == (21, 3)


def test_each_target_is_predicted_from_the_token_before_it_and_the_first_from_a_boundary() -> None:
    tokens, evaluation = cut([6, 4, 11], target_tokens=21)
    contexts = evaluation.windows[:, :-1][evaluation.document_ids >= 0]
    expected = np.concatenate(([BOUNDARY], tokens[:-1]))
    assert contexts.tolist() == expected.tolist()


def test_padding_is_marked_and_has_legal_tokens() -> None:
    _, evaluation = cut([6], target_tokens=6)
    assert evaluation.document_ids.tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]
    assert evaluation.windows[1, 3:].tolist() == [BOUNDARY, BOUNDARY]


def test_exactly_the_tokens_asked_for_are_counted() -> None:
    for target in (1, 5, 6, 7, 20, 21):
        _, evaluation = cut([6, 4, 11], target_tokens=target)
        assert evaluation.num_tokens == np.count_nonzero(evaluation.document_ids >= 0) == target


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    _, small = cut([6, 4, 11], target_tokens=8)
    _, large = cut([6, 4, 11], target_tokens=21)
    whole_windows = slice(0, 2)
    assert np.array_equal(small.windows[whole_windows], large.windows[whole_windows])
    assert small.digest != large.digest


def test_bytes_are_those_of_the_counted_targets_alone() -> None:
    _, evaluation = cut([6, 4, 11], target_tokens=8)
    # Two bytes a token; the boundary that ends the first document has none, the second is cut after two tokens.
    assert evaluation.document_bytes.tolist() == [10, 4]
    assert evaluation.bytes_total == 14


def test_a_long_document_counts_no_more_than_its_cap_while_others_suffice() -> None:
    cap = DOCUMENT_CAP_TOKENS
    _, evaluation = cut([10 * cap, cap, cap], target_tokens=3 * cap, sequence_length=64)
    assert np.bincount(evaluation.document_ids[evaluation.document_ids >= 0]).tolist() == [cap, cap, cap]
    _, longer = cut([10 * cap, cap, cap], target_tokens=4 * cap, sequence_length=64)
    assert np.bincount(longer.document_ids[longer.document_ids >= 0]).tolist() == [2 * cap, cap, cap]


def test_more_tokens_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="22 tokens cannot be cut from 21"):
        cut([6, 4, 11], target_tokens=22)
