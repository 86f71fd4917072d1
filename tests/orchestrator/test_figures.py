from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from orchestrator.drawing import power_of_ten, save
from orchestrator.figures import curves_figure, isoflop_figure, residual_figure
from orchestrator.law_figure import law_figure
from tests.small_study import curves, forecasts, law_loss, observations, predict


def texts(figure: Figure) -> str:
    """Everything that is written on a figure."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(match=lambda item: hasattr(item, "get_text")))


def test_law_figure_shows_every_run_budget_and_outcome() -> None:
    figure = law_figure(observations(), predict, forecasts(), title="The question?")
    shown = texts(figure)
    for word in ("The question?", "512k tokens", "2.05M tokens", "parameters N", "nats per token", "beyond the fit"):
        assert word in shown
    for forecast in forecasts():
        assert forecast["name"] in shown
        assert f"{100 * (forecast['value'] / forecast['outcome'] - 1):+.2f} %" in shown


def test_law_figure_says_which_targets_have_not_run() -> None:
    waiting = [{**forecast, "outcome": None} for forecast in forecasts()]
    assert "not yet run" in texts(law_figure(observations(with_target=False), predict, waiting))


def test_law_figure_without_forecast_has_one_panel() -> None:
    figure = law_figure(observations(with_target=False), predict)
    assert len(figure.axes) == 1
    assert "what came out" not in texts(figure)


def test_sizes_that_share_no_budget_are_drawn_against_compute() -> None:
    ladder = [
        {
            "name": f"n{params}",
            "role": "fit",
            "params": params,
            "tokens": multiple * params,
            "compute": 6.0 * multiple * params**2,
            "loss": law_loss(params, multiple * params),
            "loss_se": 0.01,
        }
        for params in (14_000, 45_000, 140_000)
        for multiple in (10, 20, 40)
    ]
    assert "training compute C (FLOPs)" in texts(law_figure(ladder, predict))


def test_law_figure_of_nothing_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one fitted observation"):
        law_figure([row for row in observations() if row["role"] == "target"], predict)


def test_residuals_and_curves_name_their_units() -> None:
    assert "loss over the law (%)" in texts(residual_figure(observations(), predict))
    shown = texts(curves_figure(curves()))
    assert "training tokens" in shown
    assert "140k" in shown


def test_curves_with_values_that_are_not_finite_are_drawn() -> None:
    diverged = {
        "name": "n14k-d1M-s0",
        "params": 14_000,
        "fork_tokens": 2000,
        "tokens": [1000, 2000, 3000],
        "loss": [5.0, 4.0, np.inf],
    }
    curves_figure([diverged]).canvas.draw()


def test_isoflop_figure_marks_each_optimum() -> None:
    compute, best = 1e15, 1e6
    rows = [
        {"params": best * x, "loss": 2.0 + 0.1 * np.log(x) ** 2, "loss_se": 0.01, "budget": compute}
        for x in (0.5, 1.0, 2.0)
    ]
    parabola = {
        "compute": compute,
        "loss_at": lambda params: 2.0 + 0.1 * np.log(params / best) ** 2,
        "optimum_params": best,
        "optimum_lo": best / 1.1,
        "optimum_hi": best * 1.1,
    }
    assert f"{power_of_ten(compute)} FLOPs" in texts(isoflop_figure(rows, [parabola]))


def test_equal_input_gives_equal_svg_bytes(tmp_path: Path) -> None:
    first, second = (
        save(law_figure(observations(), predict, forecasts()), tmp_path / name, "law")[1] for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a" / "law.png").stat().st_size > 20_000
