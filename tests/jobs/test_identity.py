"""A state is named by what it is, not by how it was reached or written down."""

import math

import pytest
from conftest import make_run_spec, make_shape

from jobs.identity import canonical, curve_fingerprint, differing_fields, digest, state_fingerprint, state_identity
from jobs.schedules import warmup_stable_decay


def test_runs_of_two_horizons_share_the_states_of_their_trunk() -> None:
    short = make_run_spec(schedule=warmup_stable_decay(100, 10, 20))
    long = make_run_spec(schedule=warmup_stable_decay(400, 10, 80))
    assert state_fingerprint(short, 80) == state_fingerprint(long, 80)
    assert state_fingerprint(short, 81) != state_fingerprint(long, 81)
    assert curve_fingerprint(short, 40) == curve_fingerprint(long, 320)
    assert curve_fingerprint(short, 100) != curve_fingerprint(long, 400)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"corpus_digest": "another"},
        {"shape": make_shape(width=24)},
        {"recipe": {"learning_rate": 0.02}},
        {"parametrization": "sp"},
        {"precision": "bf16"},
    ],
)
def test_whatever_changes_the_science_changes_the_name(change: dict) -> None:
    assert state_fingerprint(make_run_spec(), 20) != state_fingerprint(make_run_spec(**change), 20)


def test_the_name_is_stable_across_versions_of_this_code() -> None:
    """A change of this value renames every stored state: raise NUMERICS_VERSION only when numbers change."""
    assert state_fingerprint(make_run_spec(), 20) == "8562fb07e2653c8d06e162b805715c36"


def test_canonical_form_does_not_depend_on_how_a_number_was_written() -> None:
    assert canonical({"b": 1.0, "a": [1e3]}) == canonical({"a": (1000,), "b": 1})
    assert digest(0.1 + 0.2) != digest(0.3)


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: "x"}, b"bytes", 1j])
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="canonical form"):
        canonical(value)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="canonical form"):
        canonical({"loss": math.nan})


def test_differences_name_the_field_and_both_values() -> None:
    left = state_identity(make_run_spec(), 20)
    right = state_identity(make_run_spec(recipe={"learning_rate": 0.02}), 20)
    assert differing_fields(left, right) == ["recipe.learning_rate: 0.01 != 0.02"]
