"""Tokenizers lose nothing, add one boundary a document, and count the bytes that tokens stand for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.tokenization import BytesTokenizer, DocumentTokenizer, HuggingFaceTokenizer, load_hf_tokenizer, train_bpe

TEXTS = [
    "def f(x):\n    return x + 1\n",
    "größe = 'é' * 3  # naïve\r\n\ttabs\n",
    "日本語のテキスト 🎉🎉",
    "<|endoftext|> [CLS] </s>",
    " ",
    "\x00",
]


@pytest.fixture(scope="module")
def bpe() -> HuggingFaceTokenizer:
    return train_bpe([text * 3 for text in TEXTS] + ["return x + 1\n" * 50], vocab_size=300)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: HuggingFaceTokenizer) -> DocumentTokenizer:
    return BytesTokenizer() if request.param == "bytes" else bpe


def test_decoding_an_encoded_text_gives_it_back(tokenizer: DocumentTokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode([text], with_bytes=False).tokens) == text


def test_each_document_ends_with_the_boundary_and_has_no_other(tokenizer: DocumentTokenizer) -> None:
    encoded = tokenizer.encode(TEXTS, with_bytes=False)
    boundaries = np.flatnonzero(encoded.tokens == tokenizer.vocab_size - 1)
    assert np.array_equal(boundaries, np.cumsum(encoded.lengths) - 1)
    assert len(encoded.lengths) == len(TEXTS)
    assert encoded.tokens.max() == tokenizer.vocab_size - 1


def test_bytes_of_tokens_sum_to_the_text_and_are_none_at_boundaries(tokenizer: DocumentTokenizer) -> None:
    encoded = tokenizer.encode(TEXTS, with_bytes=True)
    assert encoded.text_bytes is not None
    ends = np.cumsum(encoded.lengths)
    sums = np.add.reduceat(encoded.text_bytes, ends - encoded.lengths)
    assert sums.tolist() == [len(text.encode()) for text in TEXTS]
    assert not encoded.text_bytes[ends - 1].any()


def test_ids_do_not_depend_on_whether_bytes_are_counted(tokenizer: DocumentTokenizer) -> None:
    plain, counted = tokenizer.encode(TEXTS, with_bytes=False), tokenizer.encode(TEXTS, with_bytes=True)
    assert np.array_equal(plain.tokens, counted.tokens)
    assert plain.text_bytes is None


def test_bpe_has_the_vocabulary_asked_for_and_shortens_text(bpe: HuggingFaceTokenizer) -> None:
    text = "return x + 1\n"
    assert bpe.vocab_size == 300
    assert len(bpe.encode([text], with_bytes=False).tokens) < len(text) / 2


def test_bpe_of_the_same_texts_is_the_same(bpe: HuggingFaceTokenizer) -> None:
    again = train_bpe([text * 3 for text in TEXTS] + ["return x + 1\n" * 50], vocab_size=300)
    assert again.digest == bpe.digest


def test_bpe_of_a_small_text_has_fewer_ids_than_asked() -> None:
    assert train_bpe(["abab"], vocab_size=1000).vocab_size < 270


def test_bpe_without_room_for_a_merge_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 258 ids or more, got 257"):
        train_bpe(["text"], vocab_size=257)


def test_a_finished_tokenizer_is_stripped_of_special_tokens_cutting_and_padding(tmp_path: Path) -> None:
    import tokenizers

    library = tokenizers.Tokenizer.from_str(train_bpe(TEXTS * 20, vocab_size=300).json or "")
    library.add_special_tokens(["<|endoftext|>"])
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", library.token_to_id("<|endoftext|>"))]
    )
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    finished = load_hf_tokenizer(str(path))
    encoded = finished.encode(["<|endoftext|> is text"], with_bytes=False)
    assert finished.decode(encoded.tokens) == "<|endoftext|> is text"
    assert library.token_to_id("<|endoftext|>") not in encoded.tokens
    assert finished.vocab_size == library.get_vocab_size() + 1


def test_a_missing_or_foreign_tokenizer_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=re.escape(f"{missing} cannot be read: No such file")):
        load_hf_tokenizer(str(missing))
    missing.write_text(json.dumps({"not": "a tokenizer"}))
    with pytest.raises(ValueError, match=r"is not a tokenizer.json"):
        load_hf_tokenizer(str(missing))
