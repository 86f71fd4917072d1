"""`scaling status` and `scaling logs`, from the ledger alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.database import sqlite_url
from orchestrator.lease import Holder, Lease
from orchestrator.ledger import Ledger
from orchestrator.standing import event_lines, last_log, standing, standing_text
from tests.orchestrator.paper_study import NOW, PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    return PaperStudy(tmp_path)


def row(study: PaperStudy, name: str) -> dict[str, object]:
    return next(run for run in standing(study.ledger)["runs"] if run["run"] == name)


def test_ledger_without_a_plan_says_so(tmp_path: Path) -> None:
    ledger = Ledger.open(sqlite_url(tmp_path / "ledger.sqlite"), create=True, study_name="young")
    assert standing_text(standing(ledger)).startswith("study young: nothing is planned yet")


def test_run_is_waiting_running_and_finished_in_turn(study: PaperStudy) -> None:
    run = study.runs()[0]
    assert row(study, run.name)["status"] == "waiting"
    attempt = study.claim(run.segments[:1])
    assert row(study, run.name)["status"] == "running"
    study.ledger.end_attempt(attempt, "preempted", NOW, cause="asked to leave")
    assert row(study, run.name)["status"] == "waiting"
    study.finish([run])
    assert row(study, run.name) | {"loss": 0} == {
        "run": run.name,
        "role": "fit",
        "status": "finished",
        "step": run.spec.total_steps,
        "total_steps": run.spec.total_steps,
        "loss": 0,
        "loss_se": 0.01,
        "reason": "",
    }


def test_steps_of_a_shared_trunk_count_up_to_the_fork(study: PaperStudy) -> None:
    short, *_, long = [run for run in study.runs() if run.name.startswith("n12k-")]
    study.train(long)
    fork = study.plan.segments[short.segments[-1]].segment.start_step
    assert row(study, short.name)["step"] == fork


def test_text_names_failures_their_logs_and_the_forecast(study: PaperStudy) -> None:
    run = study.runs()[0]
    attempt = study.claim(run.segments[:1])
    study.ledger.end_attempt(attempt, "bug", NOW, cause="KeyError", log_path="a/rank-0.log")
    study.ledger.fail_state(run.segments[0], "KeyError: 'x'", NOW)
    target = study.runs("target")[0]
    study.ledger.freeze_forecast({"a": 1}, [target.name], NOW)
    text = standing_text(standing(study.ledger))
    assert f"  {run.name}: KeyError: 'x'" in text
    assert "attempt 1: bug: KeyError  log: a/rank-0.log" in text
    assert f"of {target.name}: frozen, not scored yet" in text
    assert "driven by nobody" in text


def test_driver_is_named_while_it_holds_the_lease(study: PaperStudy) -> None:
    lease = Lease.take(study.ledger, time.time())
    assert standing(study.ledger)["driver"] == f"process {Holder.me().pid} on {Holder.me().host}"
    lease.release(study.ledger)
    assert standing(study.ledger)["driver"] is None


def test_events_are_told_in_order_without_a_limit(study: PaperStudy) -> None:
    with study.ledger.transaction():
        for number in range(1100):
            study.ledger.append_event("note", {"text": f"event {number}"}, NOW + number)
    lines = event_lines(study.ledger)
    assert len(lines) == 1100
    assert [line.split(" ", 2)[2] for line in lines[-2:]] == ["event 1098", "event 1099"]


def test_log_of_a_run_is_that_of_its_last_attempt(study: PaperStudy) -> None:
    run = study.runs()[0]
    study.ledger.end_attempt(study.claim(run.segments[:1]), "preempted", NOW)
    study.finish([run])
    assert last_log(study.ledger, run.name, 0).read_text() == "log of attempt 2\n"


def test_log_that_is_not_there_is_refused_with_what_there_is(study: PaperStudy) -> None:
    run, other = study.runs()[0], study.runs()[-1]
    study.finish([run])
    with pytest.raises(ValueError, match=r"no run 'n1'; it has n12k-d500k-s0, "):
        last_log(study.ledger, "n1", 0)
    with pytest.raises(ValueError, match="has not been started yet"):
        last_log(study.ledger, other.name, 0)
    with pytest.raises(ValueError, match=r"there is no .*rank-3\.log; that attempt has rank-0"):
        last_log(study.ledger, run.name, 3)
