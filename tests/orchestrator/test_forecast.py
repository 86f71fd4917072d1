"""Forecasts: what is frozen, which ones count, how they are scored, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.laws.observations import FitError
from orchestrator.analysis import table_of
from orchestrator.finish import freeze_forecast, freeze_or_withhold, score_forecasts
from orchestrator.forecast import forecast_record, naive_losses, score_record, target_runs, unforecast_targets
from orchestrator.frozen import first_forecasts, is_revision
from tests.orchestrator.paper_study import NOW, PaperStudy, known_law, observation_of


@pytest.fixture
def fitted(tmp_path: Path) -> PaperStudy:
    """All fitted runs have ended, the targets wait."""
    return PaperStudy(tmp_path).finish()


def frozen_and_finished(study: PaperStudy, factor: float = 1.0) -> PaperStudy:
    """Forecast, targets trained to `factor` times the known law, scored."""
    freeze_forecast(study.study, study.plan, study.ledger)
    study.finish(study.runs("target"), lambda params, tokens: factor * known_law(params, tokens))
    score_forecasts(study.ledger, study.ledger.observations())
    return study


def test_record_holds_all_that_the_prediction_came_from(tmp_path: Path) -> None:
    fitted = PaperStudy(tmp_path, "forecast.forms=[chinchilla, coupled]", "fit.hold_out=compute:0.2").finish()
    record = forecast_record(fitted.study, fitted.plan, target_runs(fitted.plan), fitted.ledger.observations())
    assert {row["run"] for row in record["rows"]} == {run.name for run in fitted.runs()}
    assert record["rows_hash"] == table_of(fitted.ledger.observations()).digest
    assert [target["state_id"] for target in record["targets"]] == [
        run.segments[-1] for run in target_runs(fitted.plan)
    ]
    assert sum(record["weights"].values()) == pytest.approx(1.0)
    assert {law["form"] for law in record["laws"]} | set(record["refused_forms"]) == {"chinchilla", "coupled"}
    for target in record["targets"]:
        low, high = target["interval"]
        assert low < target["predicted"] < high
        assert set(target["baselines"]) == {"loss_of_dearest_run", "power_law_in_compute"}
        assert target["extrapolation"]["exact_train_flops"] > 0


def test_known_law_is_forecast_beyond_the_fitted_sizes(fitted: PaperStudy) -> None:
    record = forecast_record(fitted.study, fitted.plan, target_runs(fitted.plan), fitted.ledger.observations())
    headline = record["targets"][-1]
    assert headline["predicted"] == pytest.approx(known_law(headline["params"], headline["tokens"]), rel=0.01)


def test_headline_is_the_dearest_target(fitted: PaperStudy) -> None:
    assert target_runs(fitted.plan)[-1].train_flops == max(run.train_flops for run in fitted.plan.runs)


def test_study_that_holds_nothing_out_has_nothing_to_forecast(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path, "forecast.hold_out=none").finish()
    with pytest.raises(ValueError, match=r"no run to forecast: set forecast\.hold_out to largest_size"):
        freeze_forecast(study.study, study.plan, study.ledger)


def test_same_forecast_twice_is_one(fitted: PaperStudy) -> None:
    targets = target_runs(fitted.plan)
    record = forecast_record(fitted.study, fitted.plan, targets, fitted.ledger.observations())
    names = [run.name for run in targets]
    assert fitted.ledger.freeze_forecast(record, names, NOW) == fitted.ledger.freeze_forecast(record, names, NOW + 1)
    assert len(fitted.ledger.forecasts()) == 1


def test_forecast_that_no_form_can_carry_withholds_the_targets(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path)
    study.finish(study.runs()[:3])
    freeze_or_withhold(study.study, study.plan, study.ledger)
    assert study.ledger.forecasts() == []
    refused = [event for event in study.ledger.events_after() if event.kind == "forecast.refused"]
    assert "no forecast can be frozen" in refused[0].content["text"]
    with pytest.raises(FitError):
        freeze_forecast(study.study, study.plan, study.ledger)


def test_score_compares_with_the_observation_and_with_naive_baselines(fitted: PaperStudy) -> None:
    score = frozen_and_finished(fitted).ledger.forecasts()[0].score
    assert score is not None
    assert score["status"] == "scored"
    assert score["scored"] == len(fitted.runs("target"))
    headline = score["targets"][-1]
    assert headline["run"] == score["headline"]
    assert abs(headline["relative_error"]) < 0.02
    assert abs(headline["relative_error"]) < abs(headline["baselines"]["loss_of_dearest_run"]["relative_error"])


def test_target_far_from_the_law_falls_outside_its_interval(fitted: PaperStudy) -> None:
    score = frozen_and_finished(fitted, factor=1.5).ledger.forecasts()[0].score
    assert score is not None
    assert score["inside"] == 0
    assert score["targets"][-1]["relative_error"] == pytest.approx(1 / 1.5 - 1, abs=0.02)


def test_score_waits_for_the_last_target(fitted: PaperStudy) -> None:
    freeze_forecast(fitted.study, fitted.plan, fitted.ledger)
    fitted.finish(fitted.runs("target")[:-1])
    score_forecasts(fitted.ledger, fitted.ledger.observations())
    assert fitted.ledger.forecasts()[0].score is None


def test_target_that_failed_or_diverged_scores_void_and_is_shown(fitted: PaperStudy) -> None:
    freeze_forecast(fitted.study, fitted.plan, fitted.ledger)
    first, *others = fitted.runs("target")
    fitted.ledger.quarantine(first.segments[-1], "loss nan in step 9", NOW)
    fitted.finish(others)
    score_forecasts(fitted.ledger, fitted.ledger.observations())
    score = fitted.ledger.forecasts()[0].score
    assert score is not None
    void = next(target for target in score["targets"] if target["run"] == first.name)
    assert (void["status"], void["reason"]) == ("void", "the target run is diverged")
    assert score["scored"] == len(others)


def test_target_that_was_altered_scores_void(fitted: PaperStudy) -> None:
    run = target_runs(fitted.plan)[-1]
    record = forecast_record(fitted.study, fitted.plan, [run], fitted.ledger.observations())
    altered = observation_of(run, 2.0).model_copy(update={"state_id": "another"})
    target = score_record(record, [altered], {run.name: "finished"})["targets"][0]
    assert target["status"] == "void"
    assert "forecast for state" in target["reason"]
    assert "finished as another" in target["reason"]


def test_targets_of_a_longer_study_get_a_forecast_of_their_own(fitted: PaperStudy) -> None:
    frozen_and_finished(fitted)
    longer = fitted.extended("design.tokens=[0.5M, 1M, 2M, 4M, 8M]").finish()
    new = unforecast_targets(longer.plan, longer.ledger.forecasts())
    assert [run.name for run in new] == ["n400k-d8M-s0"]
    freeze_forecast(longer.study, longer.plan, longer.ledger)
    first, second = longer.ledger.forecasts()
    assert second.targets == ("n400k-d8M-s0",)
    assert first_forecasts([first, second]) == [first, second]
    # Its trunk was trained for the other targets: it can no longer be blind.
    assert (first.blind, second.blind) == (True, False)


def test_later_forecast_of_the_same_targets_is_a_revision(fitted: PaperStudy) -> None:
    freeze_forecast(fitted.study, fitted.plan, fitted.ledger)
    again = forecast_record(fitted.study, fitted.plan, target_runs(fitted.plan)[:1], fitted.ledger.observations())
    fitted.ledger.freeze_forecast(again, [target_runs(fitted.plan)[0].name], NOW)
    first, second = fitted.ledger.forecasts()
    assert (is_revision(first, [first, second]), is_revision(second, [first, second])) == (False, True)


def test_rows_of_a_size_that_is_held_out_later_do_not_enter_its_forecast(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path, "forecast.hold_out=none").finish()
    held = study.extended("forecast.hold_out=largest_size")
    freeze_forecast(held.study, held.plan, held.ledger)
    forecast = held.ledger.forecasts()[0]
    assert not forecast.blind
    assert {row["run"] for row in forecast.record["rows"]}.isdisjoint(forecast.targets)


def test_naive_losses_know_neither_n_nor_d(fitted: PaperStudy) -> None:
    table = table_of(fitted.ledger.observations())
    naive = naive_losses(table, 1e6, 1e9)
    assert naive["loss_of_dearest_run"] == table.loss[table.train_flops.argmax()]
    assert naive["power_law_in_compute"] < naive["loss_of_dearest_run"]
