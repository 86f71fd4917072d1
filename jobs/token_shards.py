"""A prepared corpus on disk: flat memory-mapped token shards under a manifest that can tell when they are damaged.

    train.bin                 token ids of all training documents one after another, each ended by the boundary id
    validation.bin            the same for validation documents, in an order that a hash of their content gives
    validation_documents.npy  int64 [documents + 1]: where each validation document starts, and where the last ends
    validation_bytes.npy      uint32 [tokens]: bytes of text that each validation token stands for
    tokenizer.json            where the tokenizer is not the bytes themselves
    manifest.json             sizes, sha256, counts, provenance; written last

Reading needs numpy alone. Nothing here writes shards: `jobs.corpus` does, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from jobs.corpus_spec import CorpusError
from jobs.evaluation_windows import Evaluation, cut_evaluation
from jobs.spec import Frozen
from jobs.storage import sha256_of_file
from jobs.token_order import window_ids

MANIFEST_FILE = "manifest.json"
TRAIN_FILE = "train.bin"
VALIDATION_FILE = "validation.bin"
VALIDATION_DOCUMENTS_FILE = "validation_documents.npy"
VALIDATION_BYTES_FILE = "validation_bytes.npy"

FORMAT_VERSION = 1


class FileFacts(Frozen):
    """What a file of the corpus must be."""

    size_bytes: int
    sha256: str


class PartFacts(Frozen):
    """Extent of the training or the validation part; tokens count the boundary that ends each document."""

    documents: int
    tokens: int
    text_bytes: int


class Manifest(Frozen):
    """Everything about a prepared corpus but its tokens.

    `digest` names what a run can see of it: tokens, tokenizer and split (see `jobs.corpus.corpus_digest`). Provenance
    (`spec`, `source`, `made_with`) is for people and does not enter: the same text by another road is the same corpus.
    """

    format_version: int
    digest: str
    token_dtype: str
    vocab_size: int
    boundary_id: int
    tokenizer: dict[str, Any]
    train: PartFacts
    validation: PartFacts
    dropped_duplicates: int
    dropped_empty: int
    spec: dict[str, Any]
    source: dict[str, Any]
    made_with: dict[str, str]
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus that is ready to be read; made by `open_corpus` or `jobs.corpus.prepare`."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def vocab_size(self) -> int:
        """Ids in all, the boundary (the last one) included."""
        return self.manifest.vocab_size

    @property
    def boundary_id(self) -> int:
        return self.manifest.boundary_id

    @property
    def train_tokens(self) -> int:
        return self.manifest.train.tokens

    @property
    def validation_tokens(self) -> int:
        return self.manifest.validation.tokens

    @property
    def validation_documents(self) -> int:
        return self.manifest.validation.documents

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per training token, boundaries counted as tokens: bits per byte = nats / ln 2 / this."""
        return self.manifest.train.text_bytes / self.manifest.train.tokens

    def num_windows(self, sequence_length: int) -> int:
        """Training windows of sequence_length targets. Raises CorpusError if there is not one."""
        num_windows = (self.train_tokens - 1) // sequence_length
        if num_windows < 1:
            raise CorpusError(
                f"corpus {self.folder.name}: {self.train_tokens:,} training tokens hold no window of "
                f"{sequence_length} + 1 tokens. Use a larger corpus or a smaller sequence_length."
            )
        return num_windows

    def unique_tokens(self, sequence_length: int) -> int:
        """Training tokens that are predicted in one epoch; a larger budget repeats text."""
        return self.num_windows(sequence_length) * sequence_length

    def epochs(self, total_tokens: int) -> float:
        """Times that a budget goes through the training part."""
        return total_tokens / self.train_tokens

    def batch(
        self, data_seed: int, step: int, batch_sequences: int, sequence_length: int, rows: slice = slice(None)
    ) -> npt.NDArray[np.int64]:
        """Rows `rows` of the global batch of `step`: int64 [rows, T + 1]; inputs are [:, :-1], targets [:, 1:].

        A pure function of its arguments: a rank reads its slice of rows, and all slices make up the same batch.
        Raises CorpusError for a corpus shorter than one window.
        """
        windows = window_ids(data_seed, step, batch_sequences, self.num_windows(sequence_length), rows)
        offsets = np.arange(sequence_length + 1, dtype=np.int64)
        batch: npt.NDArray[np.int64] = self._train[windows[:, None] * sequence_length + offsets].astype(np.int64)
        return batch

    def evaluation(self, tokens: int, sequence_length: int) -> Evaluation:
        """The fixed evaluation set of `tokens` target tokens (see `jobs.evaluation_windows`).

        Raises CorpusError if the validation part is smaller.
        """
        if tokens > self.validation_tokens:
            share = self.validation_tokens / (self.validation_tokens + self.train_tokens)
            raise CorpusError(
                f"corpus {self.folder.name}: evaluation asks for {tokens:,} tokens, the validation part has "
                f"{self.validation_tokens:,} ({share:.1%} of the corpus). Lower evaluation.tokens, raise "
                "corpus.validation_fraction, or use a larger corpus."
            )
        return cut_evaluation(
            tokens=self._validation,
            starts=np.load(self.folder / VALIDATION_DOCUMENTS_FILE),
            text_bytes=np.load(self.folder / VALIDATION_BYTES_FILE, mmap_mode="r"),
            boundary_id=self.boundary_id,
            target_tokens=tokens,
            sequence_length=sequence_length,
        )

    def describe(self) -> dict[str, Any]:
        """Facts that a person wants to see, as plain values."""
        return {
            "digest": self.digest,
            "folder": str(self.folder),
            "source": self.manifest.source,
            "tokenizer": self.manifest.tokenizer,
            "vocab_size": self.vocab_size,
            "train": self.manifest.train.model_dump(),
            "validation": self.manifest.validation.model_dump(),
            "bytes_per_token": self.bytes_per_token,
            "dropped_duplicates": self.manifest.dropped_duplicates,
            "dropped_empty": self.manifest.dropped_empty,
        }

    @cached_property
    def _train(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        return np.memmap(self.folder / TRAIN_FILE, dtype=self.manifest.token_dtype, mode="r")

    @cached_property
    def _validation(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        return np.memmap(self.folder / VALIDATION_FILE, dtype=self.manifest.token_dtype, mode="r")


def open_corpus(folder: Path, *, verify: bool = False) -> PreparedCorpus:
    """The corpus in a folder; sizes are always compared with the manifest, contents when `verify` is set.

    Raises CorpusError naming the file, what was expected and what was found.
    """
    manifest = _read_manifest(folder / MANIFEST_FILE)
    for name, facts in manifest.files.items():
        _check_file(folder / name, facts, verify=verify)
    return PreparedCorpus(folder, manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        way_out = _again(path) if path.parent.exists() else "Prepare it first."
        raise CorpusError(f"{path.parent} holds no prepared corpus: {path.name} is missing. {way_out}") from error
    except ValidationError as error:
        raise CorpusError(f"{path} is not a manifest that this version reads: {error}. {_again(path)}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise CorpusError(f"{path}: expected format {FORMAT_VERSION}, found {manifest.format_version}. {_again(path)}")
    return manifest


def _check_file(path: Path, facts: FileFacts, *, verify: bool) -> None:
    found_bytes = path.stat().st_size if path.exists() else None
    if found_bytes is None:
        raise CorpusError(f"{path}: expected {facts.size_bytes:,} bytes, found no file. {_again(path)}")
    if found_bytes != facts.size_bytes:
        raise CorpusError(f"{path}: expected {facts.size_bytes:,} bytes, found {found_bytes:,}. {_again(path)}")
    if verify and (found := sha256_of_file(path)) != facts.sha256:
        raise CorpusError(f"{path}: expected sha256 {facts.sha256}, found {found}. {_again(path)}")


def _again(path: Path) -> str:
    return f"Delete {path.parent} and prepare the corpus again."
