"""What a study leaves: files, closing text and verdict, whatever has or has not been trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from jobs.tracking import TRAIN_LOSS
from orchestrator.finish import Finished, finish, freeze_forecast, freeze_now, summary_path
from orchestrator.place import Place
from orchestrator.tracking_store import tracking_store
from tests.orchestrator.paper_study import NOW, PaperStudy, known_law


def finished_files(study: PaperStudy) -> Finished:
    return finish(study.study, study.paths, study.plan, study.ledger)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PaperStudy:
    """Everything trained; the headline far from the law."""
    study = PaperStudy(tmp_path_factory.mktemp("whole"), "forecast.forms=[power, chinchilla]").finish()
    freeze_forecast(study.study, study.plan, study.ledger)
    *others, headline = study.runs("target")
    study.finish(others)
    study.finish([headline], lambda params, tokens: 1.5 * known_law(params, tokens))
    return study


@pytest.fixture(scope="module")
def ending(whole: PaperStudy) -> Finished:
    return finished_files(whole)


def test_closing_text_has_law_forecast_outcome_and_places(whole: PaperStudy, ending: Finished) -> None:
    headline = whole.runs("target")[-1].name
    assert ending.valid
    assert ending.text.startswith("20 runs: 20 finished\n")
    assert "chinchilla: L = E + A/N^alpha + B/D^beta" in ending.text
    assert "(first: the one that is scored; blind)" in ending.text
    (line,) = [line for line in ending.text.splitlines() if line.strip().startswith(headline)]
    assert "OUTSIDE" in line
    assert f"naive baselines for {headline}: loss of the dearest fitted run" in ending.text
    assert f"report   {whole.paths.report / 'report.html'}" in ending.text


def test_every_file_named_is_there_and_says_the_same(whole: PaperStudy, ending: Finished) -> None:
    assert all(path.stat().st_size > 0 for path in ending.files)
    names = {path.name for path in ending.files}
    assert {"observations.csv", "law.csv", "law.json", "law.md", "report.html", "summary.txt", "law.png"} <= names
    with (whole.paths.report / "observations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {run.name for run in whole.plan.runs}
    (frozen,) = whole.ledger.forecasts()
    stored = json.loads((whole.paths.report / f"forecast-{frozen.digest[:8]}.json").read_text())
    assert stored["score"]["headline"] == whole.runs("target")[-1].name
    assert summary_path(whole.paths).read_text().rstrip("\n") == ending.text
    assert ending.document() == {"valid": True, "files": [str(path) for path in ending.files]}


def test_page_shows_forecast_law_and_every_run(whole: PaperStudy, ending: Finished) -> None:
    page = (whole.paths.report / "report.html").read_text()
    assert "frozen before it started" in page
    assert all(run.name in page for run in whole.plan.runs)
    assert "Loss curves" in page


def test_curves_of_the_page_begin_at_the_trunk(whole: PaperStudy) -> None:
    from orchestrator.presentation import _curves

    curves = {curve["name"]: curve for curve in _curves(whole.ledger, whole.ledger.runs())}
    run = whole.runs()[-1]
    assert curves[run.name]["tokens"][0] == run.spec.batch_tokens
    assert curves[run.name]["tokens"][-1] == run.tokens
    points = [point for point in whole.ledger.points_after(0, 10**6) if point.key == TRAIN_LOSS]
    assert len(curves[run.name]["tokens"]) < len(points)


def test_making_the_report_again_changes_no_score(whole: PaperStudy, ending: Finished) -> None:
    before = whole.ledger.forecasts()[0].scored_ms
    assert finished_files(whole).text == ending.text
    assert whole.ledger.forecasts()[0].scored_ms == before


def test_study_of_which_nothing_has_run_has_no_law_and_says_so(tmp_path: Path) -> None:
    ending = finished_files(PaperStudy(tmp_path))
    assert not ending.valid
    assert "no law: none of 0 observations can be fitted" in ending.text
    assert (tmp_path / "studies" / "small" / "report" / "observations.csv").read_text().startswith("name,role,")


def test_held_out_none_ends_valid_without_a_forecast(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path, "forecast.hold_out=none").finish()
    ending = finished_files(study)
    assert ending.valid
    assert "orecast" not in ending.text
    assert list(study.paths.report.glob("forecast-*")) == []


def test_forecast_that_scored_is_told_even_where_no_law_is_left(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path).finish()
    freeze_forecast(study.study, study.plan, study.ledger)
    study.finish(study.runs("target"))
    # Only targets are left to fit once the fitted sizes are taken for targets.
    other = study.extended("fit.forms=[kaplan]", "fit.form=kaplan", "fit.bootstrap=0")
    ending = finish(other.study, other.paths, other.plan, other.ledger)
    assert "(first: the one that is scored; blind)" in ending.text


def test_failed_and_diverged_runs_are_named_with_their_reasons(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path)
    bad, *good = study.runs()
    study.ledger.quarantine(bad.segments[-1], "loss nan in step 40", NOW)
    study.finish(good)
    freeze_forecast(study.study, study.plan, study.ledger)
    target, *others = study.runs("target")
    study.ledger.fail_state(target.segments[-1], "KeyError: 'x'", NOW)
    study.finish(others)
    ending = finished_files(study)
    assert not ending.valid
    assert f"  {bad.name}: diverged: loss nan in step 40" in ending.text
    assert f"  {target.name}: failed: KeyError: 'x'" in ending.text
    assert "the target run is failed" in ending.text


def test_targets_without_a_forecast_are_called_withheld(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path).finish()
    ending = finished_files(study)
    assert not ending.valid
    assert ending.text.startswith("20 runs: 16 finished, 4 waiting\n")
    assert f"  {study.runs('target')[0].name}: withheld, its forecast is not frozen" in ending.text


def test_runs_that_were_taken_out_of_the_study_are_not_waited_for(tmp_path: Path) -> None:
    PaperStudy(tmp_path, "forecast.hold_out=none", "design.tokens=[0.5M, 1M, 2M, 4M, 16M]")
    smaller = PaperStudy(tmp_path, "forecast.hold_out=none").finish()
    ending = finished_files(smaller)
    assert ending.valid
    assert ending.text.startswith("20 runs: 20 finished\n")


def test_forecast_by_hand_waits_for_the_fitted_runs(tmp_path: Path) -> None:
    study = PaperStudy(tmp_path)
    place = Place(study.home, study.paths, tracking_store(study.study, study.home))
    with pytest.raises(ValueError, match=r"16 fitted runs have not ended yet \(n12k-d500k-s0, .*, \.\.\.\)"):
        freeze_now(study.study, place, study.ledger)
    study.finish()
    digest = freeze_now(study.study, place, study.ledger)
    assert [row.digest for row in study.ledger.forecasts()] == [digest]
