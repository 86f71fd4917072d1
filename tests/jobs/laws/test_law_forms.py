"""Forms: derivatives against differences, translations there and back, coordinates that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.laws.forms import FORMS, Centre, form_named
from jobs.laws.objective import Problem

CENTRE = Centre(np.log(1e8), np.log(2e9), np.log(3.0))
NATURAL = {
    "chinchilla": {"E": 1.7, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37},
    "coupled": {"E": 1.6, "A": 2300.0, "B": 9900.0, "alpha": 0.42, "beta": 0.43, "gamma": 0.77},
    "kaplan": {"A": 8.8e13, "B": 5.4e13, "alpha": 0.076, "beta": 0.095},
    "power": {"E": 1.7, "A": 1600.0, "alpha": 0.16},
    "power_no_floor": {"A": 40.0, "alpha": 0.05},
    "power_params": {"E": 1.7, "A": 480.0, "alpha": 0.35},
    "power_tokens": {"E": 1.7, "A": 2100.0, "alpha": 0.37},
}


def equation(form: str, n: np.ndarray, d: np.ndarray, p: dict[str, float]) -> np.ndarray:
    """The equations as the papers print them."""
    if form == "chinchilla":
        return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]
    if form == "coupled":
        return p["E"] + (p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]) ** p["gamma"]
    if form == "kaplan":
        return ((p["A"] / n) ** (p["alpha"] / p["beta"]) + p["B"] / d) ** p["beta"]
    variable = {"power": 6 * n * d, "power_no_floor": 6 * n * d, "power_params": n, "power_tokens": d}[form]
    return p.get("E", 0.0) + p["A"] / variable ** p["alpha"]


def grid() -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(3e8, 2e10, 4))
    return n.ravel(), d.ravel()


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_computes_the_equation_it_prints(name):
    n, d = grid()
    form = FORMS[name]
    theta = form.coordinates_of(NATURAL[name], CENTRE)[None]
    loss = np.exp(form.log_loss(theta, CENTRE.features(n, d), CENTRE)[0])
    np.testing.assert_allclose(loss, equation(name, n, d, NATURAL[name]), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_natural_parameters_survive_the_way_to_coordinates_and_back(name):
    form = FORMS[name]
    back = form.natural(form.coordinates_of(NATURAL[name], CENTRE), CENTRE)
    assert tuple(form.parameters) == tuple(NATURAL[name])
    for parameter, value in NATURAL[name].items():
        assert float(back[parameter]) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_jacobian_gradient_and_hessian_agree_with_differences(name):
    n, d = grid()
    form, features = FORMS[name], CENTRE.features(n, d)
    rng = np.random.default_rng(0)
    theta = form.coordinates_of(NATURAL[name], CENTRE)[None] + 0.02 * rng.standard_normal((3, form.num_parameters))
    problem = Problem(form, features, *form.bounds(1.0))
    target, weights = 0.1 * rng.standard_normal((1, len(n))), rng.uniform(0.5, 2.0, (1, len(n)))
    # A delta inside the spread of the residuals, so that both branches of Huber's loss are met.
    delta = 0.08
    at = problem.evaluate(theta, target, weights, delta)
    jacobian = form.jacobian(theta, features)
    for index in range(form.num_parameters):
        step = np.zeros(form.num_parameters)
        step[index] = 1e-6
        up, down = (problem.evaluate(theta + sign * step, target, weights, delta) for sign in (1, -1))
        by_differences = (
            form.log_loss(theta + step, features, CENTRE) - form.log_loss(theta - step, features, CENTRE)
        ) / 2e-6
        scale = np.abs(jacobian).max()
        np.testing.assert_allclose(jacobian[:, :, index], by_differences, atol=1e-8 * scale)
        np.testing.assert_allclose(at.gradient[:, index], (up.value - down.value) / 2e-6, atol=1e-7 * scale)
        np.testing.assert_allclose(
            at.hessian[:, :, index], (up.gradient - down.gradient) / 2e-6, atol=1e-7 * np.abs(at.hessian).max()
        )


def test_an_unknown_form_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown form 'chincilla'; known forms: chinchilla, coupled"):
        form_named("chincilla")


def test_coupled_at_gamma_one_is_chinchilla():
    n, d = grid()
    sum_form, coupled = FORMS["chinchilla"], FORMS["coupled"]
    features = CENTRE.features(n, d)
    natural = NATURAL["chinchilla"]
    left = sum_form.log_loss(sum_form.coordinates_of(natural, CENTRE)[None], features, CENTRE)
    right = coupled.log_loss(coupled.coordinates_of({**natural, "gamma": 1.0}, CENTRE)[None], features, CENTRE)
    np.testing.assert_allclose(left, right, rtol=1e-12)
