"""Rules are functions of N, D and batch with caps on record."""

import pytest

from jobs.recipe import Rule, RunScale, resolve

SCALE = RunScale(params=4e5, tokens=8e6, batch_tokens=4096)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(value=0.01), 0.01),
        (Rule(rule="params_power", value=0.01, reference=1e5, exponent=-0.5), 0.005),
        (Rule(rule="tokens_power", value=0.01, reference=1e6, exponent=-1 / 3), 0.005),
        (Rule(rule="batch_power", value=0.01, reference=1024, exponent=0.5), 0.02),
    ],
)
def test_rules_follow_their_formula(rule: Rule, expected: float) -> None:
    assert resolve(rule, SCALE).value == pytest.approx(expected)
    assert resolve(rule, SCALE).cap_hit is None


def test_a_cap_is_applied_and_recorded() -> None:
    rule = Rule(rule="batch_power", value=0.01, reference=1024, exponent=0.5, maximum=0.015)
    assert resolve(rule, SCALE).value == 0.015
    assert resolve(rule, SCALE).cap_hit == "maximum 0.015 (rule gave 0.02)"


def test_only_a_rule_of_the_horizon_parts_the_trunks() -> None:
    assert Rule(rule="tokens_power", value=1.0).looks_at_horizon
    assert not Rule(rule="params_power", value=1.0).looks_at_horizon


def test_an_unknown_rule_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="unknown rule 'chinchila'; known rules: batch_power, constant"):
        Rule(rule="chinchila", value=1.0)
