"""`scaling fit` and `scaling predict` on a study's rows: which rows, which options, which refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.laws.observations import FitError
from jobs.observation import Observation
from orchestrator.analysis import fit_study, table_of
from orchestrator.fitting import FitRequest, fit_request, predict_text, prediction_of
from orchestrator.summary import fit_lines, law_lines
from tests.orchestrator.paper_study import PaperStudy, known_law


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PaperStudy:
    study = PaperStudy(tmp_path_factory.mktemp("study"), "forecast.hold_out={size: 400k}").finish()
    study.ledger.freeze_forecast({"a": 1}, [run.name for run in study.runs("target")], 0.0)
    return study.finish(study.runs("target"))


@pytest.fixture(scope="module")
def rows(study: PaperStudy) -> list[Observation]:
    return study.ledger.observations()


def request(**changes: object) -> FitRequest:
    return FitRequest(**{"form": "chinchilla", "bootstrap": 0, **changes})  # type: ignore[arg-type]


def test_study_is_fitted_to_its_fitted_runs_alone(rows: list[Observation]) -> None:
    fitted = fit_request(request(), rows)
    assert fitted.rows.used == 16
    assert fitted.predict(1e5, 1e6).value == pytest.approx(known_law(1e5, 1e6), rel=0.01)


def test_targets_enter_when_asked_for(rows: list[Observation]) -> None:
    assert fit_request(request(), rows, with_targets=True).rows.used == 20


def test_where_sees_every_column_of_an_observation(rows: list[Observation]) -> None:
    fitted = fit_request(request(form="power", where="name == 'n12k-d500k-s0' or tokens > 6e5"), rows)
    assert fitted.rows.used == 13


def test_hold_out_expression_sees_every_column_too(rows: list[Observation]) -> None:
    fitted = fit_request(request(form="power", holdout="name == 'n12k-d500k-s0'", bootstrap=5), rows)
    assert fitted.holdout is not None
    assert fitted.holdout.rows == 1
    assert "hold-out name ==" in "\n".join(fit_lines(fitted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "chinchila"}, "chinchilla"),
        ({"delta": "-1"}, "--delta -1: must be a number above 0"),
        ({"delta": "small"}, "--delta small: must be a number above 0"),
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"columns": "params=N"}, "are for --table"),
        ({"cluster": "trunk"}, "are for --table"),
        ({"where": "size > 1"}, "no column 'size'"),
        ({"holdout": "compute:2"}, "between 0 and 1"),
        ({"holdout": "dearest"}, "no column 'dearest'"),
    ],
)
def test_wrong_options_are_refused_with_a_way_out(
    changes: dict[str, object], message: str, rows: list[Observation]
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        fit_request(request(**changes), rows)
    assert not isinstance(refused.value, FitError)


def test_no_rows_is_no_fit(rows: list[Observation]) -> None:
    with pytest.raises(FitError, match="none of 0 observations can be fitted"):
        fit_request(request(), [])
    with pytest.raises(FitError, match="leaves none of 20 rows"):
        fit_request(request(where="tokens > 1e18"), rows)


def test_fit_without_bootstrap_says_that_it_has_no_intervals(rows: list[Observation]) -> None:
    lines = fit_lines(fit_request(request(), rows))
    assert any(
        line.split() == ["E", lines[-1] and f"{fit_request(request(), rows).params['E']:.5g}", "-", "-"]
        for line in lines
    )
    assert any("bootstrap" in line and "0 of 0 certified" in line for line in lines)


def test_prediction_has_value_intervals_and_how_far_it_reaches(study: PaperStudy, rows: list[Observation]) -> None:
    document = prediction_of(study.study, rows, "1.3M", "26M", 0.5)
    assert (document["params"], document["tokens"], document["level"]) == (1.3e6, 2.6e7, 0.5)
    low, high = document["prediction_interval"]
    assert low < document["value"] < high
    assert document["extrapolation"]["params"] > 1
    assert "N 1.3M, D 26M: extrapolates" in predict_text(document)
    wider = prediction_of(study.study, rows, "1.3M", "26M", 0.95)["prediction_interval"]
    assert wider[0] < low
    assert high < wider[1]


@pytest.mark.parametrize(
    ("params", "tokens", "level", "message"),
    [
        ("many", "1M", None, "--params: 'many' is not a number"),
        ("1M", "-3", None, "--tokens -3: must be above 0"),
        ("1M", "1M", 0.0, "level must lie between 0 and 1"),
    ],
)
def test_wrong_predictions_are_refused(
    params: str, tokens: str, level: float | None, message: str, study: PaperStudy, rows: list[Observation]
) -> None:
    with pytest.raises(ValueError, match=message):
        prediction_of(study.study, rows, params, tokens, level)


def test_form_that_the_table_cannot_carry_is_named_and_the_rest_is_fitted(
    study: PaperStudy, rows: list[Observation]
) -> None:
    few = [row for row in rows if row.params > 40_000]
    mixture = fit_study(study.study, table_of(few), ("chinchilla", "power"))
    assert [fit.form for fit in mixture.fits] == ["power"]
    assert any(line.startswith("left out chinchilla: ") for line in law_lines(mixture))


def test_hold_out_none_weighs_forms_equally(study: PaperStudy, rows: list[Observation]) -> None:
    mixture = fit_study(study.study, table_of(rows), ("chinchilla", "power"))
    assert mixture.weights == (0.5, 0.5)
    assert all(fit.holdout is None and not any("hold-out" in why for why in fit.reasons) for fit in mixture.fits)


def test_runs_of_one_trunk_form_a_cluster(rows: list[Observation], tmp_path: Path) -> None:
    table = table_of(rows)
    assert table.clusters is not None
    assert len(set(table.clusters)) == 4
    assert table.dropped == 0
