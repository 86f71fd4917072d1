"""Tokenizers as one interface: text of documents in, flat token ids out, each document ended by a boundary id.

bytes: the 256 bytes of UTF-8; no training, no vocabulary file, the same on every corpus. For small models.
bpe:   byte-level byte-pair encoding trained on the training documents of the corpus itself.
hf:    a finished tokenizer, from a `tokenizer.json` or by its name on the Hugging Face hub.

The boundary is always one id of our own after those of the tokenizer, so that no text can contain it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jobs.corpus_spec import MIN_BPE_VOCAB_SIZE
from jobs.storage import sha256_of_bytes

NUM_BYTES = 256
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents one after another."""

    tokens: npt.NDArray[np.uint32]
    """[tokens]: ids, a boundary at the end of each document."""
    lengths: npt.NDArray[np.int64]
    """[documents]: tokens of each, its boundary included."""
    text_bytes: npt.NDArray[np.uint32] | None
    """[tokens]: bytes of text that each token stands for, 0 for a boundary; None where they were not asked for."""


class DocumentTokenizer(Protocol):
    """What the preparation needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids in all; the boundary is the last."""

    @property
    def digest(self) -> str:
        """Identity of the mapping from text to ids."""

    @property
    def json(self) -> str | None:
        """Content of its tokenizer.json, if it needs one."""

    def encode(self, texts: Sequence[str], *, with_bytes: bool) -> EncodedDocuments:
        """Ids of documents, and on request the bytes behind each, which some tokenizers find slowly."""

    def decode(self, tokens: npt.NDArray[Any]) -> str:
        """Text of ids, boundaries left out."""


class BytesTokenizer:
    """UTF-8 bytes: id = byte, boundary = 256."""

    vocab_size = NUM_BYTES + 1
    digest = sha256_of_bytes(b"utf-8 bytes, boundary 256")
    json = None

    def encode(self, texts: Sequence[str], *, with_bytes: bool) -> EncodedDocuments:
        contents = [text.encode("utf-8") for text in texts]
        lengths = np.fromiter((len(content) + 1 for content in contents), dtype=np.int64, count=len(contents))
        is_text = np.ones(int(lengths.sum()), dtype=bool)
        is_text[np.cumsum(lengths) - 1] = False
        tokens = np.full(len(is_text), NUM_BYTES, dtype=np.uint32)
        tokens[is_text] = np.frombuffer(b"".join(contents), dtype=np.uint8)
        return EncodedDocuments(tokens, lengths, is_text.astype(np.uint32) if with_bytes else None)

    def decode(self, tokens: npt.NDArray[Any]) -> str:
        content: bytes = tokens[tokens != NUM_BYTES].astype(np.uint8).tobytes()
        return content.decode("utf-8", errors="replace")


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, stripped of all that would add, cut or interpret text."""

    def __init__(self, json: str) -> None:
        import tokenizers

        self.json = json
        self.digest = sha256_of_bytes(json.encode("utf-8"))
        self._tokenizer = tokenizers.Tokenizer.from_str(json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text that spells "<|endoftext|>" is text, not the special token.
        self._tokenizer.encode_special_tokens = True
        self._boundary_id = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def vocab_size(self) -> int:
        return self._boundary_id + 1

    def encode(self, texts: Sequence[str], *, with_bytes: bool) -> EncodedDocuments:
        # The fast call gives the same ids without the offsets that bytes are counted from.
        encode_batch = self._tokenizer.encode_batch if with_bytes else self._tokenizer.encode_batch_fast
        encodings = encode_batch(list(texts), add_special_tokens=False)
        lengths = np.fromiter((len(encoding) + 1 for encoding in encodings), dtype=np.int64, count=len(encodings))
        stops = np.cumsum(lengths) - 1
        tokens = np.full(int(lengths.sum()), self._boundary_id, dtype=np.uint32)
        text_bytes = np.zeros(len(tokens), dtype=np.uint32) if with_bytes else None
        for text, encoding, length, stop in zip(texts, encodings, lengths.tolist(), stops.tolist(), strict=True):
            tokens[stop - length + 1 : stop] = encoding.ids
            if text_bytes is not None:
                text_bytes[stop - length + 1 : stop] = _bytes_of_tokens(text, encoding.offsets)
        return EncodedDocuments(tokens, lengths, text_bytes)

    def decode(self, tokens: npt.NDArray[Any]) -> str:
        text: str = self._tokenizer.decode(tokens[tokens != self._boundary_id].tolist(), skip_special_tokens=False)
        return text


def _bytes_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Bytes of text up to the end of each token that no token before it reached; they sum to the text covered.

    By the ends alone, since byte-level tokens that share one character report overlapping spans, and text between
    tokens (dropped by a normaliser) belongs to the token that follows it.
    """
    if not offsets:
        return np.zeros(0, dtype=np.int64)
    ends = np.maximum.accumulate(np.array(offsets, dtype=np.int64)[:, 1])
    ends[-1] = len(text)
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
        ends = np.concatenate(([0], np.cumsum(sizes)))[ends]
    return np.diff(ends, prepend=0)


def train_bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """Byte-level BPE of at most `vocab_size` ids, the boundary included; deterministic in the texts and their order.

    GPT-2's pre-tokenization (Radford et al. 2019), no normalisation and no special tokens, so that decoding an encoded
    text gives it back. A small corpus may not have enough pairs to merge: the vocabulary is then smaller.
    """
    import tokenizers

    if vocab_size < MIN_BPE_VOCAB_SIZE:
        raise ValueError(
            f"bpe_vocab_size: a byte-level BPE needs {MIN_BPE_VOCAB_SIZE} ids or more, got {vocab_size}. "
            "Raise it or use the bytes tokenizer."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(tokenizer.to_str())


def load_hf_tokenizer(name: str) -> HuggingFaceTokenizer:
    """A finished tokenizer: path of a tokenizer.json, or `owner/name@revision` on the hub.

    Raises ValueError with a way out if it can be neither read nor reached.
    """
    import tokenizers

    path = Path(name).expanduser()
    if path.suffix == ".json" or path.exists():
        try:
            return HuggingFaceTokenizer(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"hf_tokenizer: {path} cannot be read: {error.strerror}") from error
        except Exception as error:  # The library raises bare Exception for a file of another form.
            raise ValueError(f"hf_tokenizer: {path} is not a tokenizer.json of `tokenizers`: {error}") from error
    identifier, _, revision = name.partition("@")
    try:
        return HuggingFaceTokenizer(
            tokenizers.Tokenizer.from_pretrained(identifier, revision=revision or "main").to_str()
        )
    except Exception as error:  # The library raises bare Exception whatever failed: network, name or content.
        raise ValueError(
            f"hf_tokenizer: {name!r} is no local file and could not be fetched from the Hugging Face hub: "
            f"{str(error).rstrip('.')}. Give the path of a tokenizer.json, or fetch it once where there is a network."
        ) from error


def load_tokenizer(folder: Path) -> DocumentTokenizer:
    """The tokenizer of a prepared corpus."""
    path = folder / TOKENIZER_FILE
    return HuggingFaceTokenizer(path.read_text(encoding="utf-8")) if path.exists() else BytesTokenizer()
