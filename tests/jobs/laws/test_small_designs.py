"""Designs as small as a quickstart: mixture, hold-out and IsoFLOP on 16 to 24 rows."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.laws.holdout import held_out_rows, hold_out
from jobs.laws.isoflop import fit_isoflop
from jobs.laws.mixture import fit_mixture
from jobs.laws.observations import FitError, Table


def tiny_loss(n, d):
    """A surface like that of bytes models of 14k to 400k parameters on 0.5M to 2M tokens."""
    return 0.8 + (0.5 * (n / 5e4) ** -0.6 + 0.45 * (d / 1e6) ** -0.7) ** 0.6


def tiny_study(seed=0, noise=0.01, sizes=(14e3, 24e3, 42e3, 70e3, 110e3)) -> Table:
    n, d = (axis.ravel() for axis in np.meshgrid(sizes, (0.5e6, 0.8e6, 1.25e6, 2e6)))
    rng = np.random.default_rng(seed)
    return Table(n, d, tiny_loss(n, d) * np.exp(noise * rng.standard_normal(len(n))), clusters=tuple(map(str, n)))


def test_a_mixture_predicts_a_size_beyond_a_small_study():
    mixture = fit_mixture(tiny_study(), bootstrap=100, level=0.9)
    truth = float(tiny_loss(250e3, 2e6))
    prediction = mixture.predict(250e3, 2e6)
    low, high = prediction.prediction_interval
    assert low < truth < high
    assert abs(prediction.value / truth - 1) < 0.03
    assert sum(mixture.weights) == pytest.approx(1.0)
    assert {fit.form for fit in mixture.fits} == {"chinchilla", "coupled"}
    own = [fit.predict(250e3, 2e6, level=0.9).value for fit in mixture.fits]
    assert min(own) <= prediction.value <= max(own)
    assert set(mixture.document()["weights"]) == {"chinchilla", "coupled"}


def test_a_mixture_leaves_out_what_the_design_cannot_carry():
    rows = tiny_study(sizes=(14e3, 24e3, 42e3, 70e3))
    kept = np.array([at in (0, 1, 2, 3, 4, 9, 14) for at in range(len(rows))])
    mixture = fit_mixture(rows.take(kept), ("chinchilla", "coupled", "power_no_floor"), bootstrap=50)
    assert "needs at least 8 distinct (params, tokens) cells, got 7" in mixture.refused["coupled"]
    assert "chinchilla" in {fit.form for fit in mixture.fits} | set(mixture.refused)
    assert "equal" in mixture.rule
    with pytest.raises(FitError, match="no form can be fitted: chinchilla: there are no rows"):
        fit_mixture(rows.take(np.zeros(len(rows))))


def test_holding_out_by_compute_trains_on_the_cheapest_rows():
    rows = tiny_study()
    held = held_out_rows(rows, "compute:0.2")
    assert held.sum() == 4
    assert rows.train_flops[held].min() > rows.train_flops[~held].max()
    judged = hold_out(rows, "chinchilla", "compute:0.2", bootstrap=100)
    assert judged.rows == 4
    assert judged.mean_abs_rel_error < judged.baselines["loss_of_dearest_run"]
    assert 0.0 <= judged.coverage <= 1.0
    assert judged.mean_interval_width > 0
    assert "power_law_in_compute" in judged.baselines


def test_holding_out_by_expression():
    rows = tiny_study()
    np.testing.assert_array_equal(held_out_rows(rows, "params > 1e5"), rows.params > 1e5)
    labels = ["test" if n > 1e5 else "train" for n in rows.params]
    np.testing.assert_array_equal(held_out_rows(rows, "split == 'test'", {"split": labels}), rows.params > 1e5)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("compute:1.5", "the fraction must lie between 0 and 1"),
        ("compute:few", "'few' is not a number; write compute:0.2"),
        ("size > 3", "no column 'size'"),
        ("params > 1e9", "holds out 0 of 20 rows"),
    ],
)
def test_a_wrong_holdout_rule_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        hold_out(tiny_study(), "chinchilla", rule, bootstrap=0)


def isoflop_table() -> Table:
    budgets = np.geomspace(1e18, 1e20, 4)
    params = np.concatenate([np.sqrt(budget / 6) * np.geomspace(0.25, 4, 7) for budget in budgets])
    tokens = np.repeat(budgets, 7) / (6 * params)
    return Table(params, tokens, 1.7 + 500 / params**0.34 + 500 / tokens**0.34)


def test_isoflop_finds_the_exponent_of_a_symmetric_surface():
    found = fit_isoflop(isoflop_table())
    assert len(found.optima) == 4
    assert found.params.exponent == pytest.approx(0.5, abs=0.005)
    assert found.tokens.exponent == pytest.approx(1.0 - found.params.exponent, abs=1e-9)
    assert found.params.at(1e19) == pytest.approx(np.sqrt(1e19 / 6), rel=0.02)


def test_isoflop_rejects_edges_and_hills_with_a_reason():
    rows = isoflop_table()
    loss = np.array(rows.loss)
    loss[:7] = 3.0 - loss[:7] / 10
    loss[7:14] = np.linspace(4.0, 3.0, 7) ** 2
    found = fit_isoflop(Table(rows.params, rows.tokens, loss))
    assert len(found.optima) == 2
    assert [item.reason.split(":")[0] for item in found.rejected] == [
        "the parabola opens downwards",
        "the minimum lies beyond the largest size",
    ]
    with pytest.raises(FitError, match="N\\*\\(C\\) needs two"):
        fit_isoflop(rows.take(np.arange(28) < 7))
