"""A rank's process takes its payload as it comes over the wire, and refuses what does not fit its gang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import entry
from jobs.corpus import CorpusSpec, PreparedCorpus, prepare
from jobs.journal import decode_lines
from jobs.spec import ChainPayload
from jobs.storage import AttemptPaths
from tests.jobs.rank_processes import FakeSeat, FolderLink, run_ranks
from tests.jobs.tiny_runs import segments_of, tiny_payload, tiny_spec

WORDS = "the loss falls with parameters and with tokens and the next run will tell how far".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    for index in range(40):
        words = [WORDS[(index * 7 + position * (index + 1)) % len(WORDS)] for position in range(120)]
        (root / "text" / f"{index}.txt").write_text(" ".join(words))
    return prepare(CorpusSpec(source="files", path=str(root / "text"), validation_fraction=0.2), root / "prepared")


def payload_on(corpus: PreparedCorpus, folder: Path, **execution: Any) -> ChainPayload:
    spec = tiny_spec(total_steps=20, decay_steps=4)
    spec = spec.model_copy(
        update={
            "corpus_digest": corpus.digest,
            "shape": spec.shape.model_copy(update={"vocab_size": corpus.vocab_size}),
        }
    )
    payload = tiny_payload(folder, spec, segments_of(spec, 10, 20), **execution)
    return payload.model_copy(update={"corpus_dir": str(corpus.folder)})


def enter(rank: int, world_size: int, folder: Path, payload: dict[str, Any]) -> str:
    entry.main(payload, FakeSeat(rank, world_size), FolderLink(folder))
    return "returned"


def test_two_ranks_execute_a_chain_on_a_prepared_corpus(corpus: PreparedCorpus, tmp_path: Path) -> None:
    payload = payload_on(corpus, tmp_path / "attempt", world_size=2)
    assert run_ranks(enter, 2, payload.model_dump(mode="json")) == ["returned", "returned"]
    lines = decode_lines(AttemptPaths(tmp_path / "attempt").journal.read_text())
    assert [line.kind for line in lines if line.kind != "metrics"] == ["begin", "state", "state", "final", "end"]
    assert lines[-1].data["outcome"] == "finished"


def test_gang_of_another_size_is_refused(corpus: PreparedCorpus, tmp_path: Path) -> None:
    payload = payload_on(corpus, tmp_path / "attempt", world_size=2)
    with pytest.raises(ValueError, match="the attempt is for 2 ranks, but the gang has 1"):
        run_ranks(enter, 1, payload.model_dump(mode="json"))


def test_corpus_that_is_not_the_one_of_the_run_is_refused(corpus: PreparedCorpus, tmp_path: Path) -> None:
    payload = payload_on(corpus, tmp_path / "attempt")
    foreign = payload.model_copy(update={"spec": payload.spec.model_copy(update={"corpus_digest": "other"})})
    with pytest.raises(ValueError, match=f"expected the corpus other, found {corpus.digest}"):
        run_ranks(enter, 1, foreign.model_dump(mode="json"))


def test_folder_in_which_an_attempt_wrote_is_refused(corpus: PreparedCorpus, tmp_path: Path) -> None:
    payload = payload_on(corpus, tmp_path / "attempt")
    (tmp_path / "attempt").mkdir()
    (tmp_path / "attempt" / "journal.jsonl").write_text("a line\n")
    with pytest.raises(ValueError, match="Each attempt needs a folder of its own"):
        run_ranks(enter, 1, payload.model_dump(mode="json"))
