"""`scaling run` around the training: verdicts that others can read, signals, attaching. Nothing is trained here."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cluster.resources import ClusterUnreachable
from orchestrator.attach import ENDED, VERDICTS, attach
from orchestrator.finish import finish
from orchestrator.launch import Launch, _verdict_recorded
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.place import Place
from orchestrator.tracking_store import tracking_store
from tests.orchestrator.paper_study import PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    return PaperStudy(tmp_path)


def verdicts(study: PaperStudy) -> list[int]:
    return [event.content["exit_code"] for event in study.ledger.events_after() if event.kind == ENDED]


def test_commands_that_are_suggested_can_be_typed(study: PaperStudy) -> None:
    place = Place(study.home, study.paths, tracking_store(study.study, study.home))
    launch = Launch(study.study, place, ("my study.yaml", "design.sizes=[1k, 2k]"), "10.0.0.1:6379")
    assert launch.command == "scaling run 'my study.yaml' 'design.sizes=[1k, 2k]' --address 10.0.0.1:6379"
    assert launch.ui_command == "scaling ui 'my study.yaml' 'design.sizes=[1k, 2k]'"


def test_home_may_be_probed_by_two_at_once(study: PaperStudy) -> None:
    place = Place(study.home, study.paths, tracking_store(study.study, study.home))
    place.make_folders()
    place.make_folders()
    assert sorted(path.name for path in study.paths.root.iterdir() if path.is_dir()) == ["attempts", "report"]


# Verdicts


@pytest.mark.parametrize("code", sorted(VERDICTS))
def test_verdict_is_written_for_those_who_watch(code: int, study: PaperStudy) -> None:
    with _verdict_recorded(study.ledger) as verdict:
        verdict.code = code
    assert verdicts(study) == [code]
    assert study.ledger.events_after()[-1].content["text"] == f"study small: {VERDICTS[code]}"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ClusterUnreachable("no answer at 10.0.0.1"), 3, "the cluster cannot be reached: no answer at 10.0.0.1"),
        (KeyError("a bug"), 1, "KeyError: 'a bug'"),
    ],
)
def test_failure_is_a_verdict_too(error: Exception, code: int, said: str, study: PaperStudy) -> None:
    with pytest.raises(type(error)), _verdict_recorded(study.ledger):
        raise error
    assert verdicts(study) == [code]
    assert said in study.ledger.events_after()[-1].content["text"]


def test_study_that_was_taken_over_keeps_the_verdict_of_its_new_driver(study: PaperStudy) -> None:
    Lease.take(study.ledger, time.time())
    study.ledger.bind_lease("the token of before")
    with _verdict_recorded(study.ledger) as verdict:
        verdict.code = 0
    study.ledger.bind_lease("")
    assert verdicts(study) == []


# Attaching


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_watcher_ends_with_the_code_of_the_driver(
    code: int, study: PaperStudy, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    study.ledger.append_event("run.finished", {"text": "of before"}, time.time())
    lease = Lease.take(study.ledger, time.time())
    closing = finish(study.study, study.paths, study.plan, study.ledger).text

    def drive() -> None:
        time.sleep(0.2)
        ledger = Ledger.open(f"sqlite:///{study.paths.ledger}", study_name="small")
        ledger.append_event("run.finished", {"text": "run n1: finished"}, time.time())
        with _verdict_recorded(ledger) as verdict:
            verdict.code = code
        lease.release(ledger)

    driver = threading.Thread(target=drive)
    driver.start()
    assert attach(study.ledger, study.paths) == code
    driver.join()
    assert caplog.messages[:1] == ["run n1: finished"]
    assert (closing in capsys.readouterr().out) == (code in (0, 1, 3))


def test_watcher_of_a_driver_that_was_lost_says_so(study: PaperStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert attach(study.ledger, study.paths) == 130
    assert "run the same command to go on" in capsys.readouterr().err
