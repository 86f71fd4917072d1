"""Recipe rules: named functions of a run's own N, D and batch, each with its source, caps and a record of a cap hit.

A rule that looks at the horizon gives every token budget a trunk of its own; rules of N alone keep trunks shared.
Add a rule by a line in RULES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field, model_validator

from jobs.spec import Frozen


@dataclass(frozen=True)
class RunScale:
    """What a rule may look at: N (default convention), D and the batch in tokens."""

    params: float
    tokens: float
    batch_tokens: float


def constant(value: float, reference: float, exponent: float, scale: RunScale) -> float:
    """The value itself, for every run."""
    return value


def params_power(value: float, reference: float, exponent: float, scale: RunScale) -> float:
    """value (N / reference)^exponent. Learning rates of this form: Kaplan et al. 2020, app. D.6; Bi et al. 2024."""
    return float(value * (scale.params / reference) ** exponent)


def tokens_power(value: float, reference: float, exponent: float, scale: RunScale) -> float:
    """value (D / reference)^exponent of the run's own horizon. Learning rate ~ D^-0.32: Bjorck et al. 2024."""
    return float(value * (scale.tokens / reference) ** exponent)


def batch_power(value: float, reference: float, exponent: float, scale: RunScale) -> float:
    """value (B / reference)^exponent; 1/2 is the square-root rule of Adam (Malladi et al. 2022, 2205.10287)."""
    return float(value * (scale.batch_tokens / reference) ** exponent)


@dataclass(frozen=True)
class RuleKind:
    """A named rule and what it looks at."""

    function: Callable[[float, float, float, RunScale], float]
    looks_at_horizon: bool
    source: str


RULES: dict[str, RuleKind] = {
    "constant": RuleKind(constant, looks_at_horizon=False, source="the study file"),
    "params_power": RuleKind(params_power, looks_at_horizon=False, source="Kaplan et al. 2020, app. D.6"),
    "tokens_power": RuleKind(tokens_power, looks_at_horizon=True, source="Bjorck et al. 2024, arXiv 2409.19913"),
    "batch_power": RuleKind(batch_power, looks_at_horizon=False, source="Malladi et al. 2022, arXiv 2205.10287"),
}


class Rule(Frozen):
    """One quantity of a recipe as a named rule with its reference point and caps."""

    rule: str = "constant"
    value: float
    reference: float = Field(default=1.0, gt=0)
    exponent: float = 0.0
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}; known rules: {', '.join(sorted(RULES))}")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    @property
    def looks_at_horizon(self) -> bool:
        """Whether two token budgets may get different values, which would part their trunks."""
        return RULES[self.rule].looks_at_horizon


@dataclass(frozen=True)
class Resolved:
    """A rule's value for one run, and the cap that it hit, if any ('maximum 0.02 (rule gave 0.031)')."""

    value: float
    cap_hit: str | None


def resolve(rule: Rule, scale: RunScale) -> Resolved:
    """Value of a rule for one run, clipped to its caps."""
    free = RULES[rule.rule].function(rule.value, rule.reference, rule.exponent, scale)
    if rule.maximum is not None and free > rule.maximum:
        return Resolved(rule.maximum, f"maximum {rule.maximum:g} (rule gave {free:.4g})")
    if rule.minimum is not None and free < rule.minimum:
        return Resolved(rule.minimum, f"minimum {rule.minimum:g} (rule gave {free:.4g})")
    return Resolved(free, None)
