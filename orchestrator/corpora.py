"""From a study's corpus settings to the corpus that its runs train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.corpus import CorpusError, CorpusSpec, PreparedCorpus, prepare

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.study import Study


def corpus_spec(study: Study) -> CorpusSpec:
    """The corpus of a study; fields that mean nothing for its source or tokenizer are left out."""
    settings = study.corpus
    from_hub = settings.source == "hub"
    return CorpusSpec(
        source=settings.source,
        path=settings.path,
        name=settings.name if from_hub else None,
        split=settings.split if from_hub else None,
        revision=settings.revision if from_hub else None,
        text_column=settings.text_column,
        tokenizer=settings.tokenizer,
        bpe_vocab_size=settings.bpe_vocab_size if settings.tokenizer == "bpe" else None,
        hf_tokenizer=settings.hf_tokenizer,
        validation_fraction=settings.validation_fraction,
        split_seed=settings.split_seed,
    )


def prepare_corpus(study: Study, corpora: Path) -> PreparedCorpus:
    """The study's corpus, prepared once below `corpora`. Raises CorpusError, or ValueError for what a user gave."""
    return prepare(corpus_spec(study), corpora)


def check_corpus(study: Study, plan: Plan, corpus: PreparedCorpus) -> None:
    """Refuses a corpus that is too short for the plan, before anything is trained.

    Raises CorpusError where a budget needs more than one epoch of unique tokens, or where the validation set holds
    fewer tokens than the evaluation asks for.
    """
    length = study.model.sequence_length
    unique = corpus.unique_tokens(length)
    longest = max(plan.runs, key=lambda run: run.tokens)
    if longest.tokens > unique:
        raise CorpusError(
            f"design: run {longest.name} trains on {longest.tokens:,} tokens, but the corpus has {unique:,} unique "
            f"tokens ({longest.tokens / unique:.1f} epochs): laws of unique data would not hold. Use a larger corpus, "
            f"or budgets of at most {unique:,} tokens."
        )
    # Evaluation windows are cut here once, so that a validation set that is too small is told now, not after training.
    corpus.evaluation(study.evaluation.tokens, length)
