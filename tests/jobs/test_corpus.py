"""A corpus is prepared once, whole, split by content, and read as a pure function."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.corpus import CorpusError, CorpusSpec, PreparedCorpus, open_corpus, prepare
from jobs.tokenization import load_tokenizer


def document(number: int, words: int = 40) -> str:
    """Text that no other number gives."""
    return f"document {number}: " + " ".join(f"w{(number * 31 + word) % 97}é" for word in range(words))


def write_rows(path: Path, texts: list[str | None], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "id": row}) + "\n" for row, text in enumerate(texts)))
    return path


def files_spec(path: Path, **changes: Any) -> CorpusSpec:
    return CorpusSpec(**{"source": "files", "path": str(path), "validation_fraction": 0.2, **changes})


def documents_of(corpus: PreparedCorpus, part: str) -> list[str]:
    tokens = np.fromfile(corpus.folder / f"{part}.bin", dtype=corpus.manifest.token_dtype)
    ends = np.flatnonzero(tokens == corpus.boundary_id)
    assert ends[-1] == len(tokens) - 1
    tokenizer = load_tokenizer(corpus.folder)
    return [tokenizer.decode(piece) for piece in np.split(tokens, ends + 1)[:-1]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    folder = tmp_path_factory.mktemp("small")
    texts = [document(number) for number in range(100)]
    return prepare(files_spec(write_rows(folder / "rows.jsonl", texts)), folder / "corpora")


def test_every_document_is_on_one_side_exactly_once(small: PreparedCorpus) -> None:
    train, validation = documents_of(small, "train"), documents_of(small, "validation")
    assert sorted(train + validation) == sorted(document(number) for number in range(100))
    assert 5 <= len(validation) <= 40
    assert small.validation_documents == len(validation)
    assert small.manifest.train.text_bytes == sum(len(text.encode()) for text in train)


def test_duplicates_and_empty_documents_are_dropped_before_the_split(tmp_path: Path) -> None:
    texts: list[str | None] = [document(number % 30) for number in range(90)]
    corpus = prepare(files_spec(write_rows(tmp_path / "rows.jsonl", [*texts, "", None])), tmp_path / "corpora")
    kept = documents_of(corpus, "train") + documents_of(corpus, "validation")
    assert sorted(kept) == sorted(document(number) for number in range(30))
    assert (corpus.manifest.dropped_duplicates, corpus.manifest.dropped_empty) == (60, 2)


def test_a_document_keeps_its_side_whatever_stands_around_it(small: PreparedCorpus, tmp_path: Path) -> None:
    texts = [document(number) for number in range(150)][::-1]
    other = prepare(files_spec(write_rows(tmp_path / "rows.jsonl", texts)), tmp_path / "corpora")
    assert set(documents_of(small, "train")) < set(documents_of(other, "train"))
    assert set(documents_of(small, "validation")) < set(documents_of(other, "validation"))


def test_a_larger_fraction_appends_validation_documents(small: PreparedCorpus, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(100)])
    larger = prepare(files_spec(path, validation_fraction=0.5), tmp_path / "corpora")
    first = documents_of(small, "validation")
    assert documents_of(larger, "validation")[: len(first)] == first


def test_another_split_seed_holds_out_other_documents(small: PreparedCorpus, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(100)])
    other = prepare(files_spec(path, split_seed=1), tmp_path / "corpora")
    assert set(documents_of(other, "validation")) != set(documents_of(small, "validation"))
    assert other.digest != small.digest


def test_the_same_text_by_another_road_is_the_same_corpus(small: PreparedCorpus, tmp_path: Path) -> None:
    import pandas

    path = tmp_path / "elsewhere" / "rows.parquet"
    path.parent.mkdir()
    pandas.DataFrame({"content": [document(number) for number in range(100)]}).to_parquet(path)
    other = prepare(files_spec(path, text_column="content"), tmp_path / "corpora")
    assert other.digest == small.digest
    assert other.folder != small.folder


def test_a_folder_of_text_files_gives_a_document_a_file(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "texts" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / str(number % 3) / f"{number}.txt").write_text(document(number) + "\n\nmore\n")
    (tmp_path / "texts" / "notes.md").write_text("not read")
    write_rows(tmp_path / "texts" / "rows.jsonl", ["a row"])
    corpora = tmp_path / "corpora"
    by_folder = prepare(files_spec(tmp_path / "texts"), corpora)
    by_glob = prepare(files_spec(tmp_path / "texts" / "**" / "*.txt"), corpora)
    expected = sorted(document(number) + "\n\nmore\n" for number in range(20))
    assert sorted(documents_of(by_glob, "train") + documents_of(by_glob, "validation")) == expected
    assert sorted(documents_of(by_folder, "train") + documents_of(by_folder, "validation")) == ["a row", *expected]


def test_a_local_folder_in_the_layout_of_the_hub_is_read_by_configuration_and_split(tmp_path: Path) -> None:
    repository = tmp_path / "stories"
    write_rows(repository / "small" / "train.jsonl", [document(number) for number in range(30)])
    write_rows(repository / "small" / "test.jsonl", ["never read"])
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: small/train.jsonl}\n"
        "  - {split: test, path: small/test.jsonl}\n---\n"
    )
    spec = CorpusSpec(source="hub", path=str(repository), name="small", split="train", validation_fraction=0.2)
    corpus = prepare(spec, tmp_path / "corpora")
    kept = documents_of(corpus, "train") + documents_of(corpus, "validation")
    assert sorted(kept) == sorted(document(number) for number in range(30))


def test_a_second_preparation_opens_the_first_without_importing_datasets(small: PreparedCorpus, tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from jobs.corpus import CorpusSpec, prepare\n"
        "corpus = prepare(CorpusSpec(**json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
        "print(corpus.digest, 'datasets' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(small.manifest.spec), str(small.folder.parent)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == [small.digest, "False", "False"]


def test_changed_text_under_the_same_name_is_a_new_corpus(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(30)])
    before = prepare(files_spec(path), tmp_path / "corpora")
    write_rows(path, [document(number) for number in range(1, 31)])
    after = prepare(files_spec(path), tmp_path / "corpora")
    assert after.digest != before.digest
    assert open_corpus(before.folder, verify=True).digest == before.digest


PREPARE = (
    "import sys, json; from pathlib import Path; from jobs.corpus import CorpusSpec, prepare\n"
    "print(prepare(CorpusSpec(**json.loads(sys.argv[1])), Path(sys.argv[2])).digest)"
)


def test_two_processes_that_prepare_at_once_make_one_whole_corpus(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(60)])
    spec = files_spec(path, tokenizer="bpe", bpe_vocab_size=280)
    command = [sys.executable, "-c", PREPARE, spec.model_dump_json()]
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / "corpora")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in (1, 2)
    ]
    digests = {process.communicate()[0].strip() for process in processes}
    corpus = prepare(spec, tmp_path / "corpora")
    assert digests == {corpus.digest}
    open_corpus(corpus.folder, verify=True)
    assert [name.name for name in (tmp_path / "corpora").iterdir() if not name.name.endswith(".lock")] == [
        corpus.folder.name
    ]


def test_bpe_corpora_of_two_preparations_are_equal(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(60)])
    spec = files_spec(path, tokenizer="bpe", bpe_vocab_size=280)
    first, second = prepare(spec, tmp_path / "one"), prepare(spec, tmp_path / "two")
    assert first.digest == second.digest
    assert first.vocab_size == 280
    kept = documents_of(first, "train") + documents_of(first, "validation")
    assert sorted(kept) == sorted(document(number) for number in range(60))
    assert first.bytes_per_token > 1.5


def test_what_a_killed_preparation_left_is_cleared(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(30)])
    first = prepare(files_spec(path), tmp_path / "corpora")
    left = first.folder.with_name(f".{first.folder.name}.killed.tmp")
    first.folder.rename(left)
    again = prepare(files_spec(path), tmp_path / "corpora")
    assert again.digest == first.digest
    assert not left.exists()


def copy_of(corpus: PreparedCorpus, folder: Path) -> Path:
    shutil.copytree(corpus.folder, folder)
    return folder


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "validation_documents.npy", "validation_bytes.npy"])
def test_a_truncated_file_is_an_error_with_both_sizes(small: PreparedCorpus, tmp_path: Path, name: str) -> None:
    folder = copy_of(small, tmp_path / "copy")
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 2)
    with pytest.raises(CorpusError, match=rf"{name}: expected {size:,} bytes, found {size - 2:,}\. Delete"):
        open_corpus(folder)


def test_a_missing_file_is_an_error(small: PreparedCorpus, tmp_path: Path) -> None:
    folder = copy_of(small, tmp_path / "copy")
    (folder / "train.bin").unlink()
    with pytest.raises(CorpusError, match=r"train.bin: expected .* bytes, found no file"):
        open_corpus(folder)


def test_one_flipped_bit_is_found_when_verified(small: PreparedCorpus, tmp_path: Path) -> None:
    folder = copy_of(small, tmp_path / "copy")
    content = bytearray((folder / "train.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "train.bin").write_bytes(content)
    expected = small.manifest.files["train.bin"].sha256
    with pytest.raises(CorpusError, match=rf"train.bin: expected sha256 {expected}, found "):
        open_corpus(folder, verify=True)


def test_a_manifest_that_is_missing_broken_or_of_another_format_is_an_error(
    small: PreparedCorpus, tmp_path: Path
) -> None:
    folder = copy_of(small, tmp_path / "copy")
    manifest = folder / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "format_version": 99}))
    with pytest.raises(CorpusError, match="expected format 1, found 99"):
        open_corpus(folder)
    manifest.write_text("{")
    with pytest.raises(CorpusError, match="not a manifest"):
        open_corpus(folder)
    manifest.unlink()
    with pytest.raises(CorpusError, match=r"manifest.json is missing. Delete"):
        open_corpus(folder)
    with pytest.raises(CorpusError, match="Prepare it first"):
        open_corpus(tmp_path / "nowhere")


def test_a_batch_is_consecutive_text_shifted_by_one(small: PreparedCorpus) -> None:
    tokens = np.fromfile(small.folder / "train.bin", dtype=small.manifest.token_dtype)
    batch = small.batch(data_seed=0, step=3, batch_sequences=4, sequence_length=32)
    assert batch.shape == (4, 33)
    assert batch.dtype == np.int64
    windows = np.lib.stride_tricks.sliding_window_view(tokens, 33)[::32]
    for row in batch:
        assert (windows == row).all(axis=1).any()


def test_an_epoch_predicts_every_token_once(small: PreparedCorpus) -> None:
    length = 16
    rows = small.num_windows(length)
    epoch = small.batch(data_seed=5, step=0, batch_sequences=rows, sequence_length=length)
    tokens = np.fromfile(small.folder / "train.bin", dtype=small.manifest.token_dtype)[1 : rows * length + 1]
    assert np.array_equal(np.sort(epoch[:, 1:].ravel()), np.sort(tokens))
    assert small.unique_tokens(length) == rows * length
    assert small.epochs(2 * small.train_tokens) == 2.0


def test_rows_of_ranks_make_up_the_batch_after_opening_anew(small: PreparedCorpus) -> None:
    whole = small.batch(0, 7, 8, 16)
    ranks = [open_corpus(small.folder).batch(0, 7, 8, 16, slice(2 * rank, 2 * rank + 2)) for rank in range(4)]
    assert np.array_equal(np.concatenate(ranks), whole)
    assert not np.array_equal(small.batch(1, 7, 8, 16), whole)


def test_a_corpus_shorter_than_one_window_is_refused(small: PreparedCorpus) -> None:
    with pytest.raises(CorpusError, match=r"training tokens hold no window of 1000000 \+ 1 tokens"):
        small.batch(0, 0, 8, 1_000_000)


def test_the_evaluation_set_is_held_out_text_in_bytes_and_tokens(small: PreparedCorpus) -> None:
    evaluation = small.evaluation(tokens=small.validation_tokens, sequence_length=32)
    assert evaluation.num_documents == small.validation_documents
    assert evaluation.bytes_total == small.manifest.validation.text_bytes
    assert evaluation.digest == open_corpus(small.folder).evaluation(small.validation_tokens, 32).digest
    targets = evaluation.windows[:, 1:][evaluation.document_ids == 0]
    assert load_tokenizer(small.folder).decode(targets) == documents_of(small, "validation")[0]


def test_an_evaluation_larger_than_the_validation_part_says_what_to_change(small: PreparedCorpus) -> None:
    with pytest.raises(CorpusError, match=r"asks for 1,000,000 tokens, .* raise corpus.validation_fraction"):
        small.evaluation(1_000_000, 32)


def test_a_wide_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    import tokenizers

    words = {f"w{number}": number for number in range(70_000)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    texts = [f"w{69_000 + number} w1 w{number}" for number in range(60)]
    spec = files_spec(
        write_rows(tmp_path / "rows.jsonl", texts), tokenizer="hf", hf_tokenizer=str(tmp_path / "tokenizer.json")
    )
    corpus = prepare(spec, tmp_path / "corpora")
    assert (corpus.vocab_size, corpus.boundary_id, corpus.manifest.token_dtype) == (70_001, 70_000, "<u4")
    kept = documents_of(corpus, "train") + documents_of(corpus, "validation")
    assert sorted(kept) == sorted(texts)
    assert corpus.evaluation(corpus.validation_tokens, 8).bytes_total == corpus.manifest.validation.text_bytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "files"}, "source files needs path"),
        ({"source": "python-stdlib", "path": "x"}, "path means nothing for source python-stdlib"),
        ({"source": "files", "path": "x", "revision": "a"}, "revision means nothing for source files"),
        ({"source": "python-stdlib", "text_column": "x"}, "text_column means nothing"),
        ({"source": "python-stdlib", "tokenizer": "bpe"}, "tokenizer bpe needs bpe_vocab_size"),
        ({"source": "python-stdlib", "bpe_vocab_size": 300}, "bpe_vocab_size means nothing for tokenizer bytes"),
        ({"source": "python-stdlib", "tokenizer": "hf"}, "tokenizer hf needs hf_tokenizer"),
        ({"source": "python-stdlib", "tokenizer": "bpe", "bpe_vocab_size": 257}, "greater than or equal to 258"),
        ({"source": "python-stdlib", "validation_fraction": 0.0}, "greater than 0"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusSpec(**fields)


def test_sources_that_cannot_be_read_are_told_with_a_way_out(tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    with pytest.raises(ValueError, match=r"nowhere' is neither a file, nor a folder or glob with .txt, .jsonl"):
        prepare(files_spec(tmp_path / "nowhere"), corpora)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"image.png is not of a kind that can be read \(.txt, .jsonl, .parquet\)"):
        prepare(files_spec(tmp_path / "image.png"), corpora)
    rows = write_rows(tmp_path / "rows.jsonl", ["text"], column="content")
    with pytest.raises(CorpusError, match="has no column 'text'; it has content, id"):
        prepare(files_spec(rows), corpora)
    with pytest.raises(CorpusError, match=r"'id' of .* holds int64, not text"):
        prepare(files_spec(rows, text_column="id"), corpora)
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin.txt' cannot be read: .*utf-8"):
        prepare(files_spec(tmp_path / "latin.txt"), corpora)
    (tmp_path / "torn.jsonl").write_text('{"text": "whole"}\n{"text": "to')
    with pytest.raises(CorpusError, match=r"torn.jsonl' cannot be read"):
        prepare(files_spec(tmp_path / "torn.jsonl"), corpora)
    with pytest.raises(CorpusError, match=r"1 distinct documents .* both need one"):
        prepare(files_spec(write_rows(tmp_path / "one.jsonl", ["text", "text"])), corpora)
    assert [path for path in corpora.iterdir() if path.suffix != ".lock"] == []


def test_a_place_that_cannot_be_written_says_which_variable_to_set(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [document(number) for number in range(30)])
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"SCALING_HOME"):
        prepare(files_spec(path), tmp_path / "file" / "corpora")


@pytest.mark.parametrize("revision", [None, "0123456789abcdef0123456789abcdef01234567"])
def test_a_hub_out_of_reach_is_told_with_a_way_out(tmp_path: Path, revision: str | None) -> None:
    spec = CorpusSpec(source="hub", path="nobody/nothing", revision=revision)
    command = [sys.executable, "-c", PREPARE, spec.model_dump_json(), str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    failed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert failed.returncode == 1
    assert "data set 'nobody/nothing' could not be had from the Hugging Face hub" in failed.stderr
    assert "Without a network" in failed.stderr


def test_the_standard_library_is_a_corpus_of_its_own(tmp_path: Path) -> None:
    spec = CorpusSpec(source="python-stdlib")
    start = time.perf_counter()
    corpus = prepare(spec, tmp_path)
    assert time.perf_counter() - start < 60
    # 31 MB with the library's own tests; some distributions leave those out.
    assert corpus.train_tokens > 8_000_000
    assert corpus.vocab_size == 257
    evaluation = corpus.evaluation(256_000, 128)
    assert evaluation.num_tokens == 256_000
    assert evaluation.num_documents >= 30
    text = load_tokenizer(corpus.folder).decode(corpus.batch(0, 0, 64, 128)[:, :-1])
    assert "self" in text
    assert corpus.describe()["source"]["kind"] == "python-stdlib"
