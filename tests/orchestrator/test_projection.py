"""What the ledger shows to MLflow: identity in params, execution in tags, whole curves, endings."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.finish import freeze_forecast, score_forecasts
from orchestrator.projection import LedgerSource
from orchestrator.shipper import Child
from tests.orchestrator.paper_study import NOW, PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    return PaperStudy(tmp_path)


def source(study: PaperStudy) -> LedgerSource:
    return LedgerSource(study.ledger, "a note", {"design.kind": "grid"}, study.paths.report, None)


def child(study: PaperStudy, name: str) -> Child:
    return next(child for child in source(study).children() if child.name == name)


def test_one_child_a_trunk_and_a_run(study: PaperStudy) -> None:
    children = source(study).children()
    assert len({child.run_id for child in children}) == len(children) == 5 + 20
    assert [child.name for child in children[:2]] == ["n12k-s0 trunk", "n12k-d500k-s0"]
    assert {child.status for child in children} == {"SCHEDULED"}


def test_stretches_of_a_run_cover_its_path_without_gap(study: PaperStudy) -> None:
    run = study.runs()[3]
    stretches = child(study, run.name).stretches
    edges = [(stretch.after_step, stretch.through_step) for stretch in stretches]
    assert edges[0][0] == 0
    assert edges[-1][1] == run.spec.total_steps
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))


def test_identity_is_in_params_and_execution_in_tags(study: PaperStudy) -> None:
    run = study.runs()[0]
    study.finish([run])
    shown = child(study, run.name)
    assert shown.params["N"] == run.params.matmul
    assert shown.params["D"] == run.tokens
    assert shown.params["C"] == pytest.approx(run.train_flops)
    assert shown.params["fingerprint"] == run.segments[-1]
    assert not any("execution" in name for name in shown.params)
    assert shown.tags["scaling.execution.world_size"] == "1"
    assert shown.tags["scaling.cause"] == ""


def test_ending_carries_the_observation(study: PaperStudy) -> None:
    run = study.runs()[0]
    study.finish([run])
    ending = child(study, run.name).ending
    (row,) = study.ledger.observations()
    assert ending is not None
    assert ending.observation == row.as_row()
    assert (ending.tokens, ending.metrics["val/loss"]) == (run.tokens, row.loss)


def test_status_follows_the_ledger(study: PaperStudy) -> None:
    short, *_, long = [run for run in study.runs() if run.name.startswith("n12k-")]
    study.train(long)
    assert child(study, short.name).status == "RUNNING"
    assert child(study, "n12k-s0 trunk").status == "FINISHED"
    attempt = study.claim(short.segments[-1:])
    study.ledger.end_attempt(attempt, "diverged", NOW, cause="loss nan in step 9")
    study.ledger.quarantine(short.segments[-1], "loss nan in step 9", NOW)
    shown = child(study, short.name)
    assert shown.status == "FAILED"
    assert shown.tags["scaling.reason"] == "loss nan in step 9"
    assert shown.tags["scaling.cause"] == "diverged: loss nan in step 9"


def test_cause_of_an_earlier_attempt_is_taken_back(study: PaperStudy) -> None:
    run = study.runs()[0]
    study.ledger.end_attempt(study.claim(run.segments), "preempted", NOW, cause="asked to leave")
    assert child(study, run.name).tags["scaling.cause"] == "preempted: asked to leave"
    study.finish([run])
    assert child(study, run.name).tags["scaling.cause"] == ""


def test_parent_shows_progress_and_the_forecast(study: PaperStudy) -> None:
    study.finish()
    freeze_forecast(study.study, study.plan, study.ledger)
    card = source(study).study()
    assert card.status == "RUNNING"
    assert card.tags["scaling.runs_finished"] == "16 of 20"
    assert card.tags["scaling.forecast_digest"] == study.ledger.forecasts()[0].digest
    assert card.metrics == {}
    study.finish(study.runs("target"))
    score_forecasts(study.ledger, study.ledger.observations())
    card = source(study).study()
    assert card.status == "FINISHED"
    assert set(card.metrics) == {"forecast/predicted", "forecast/observed", "forecast/relative_error"}


def test_void_forecast_gives_no_metrics(study: PaperStudy) -> None:
    study.finish()
    freeze_forecast(study.study, study.plan, study.ledger)
    for run in study.runs("target"):
        study.ledger.fail_state(run.segments[-1], "a bug", NOW)
    score_forecasts(study.ledger, study.ledger.observations())
    assert source(study).study().metrics == {}


def test_artifacts_are_the_finished_files_of_the_report(study: PaperStudy) -> None:
    assert source(study).artifacts() == []
    study.paths.report.mkdir(parents=True)
    (study.paths.report / "law.md").write_text("a law")
    (study.paths.report / ".law.json.7.tmp").write_text("half")
    assert [file.path.name for file in source(study).artifacts()] == ["law.md"]
