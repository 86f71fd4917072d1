"""From corpus settings to the corpus: what is passed on, and what is refused before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.corpus import CorpusError, PreparedCorpus
from orchestrator.corpora import check_corpus, corpus_spec, prepare_corpus
from orchestrator.plan import build_plan
from tests.studies import small_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(f"document {number} " * 60)
    return folder


def of_files(folder: Path, *overrides: str) -> tuple[str, ...]:
    return ("corpus.source=files", f"corpus.path={folder / 'texts'}", "corpus.validation_fraction=0.2", *overrides)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> PreparedCorpus:
    return prepare_corpus(small_study(*of_files(folder)), folder / "prepared")


def test_settings_that_mean_nothing_for_a_source_are_left_out() -> None:
    assert corpus_spec(small_study()).split is None
    assert corpus_spec(small_study()).bpe_vocab_size is None
    hub = corpus_spec(small_study("corpus.source=hub", "corpus.path=a/b", "corpus.revision=abc"))
    assert (hub.split, hub.revision) == ("train", "abc")
    assert corpus_spec(small_study("corpus.tokenizer=bpe", "corpus.bpe_vocab_size=300")).bpe_vocab_size == 300


def test_corpus_that_is_too_short_is_refused_with_the_largest_budget(folder: Path, corpus: PreparedCorpus) -> None:
    study = small_study(*of_files(folder))
    plan = build_plan(study, corpus.digest, corpus.vocab_size)
    with pytest.raises(CorpusError, match=r"run n\S+-d4M-s0 trains on .* but the corpus has .* budgets of at most"):
        check_corpus(study, plan, corpus)


def test_validation_set_that_is_too_small_is_refused_before_training(folder: Path, corpus: PreparedCorpus) -> None:
    short = ("design.tokens=[8192]", "recipe.warmup_steps=2")
    study = small_study(*of_files(folder, *short, "evaluation.tokens=1M"))
    with pytest.raises(CorpusError, match=r"1,?000,?000"):
        check_corpus(study, build_plan(study, corpus.digest, corpus.vocab_size), corpus)
    fits = small_study(*of_files(folder, *short, "evaluation.tokens=1024"))
    check_corpus(fits, build_plan(fits, corpus.digest, corpus.vocab_size), corpus)


def test_corpus_is_prepared_once(folder: Path, corpus: PreparedCorpus) -> None:
    copy = folder / "texts-moved"
    shutil.copytree(folder / "texts", copy)
    again = prepare_corpus(small_study(*of_files(folder)), folder / "prepared")
    assert again.folder == corpus.folder
    moved = prepare_corpus(small_study(*of_files(folder, f"corpus.path={copy}")), folder / "prepared")
    assert moved.digest == corpus.digest
