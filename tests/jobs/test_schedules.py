"""Schedules are pure functions of the step, and prefixes forget the future."""

import pytest

from jobs.schedules import warmup_cosine, warmup_stable_decay


def test_warmup_reaches_the_peak_on_its_last_step_and_takes_no_step_at_zero() -> None:
    schedule = warmup_stable_decay(total_steps=100, warmup_steps=10, decay_steps=20)
    assert schedule.multiplier(0) == pytest.approx(0.1)
    assert schedule.multiplier(9) == 1.0
    assert schedule.multiplier(50) == 1.0


def test_decay_starts_at_the_peak_and_takes_no_step_at_zero() -> None:
    schedule = warmup_stable_decay(total_steps=100, warmup_steps=10, decay_steps=20)
    assert schedule.multiplier(80) == 1.0
    assert schedule.multiplier(99) == pytest.approx(1 / 20)
    with pytest.raises(ValueError, match="outside the schedule"):
        schedule.multiplier(100)


def test_trunks_of_two_horizons_have_equal_prefixes() -> None:
    short = warmup_stable_decay(total_steps=100, warmup_steps=10, decay_steps=20)
    long = warmup_stable_decay(total_steps=400, warmup_steps=10, decay_steps=80)
    assert short.prefix(80) == long.prefix(80)
    assert short.prefix(81) != long.prefix(81)


def test_cosine_prefixes_know_their_horizon() -> None:
    assert warmup_cosine(100, 10).prefix(50) != warmup_cosine(200, 10).prefix(50)
    assert warmup_cosine(100, 10, final_value=0.1).multiplier(99) == pytest.approx(0.1, abs=1e-3)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 20 steps"):
        warmup_stable_decay(total_steps=20, warmup_steps=15, decay_steps=10)
