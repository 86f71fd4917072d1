"""Prepares a corpus once, by Hugging Face `datasets`: ingest, deduplicate, split, tokenize, pack into token shards.

    source  python-stdlib  source text of the running interpreter: real text on every machine, no network
            files          .txt (a document a file), .jsonl, .parquet (a document a row)
            hub            a data set of the Hugging Face hub at a pinned revision, or a folder in its layout

Exact duplicates are dropped before the split, and the split looks at the content of a document alone, never at its
position: training and validation are disjoint, and a document keeps its side when others come or go.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.corpus_sources import LOADERS, LocatedSource, locate, unreachable
from jobs.corpus_spec import CorpusError, CorpusSpec
from jobs.document_split import DocumentSplit, split_documents
from jobs.evaluation_windows import Evaluation
from jobs.identity import digest
from jobs.storage import UNFINISHED_SUFFIX, commit, sha256_of_file, sync_file, sync_folder, write_atomically
from jobs.token_shards import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    TRAIN_FILE,
    VALIDATION_BYTES_FILE,
    VALIDATION_DOCUMENTS_FILE,
    VALIDATION_FILE,
    FileFacts,
    Manifest,
    PartFacts,
    PreparedCorpus,
    open_corpus,
)
from jobs.tokenization import TOKENIZER_FILE, BytesTokenizer, DocumentTokenizer, load_hf_tokenizer, train_bpe

__all__ = ["CorpusError", "CorpusSpec", "Evaluation", "PreparedCorpus", "open_corpus", "prepare"]

logger = logging.getLogger(__name__)

# Documents handed to a tokenizer at once, and rows read at once.
BATCH_DOCUMENTS = 500

# BPE merges are learnt from at most so much text, drawn by content hash. Guess that they have settled by then; to test
# it, compare bytes per token with twice as much.
BPE_TRAINING_BYTES = 64 << 20


def prepare(spec: CorpusSpec, root: Path) -> PreparedCorpus:
    """The corpus of `spec` in a folder below `root`: opened if it stands there, else made, once and whole.

    A local source is looked up by the names, sizes and times of its files, so that changed text is a new corpus.
    Processes that ask at once wait for the first. Raises CorpusError, or ValueError for what a user gave.
    """
    located = locate(spec)
    folder = root / located.folder_name
    if folder.exists():
        return open_corpus(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_preparer(folder):
            if not folder.exists():
                _make(located, folder)
    except OSError as error:
        raise CorpusError(
            f"{root}: a prepared corpus cannot be written there ({error}). It needs room, permission and file locks "
            "(`datasets` too): set SCALING_HOME to a folder that has them."
        ) from error
    return open_corpus(folder)


@contextmanager
def _only_preparer(folder: Path) -> Iterator[None]:
    """Wait until no other process makes `folder`; the lock of one that died is free at once."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("corpus %s: another process is preparing it; waiting", folder.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(located: LocatedSource, folder: Path) -> None:
    """Write the corpus beside `folder` and make it visible in one rename."""
    logger.info("corpus %s: preparing", folder.name)
    for leftover in folder.parent.glob(f".{folder.name}.*{UNFINISHED_SUFFIX}"):
        # Of a preparation that was killed: the lock says that nobody is writing there.
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED_SUFFIX, dir=folder.parent))
    try:
        built = work / "corpus"
        built.mkdir()
        _write_corpus(located, built, cache=work / "cache")
        commit(built, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_corpus(located: LocatedSource, built: Path, cache: Path) -> None:
    documents = _load_documents(located, cache)
    batches = (batch["text"] for batch in documents.iter(batch_size=BATCH_DOCUMENTS))
    sides = split_documents(batches, located.spec.validation_fraction, located.spec.split_seed)
    tokenizer = _tokenizer(located.spec, documents, sides)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    shards = {}
    for name, rows in ((TRAIN_FILE, sides.train), (VALIDATION_FILE, sides.validation)):
        tokenized = _tokenized(documents.select(rows), tokenizer, cache / name, with_bytes=name == VALIDATION_FILE)
        shards[name] = _write_shard(tokenized, dtype, built / name)
    np.save(built / VALIDATION_DOCUMENTS_FILE, np.concatenate(([0], np.cumsum(shards[VALIDATION_FILE].lengths))))
    np.save(built / VALIDATION_BYTES_FILE, shards[VALIDATION_FILE].text_bytes)
    if tokenizer.json is not None:
        (built / TOKENIZER_FILE).write_text(tokenizer.json, encoding="utf-8")
    files = {}
    for path in sorted(built.iterdir()):
        sync_file(path)
        files[path.name] = FileFacts(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=corpus_digest(files, tokenizer, dtype),
        token_dtype=dtype,
        vocab_size=tokenizer.vocab_size,
        boundary_id=tokenizer.vocab_size - 1,
        tokenizer={"kind": located.spec.tokenizer, "digest": tokenizer.digest},
        train=_facts(shards[TRAIN_FILE], sides.text_bytes[sides.train]),
        validation=_facts(shards[VALIDATION_FILE], sides.text_bytes[sides.validation]),
        dropped_duplicates=sides.dropped_duplicates,
        dropped_empty=sides.dropped_empty,
        spec=located.spec.model_dump(),
        source=located.description,
        made_with={name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "numpy")},
        files=files,
    )
    write_atomically(built / MANIFEST_FILE, manifest.model_dump_json(indent=2))
    sync_folder(built)


def corpus_digest(files: dict[str, FileFacts], tokenizer: DocumentTokenizer, dtype: str) -> str:
    """Identity of what runs see: tokens, tokenizer and split, wherever the text came from."""
    return digest(
        {
            "format_version": FORMAT_VERSION,
            "token_dtype": dtype,
            "tokenizer": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "shards": {name: facts.sha256 for name, facts in files.items() if name != TOKENIZER_FILE},
        }
    )


def _load_documents(located: LocatedSource, cache: Path) -> Any:
    """A `datasets.Dataset` with the one column "text"."""
    import datasets

    spec = located.spec
    datasets.disable_progress_bars()
    try:
        if spec.source == "python-stdlib":
            parts = [_load_standard_library(located, cache)]
        elif spec.source == "files":
            parts = _load_files(located.files, spec, cache)
        else:
            parts = [_load_hub(located, cache)]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, CorpusError):
            raise
        # The loaders wrap what happened in "An error occurred while generating the dataset".
        raise CorpusError(
            f"corpus.path: {spec.path or spec.source!r} cannot be read: {error.__cause__ or error}"
        ) from error
    texts = [_text_alone(part, spec) for part in parts]
    return texts[0] if len(texts) == 1 else datasets.concatenate_datasets(texts)


def _load_standard_library(located: LocatedSource, cache: Path) -> Any:
    import datasets

    return datasets.Dataset.from_generator(
        _source_texts,
        features=datasets.Features({"text": datasets.Value("string")}),
        gen_kwargs={"paths": [str(path) for path in located.files]},
        cache_dir=str(cache),
        # The cache is a folder of this preparation alone, so that no fingerprint can find stale text in it.
        fingerprint=digest(located.states),
    )


def _source_texts(paths: Sequence[str]) -> Iterator[dict[str, str]]:
    """Files that are UTF-8, in order; the standard library holds some on purpose that are not."""
    for path in paths:
        try:
            yield {"text": Path(path).read_bytes().decode("utf-8")}
        except UnicodeDecodeError:
            continue


def _load_files(files: Sequence[Path], spec: CorpusSpec, cache: Path) -> list[Any]:
    import datasets

    parts = []
    for loader in dict.fromkeys(LOADERS.values()):
        paths = [str(path) for path in files if LOADERS[path.suffix] == loader]
        if not paths:
            continue
        whole_files = {"sample_by": "document"} if loader == "text" else {}
        part = datasets.load_dataset(loader, data_files=paths, split="train", cache_dir=str(cache), **whole_files)
        parts.append(part.rename_columns({"text": spec.text_column}) if loader == "text" else part)
    return parts


def _load_hub(located: LocatedSource, cache: Path) -> Any:
    import datasets

    spec = located.spec
    split = spec.split or "train"
    if located.revision is None:
        # A local folder may change under the same name, so its cache is not kept; that of a commit is.
        return datasets.load_dataset(spec.path, spec.name, split=split, cache_dir=str(cache))
    try:
        return datasets.load_dataset(spec.path, spec.name, split=split, revision=located.revision)
    except Exception as error:  # As in `locate`: errors of whatever HTTP client the release has.
        raise unreachable(spec, error) from error


def _text_alone(documents: Any, spec: CorpusSpec) -> Any:
    import datasets

    if spec.text_column not in documents.column_names:
        raise CorpusError(
            f"corpus.text_column: {spec.path!r} has no column {spec.text_column!r}; it has "
            f"{', '.join(sorted(documents.column_names))}"
        )
    text_type = getattr(documents.features[spec.text_column], "dtype", "a structure")
    if text_type not in ("string", "large_string"):
        raise CorpusError(f"corpus.text_column: {spec.text_column!r} of {spec.path!r} holds {text_type}, not text")
    alone = documents.select_columns([spec.text_column]).rename_columns({spec.text_column: "text"})
    return alone.cast(datasets.Features({"text": datasets.Value("large_string")}))


def _tokenizer(spec: CorpusSpec, documents: Any, sides: DocumentSplit) -> DocumentTokenizer:
    if spec.tokenizer == "bytes":
        return BytesTokenizer()
    if spec.tokenizer == "hf":
        assert spec.hf_tokenizer is not None
        return load_hf_tokenizer(spec.hf_tokenizer)
    assert spec.bpe_vocab_size is not None
    drawn = sides.train[np.argsort(sides.draws[sides.train], kind="stable")]
    tokenizer = train_bpe(_first_texts(documents.select(drawn), BPE_TRAINING_BYTES), spec.bpe_vocab_size)
    if tokenizer.vocab_size < spec.bpe_vocab_size:
        logger.warning(
            "corpus: the text has pairs for %d ids only, bpe_vocab_size asks for %d",
            tokenizer.vocab_size,
            spec.bpe_vocab_size,
        )
    return tokenizer


def _first_texts(documents: Any, max_bytes: int) -> Iterator[str]:
    """Texts of the first documents, the one that passes `max_bytes` included."""
    seen_bytes = 0
    for batch in documents.iter(batch_size=BATCH_DOCUMENTS):
        for text in batch["text"]:
            yield text
            seen_bytes += len(text.encode("utf-8"))
            if seen_bytes >= max_bytes:
                return


@dataclass(frozen=True)
class _Shard:
    """What was written of one side."""

    lengths: npt.NDArray[np.int64]
    """[documents], in tokens."""
    text_bytes: npt.NDArray[np.uint32]
    """[tokens]; empty where bytes were not counted token by token."""


def _facts(shard: _Shard, text_bytes: npt.NDArray[np.int64]) -> PartFacts:
    return PartFacts(documents=len(shard.lengths), tokens=int(shard.lengths.sum()), text_bytes=int(text_bytes.sum()))


def _tokenized(documents: Any, tokenizer: DocumentTokenizer, cache_file: Path, *, with_bytes: bool) -> Any:
    """Documents as a `datasets.Dataset` of token lists."""
    import datasets

    cache_file.parent.mkdir(parents=True, exist_ok=True)
    ids = datasets.LargeList(datasets.Value("uint32"))
    return documents.map(
        _tokenize_batch,
        batched=True,
        batch_size=BATCH_DOCUMENTS,
        fn_kwargs={"tokenizer": tokenizer, "with_bytes": with_bytes},
        remove_columns=["text"],
        features=datasets.Features({"tokens": ids, "bytes": ids} if with_bytes else {"tokens": ids}),
        cache_file_name=str(cache_file),
        # Stated, since hashing a tokenizer by its pickle is neither stable nor cheap.
        new_fingerprint=digest([documents._fingerprint, tokenizer.digest, with_bytes]),
    )


def _tokenize_batch(batch: dict[str, list[str]], tokenizer: DocumentTokenizer, with_bytes: bool) -> Any:
    import pyarrow

    encoded = tokenizer.encode(batch["text"], with_bytes=with_bytes)
    offsets = pyarrow.array(np.concatenate(([0], np.cumsum(encoded.lengths))), type=pyarrow.int64())
    columns = {"tokens": encoded.tokens}
    if encoded.text_bytes is not None:
        columns["bytes"] = encoded.text_bytes
    return pyarrow.table(
        {name: pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(values)) for name, values in columns.items()}
    )


def _write_shard(tokenized: Any, dtype: str, path: Path) -> _Shard:
    """Append token lists to a flat file, in their order."""
    lengths = [np.zeros(0, dtype=np.int64)]
    text_bytes = [np.zeros(0, dtype=np.uint32)]
    with path.open("wb") as file:
        for batch in tokenized.with_format("arrow").iter(batch_size=BATCH_DOCUMENTS):
            tokens = batch["tokens"].combine_chunks()
            file.write(tokens.flatten().to_numpy().astype(dtype).tobytes())
            lengths.append(np.diff(tokens.offsets.to_numpy()))
            if "bytes" in batch.column_names:
                text_bytes.append(batch["bytes"].combine_chunks().flatten().to_numpy())
    return _Shard(np.concatenate(lengths), np.concatenate(text_bytes))
