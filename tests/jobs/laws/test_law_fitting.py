"""Fits: known surfaces come back, doubt is stated, meaningless tables are refused, a fit is a value."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from jobs.laws.fit import Fit
from jobs.laws.fitting import fit_law, objective_at
from jobs.laws.observations import FitError, Table

CHINCHILLA = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
COUPLED = {"E": 1.5, "A": 900.0, "B": 4000.0, "alpha": 0.45, "beta": 0.46, "gamma": 0.7}


@pytest.fixture(autouse=True)
def _no_warning_reaches_a_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What an earlier test left to the garbage collector is none of the fitter's.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", pytest.PytestUnraisableExceptionWarning)
        yield


def surface(n: np.ndarray, d: np.ndarray, p: dict[str, float]) -> np.ndarray:
    return p["E"] + (p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]) ** p.get("gamma", 1.0)


def table(params=CHINCHILLA, sizes=6, budgets=5, noise=0.0, seeds=1, seed=0, **more) -> Table:
    n, d, _ = (
        axis.ravel()
        for axis in np.meshgrid(np.geomspace(5e7, 5e9, sizes), np.geomspace(1e9, 1e11, budgets), range(seeds))
    )
    rng = np.random.default_rng(seed)
    return Table(n, d, surface(n, d, params) * np.exp(noise * rng.standard_normal(len(n))), **more)


@pytest.mark.parametrize(("form", "truth"), [("chinchilla", CHINCHILLA), ("coupled", COUPLED)])
@pytest.mark.parametrize("loss", ["huber", "mse", "lad"])
def test_a_noiseless_surface_gives_its_parameters_back(form, truth, loss):
    fit = fit_law(table(truth), form, loss=loss, delta=1e-3, bootstrap=0)
    assert fit.status == "OK", fit.reasons
    for name, value in truth.items():
        # gamma, alpha and A trade off along a ridge, so rounding of 1e-16 in ln L is 1e-6 in A.
        assert fit.params[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("form", ["power", "power_params", "power_tokens", "power_no_floor"])
def test_forms_in_one_variable_recover_their_curve(form):
    n, d = np.geomspace(1e7, 1e9, 9), np.geomspace(1e9, 5e10, 9)
    variable = {"power_params": n, "power_tokens": d}.get(form, 6 * n * d)
    floor = 0.0 if form == "power_no_floor" else 1.5
    fit = fit_law(Table(n, d, floor + 40.0 * variable**-0.15), form, delta=1e-3, bootstrap=0)
    assert fit.params["alpha"] == pytest.approx(0.15, rel=1e-4)
    assert fit.params["A"] == pytest.approx(40.0, rel=1e-3)


def test_outliers_hardly_move_the_robust_fit():
    clean = table(noise=0.003, sizes=8, budgets=6)
    spoilt_loss = np.array(clean.loss)
    spoilt_loss[[3, 17]] *= 1.5
    spoilt = fit_law(Table(clean.params, clean.tokens, spoilt_loss), "chinchilla", bootstrap=0)
    squares = fit_law(Table(clean.params, clean.tokens, spoilt_loss), "chinchilla", loss="mse", bootstrap=0)
    at = (2e10, 1e12)
    undisturbed = fit_law(clean, "chinchilla", bootstrap=0).predict(*at).value
    assert abs(spoilt.predict(*at).value / undisturbed - 1) < 0.005
    assert abs(squares.predict(*at).value / undisturbed - 1) > 0.01


def test_weights_count_as_repeated_rows():
    once = table(noise=0.01)
    weights = np.ones(len(once))
    weights[:7] = 2.0
    twice = Table(*(np.concatenate([column, column[:7]]) for column in (once.params, once.tokens, once.loss)))
    weighted = fit_law(
        Table(once.params, once.tokens, once.loss, weights=weights), "chinchilla", delta=5e-3, bootstrap=0
    )
    repeated = fit_law(twice, "chinchilla", delta=5e-3, bootstrap=0)
    assert weighted.objective.value == pytest.approx(repeated.objective.value, rel=1e-9)
    assert weighted.params["alpha"] == pytest.approx(repeated.params["alpha"], rel=1e-6)


def test_the_objective_is_a_sum_and_is_that_of_its_parameters():
    rows = table(noise=0.01)
    fit = fit_law(rows, "chinchilla", delta=1e-3, bootstrap=0)
    residual = np.log(surface(rows.params, rows.tokens, fit.params)) - np.log(rows.loss)
    huber = np.where(np.abs(residual) <= 1e-3, residual**2 / 2, 1e-3 * (np.abs(residual) - 5e-4))
    assert fit.objective.value == pytest.approx(float(huber.sum()), rel=1e-9)
    assert objective_at(rows, "chinchilla", fit.params) == pytest.approx(float(huber.sum()), rel=1e-9)


def test_delta_auto_comes_from_replicates_where_there_are_any():
    fit = fit_law(table(noise=0.01, seeds=4), "chinchilla", bootstrap=0)
    # 90 degrees of freedom know a deviation to 7 %.
    assert fit.objective.delta == pytest.approx(1.345 * 0.01, rel=0.21)
    assert "replicates" in fit.objective.delta_source


def test_delta_auto_without_replicates_says_that_it_took_residuals():
    fit = fit_law(table(noise=0.01, sizes=10, budgets=10), "chinchilla", bootstrap=0)
    # A median absolute deviation of 100 rows knows a deviation to 12 %.
    assert fit.objective.delta == pytest.approx(1.345 * 0.01, rel=0.36)
    assert "residuals" in fit.objective.delta_source


def test_intervals_hold_the_truth_and_the_run_interval_holds_that_of_the_mean():
    fit = fit_law(table(noise=0.004, sizes=8, budgets=8), "chinchilla", bootstrap=300)
    assert fit.bootstrap.kind.startswith("pairs")
    assert fit.bootstrap.certified >= 0.95 * fit.bootstrap.replicates
    for name, (low, high) in fit.intervals.items():
        assert low < CHINCHILLA[name] < high
    prediction = fit.predict(2e10, 5e11)
    (low, high), (run_low, run_high) = prediction.mean_interval, prediction.prediction_interval
    assert run_low < low < prediction.value < high < run_high
    assert prediction.extrapolation == pytest.approx({"params": 4.0, "tokens": 5.0, "train_flops": 20.0})
    assert "extrapolates 4x in params" in prediction.note


def test_few_clusters_are_replaced_by_noise_and_many_are_resampled():
    few = table(noise=0.01, sizes=5)
    kind = fit_law(few, "chinchilla", clusters=few.params, bootstrap=20).bootstrap.kind
    assert kind.startswith("noise around the law")
    assert "5 clusters are fewer than 8" in kind
    many = table(noise=0.01, sizes=10)
    assert fit_law(many, "chinchilla", clusters=many.params, bootstrap=20).bootstrap.kind.startswith("clusters (10")


def test_small_designs_say_that_they_do_not_resample_pairs():
    kind = fit_law(table(noise=0.01, sizes=4, budgets=4), "chinchilla", bootstrap=20).bootstrap.kind
    assert "16 cells are fewer than 6 per parameter" in kind


def test_a_surface_without_floor_reports_the_bound_by_name():
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 5)))
    loss = 60.0 * n**-0.12 + 70.0 * d**-0.13
    bent = loss * np.exp(-0.004 * np.log(n / 1e8) ** 2 / 10)
    fit = fit_law(Table(n, d, bent), "chinchilla", delta=1e-3, bootstrap=0)
    assert fit.status == "BOUND_HIT"
    assert fit.reasons[0] == "E was driven to 0"
    assert fit.params["E"] == 0.0


def test_what_the_data_do_not_tell_is_named():
    fit = fit_law(table(noise=0.03, sizes=4, budgets=4, seed=3), "coupled", bootstrap=100)
    assert any("gamma is weakly identified" in reason for reason in fit.reasons)


def test_the_same_seed_gives_the_same_fit():
    rows = table(noise=0.01)
    left, right = (fit_law(rows, "chinchilla", bootstrap=50, seed=7) for _ in range(2))
    assert left.to_json() == right.to_json()


def test_json_and_back_predicts_the_same():
    fit = fit_law(table(noise=0.01), "coupled", bootstrap=60)
    back = Fit.from_json(fit.to_json())
    assert back.predict(3e10, 4e11) == fit.predict(3e10, 4e11)
    assert back.document() == fit.document() == json.loads(json.dumps(fit.document()))
    with pytest.raises(ValueError, match="not the JSON of a fit"):
        Fit.from_json('{"form": "coupled"}')


def test_the_document_has_the_stated_shape():
    document = fit_law(table(noise=0.01), "chinchilla", bootstrap=20, delta=1e-3).document()
    assert set(document["params"]) == {"E", "A", "B", "alpha", "beta"}
    assert {"value", "loss", "delta", "space", "reduction"} <= set(document["objective"])
    assert {"replicates", "kind", "certified"} <= set(document["bootstrap"])
    assert set(document["rows"]) == {"used", "dropped", "hash"}
    for key in ("form", "se", "intervals", "status", "reasons", "basins", "holdout", "conventions"):
        assert key in document
    assert document["basins"][0]["objective"] == document["objective"]["value"]


def test_the_hash_of_rows_does_not_depend_on_their_order():
    rows = table(noise=0.01)
    turned = Table(rows.params[::-1], rows.tokens[::-1], rows.loss[::-1])
    assert rows.digest == turned.digest
    assert rows.digest != rows.take(np.arange(len(rows)) > 0).digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: table(sizes=3, budgets=6), "at least 4 distinct values of params, got 3"),
        (lambda: table(sizes=1, budgets=9), "at least 4 distinct values of params, got 1"),
        (lambda: table(sizes=6, budgets=1), r"needs at least 7 distinct \(params, tokens\) cells, got 6"),
        (lambda: table(sizes=6, budgets=2), "at least 4 distinct values of tokens, got 2"),
        (lambda: table().take(np.zeros(30, dtype=bool)), "no rows to fit"),
        (lambda: Table(*[np.array([])] * 3), "no rows to fit"),
        (lambda: Table(table().params, table().tokens, np.full(30, 3.0)), "the loss is the same in all 30 rows"),
        (lambda: Table([1e6, 2e6], [1e6, 1e6], [2.0, float("nan")]), "loss of row 2 is nan"),
        (lambda: Table([1e6, 0.0], [1e6, 1e6], [2.0, 2.0]), "params of row 2 is 0"),
        (lambda: Table([1e6, 1e6], [-1e6, 1e6], [2.0, 2.0]), "tokens of row 1 is -1e"),
        (lambda: Table([1e6], [1e6, 2e6], [2.0, 2.0]), "params has shape"),
        (lambda: table(clusters=("a",)), "clusters has 1 entries, but the table has 30 rows"),
    ],
)
def test_a_table_without_meaning_is_refused_with_a_sentence(rows, message):
    with pytest.raises(FitError, match=message):
        fit_law(rows(), "chinchilla", bootstrap=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "linear"}, "unknown form"),
        ({"loss": "l2"}, "unknown loss 'l2'; known losses: huber, mse, lad"),
        ({"delta": 0.0}, "delta must be a positive number or 'auto'"),
        ({"delta": float("nan")}, "delta must be a positive number"),
        ({"level": 90.0}, "level must lie between 0 and 1"),
        ({"bootstrap": -1}, "bootstrap must be 0 or more"),
    ],
)
def test_a_wrong_option_is_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        fit_law(table(), **{"form": "chinchilla", **options})


def test_predictions_refuse_points_without_meaning():
    fit = fit_law(table(), "chinchilla", delta=1e-3, bootstrap=0)
    with pytest.raises(ValueError, match="params to predict at must be finite and positive, got 0"):
        fit.predict(0, 1e9)
