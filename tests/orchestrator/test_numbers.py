"""Numbers as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.numbers import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Step,
    parse_number,
    scientific,
    short_number,
)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e18", 10**18),
        ("1.0e18", 10**18),
        ("3e-4", 3e-4),
        ("1_000_000", 1_000_000),
        ("1.3M", 1_300_000),
        ("12k", 12_000),
        ("12K", 12_000),
        ("256k", 256_000),
        ("2B", 2 * 10**9),
        ("2G", 2 * 10**9),
        ("1T", 10**12),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1.001M", 1_001_000),
        (" 7 ", 7),
        (1e18, 10**18),
        (12, 12),
    ],
)
def test_a_written_number_is_read_exactly(written: object, number: float) -> None:
    read = parse_number(written)
    assert read == number
    assert type(read) is type(number)


@pytest.mark.parametrize("written", ["", "abc", "nan", "inf", math.nan, math.inf, "0x10", "1 000", "_1", ".", "1e400"])
def test_what_is_no_number_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a (finite )?number|too large"):
        parse_number(written)


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), (None, "null"), ([1], r"\[1\]")])
def test_other_values_are_refused_by_their_word_in_the_file(value: object, shown: str) -> None:
    with pytest.raises(ValueError, match=f"{shown} is not a number. Write it like"):
        parse_number(value)


def test_small_m_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="write M for a million"):
        parse_number("3m")


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Count, 0, "must be 1 or more"),
        (Count, "-5k", "must be 1 or more"),
        (Count, "12.5", "must be a whole number"),
        (Count, "1e31", "too large for a count"),
        (Count, "1e300", "too large for a count"),
        (Step, -1, "must be 0 or more"),
        (Positive, 0, "must be > 0"),
        (Positive, "nan", "is not a number"),
        (NonNegative, "-1e-9", "must be 0 or more"),
        (Fraction, 1, "strictly between 0 and 1"),
        (Fraction, 0.0, "strictly between 0 and 1"),
    ],
)
def test_each_kind_of_number_states_its_bound(kind: object, value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TypeAdapter(kind).validate_python(value)


def test_zero_is_a_step_and_a_switch() -> None:
    assert TypeAdapter(Step).validate_python(0) == 0
    assert TypeAdapter(NonNegative).validate_python("0") == 0.0


@given(st.integers(min_value=0, max_value=10**14))
def test_a_short_number_with_enough_digits_reads_back(count: int) -> None:
    assert parse_number(short_number(count, 15)) == count


@pytest.mark.parametrize(
    ("value", "text"), [(14_000, "14k"), (1_250_000, "1.25M"), (999_996, "1M"), (999_940, "999.9k"), (12, "12")]
)
def test_short_numbers_as_people_say_them(value: int, text: str) -> None:
    assert short_number(value) == text


def test_scientific_has_no_padding() -> None:
    assert scientific(2.72e14) == "2.72e14"
    assert scientific(1e-4, 2) == "1.0e-4"
