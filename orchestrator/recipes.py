"""Resolves a study's recipe for one shape and horizon into plain values, recording every cap that was hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.recipe import Rule, RunScale, resolve
from jobs.schedules import Schedule, warmup_cosine, warmup_stable_decay
from jobs.spec import Recipe
from orchestrator.numbers import LARGEST_COUNT, short_number

if TYPE_CHECKING:
    from orchestrator.study import RecipeSettings

# Quantities in steps and tokens are rounded to whole ones; below these there are none.
SMALLEST = {"batch_tokens": 1, "warmup_steps": 0}

# A rule's value enters fingerprints: its last bits, in which the power functions of two machines differ, are dropped.
RULE_DIGITS = 12

COSINE_FINAL_FRACTION = 0.1  # Hoffmann et al. 2022, app. B


@dataclass(frozen=True)
class RunRecipe:
    """A recipe's values for one run, in steps of its own batch."""

    recipe: Recipe
    warmup_steps: int
    decay_steps: int
    total_steps: int
    schedule_kind: str
    final_fraction: float
    notes: tuple[str, ...]

    @property
    def fork_step(self) -> int:
        """Where the decay leaves the trunk; a cosine run leaves it at its end."""
        return self.total_steps - self.decay_steps

    def schedule(self) -> Schedule:
        """Learning-rate schedule of the run. Raises ValueError where warm-up and decay do not fit."""
        if self.schedule_kind == "cosine":
            return warmup_cosine(self.total_steps, self.warmup_steps, self.final_fraction)
        return warmup_stable_decay(self.total_steps, self.warmup_steps, self.decay_steps, self.final_fraction)


def resolve_recipe(settings: RecipeSettings, sequence_length: int, params: int, tokens: int) -> RunRecipe:
    """Values for a run of `params` (default N) and `tokens` (D as asked).

    The batch is resolved first, since other rules may look at it. D becomes whole steps by rounding. Raises ValueError
    where a rule leaves the range of its quantity.
    """
    notes: list[str] = []
    batch_tokens = _value(settings, "batch_tokens", RunScale(params, tokens, 0.0), notes)
    batch_sequences = max(1, round(batch_tokens / sequence_length))
    realised_batch = batch_sequences * sequence_length
    if isinstance(settings.batch_tokens, Rule) and realised_batch != batch_tokens:
        notes.append(f"batch of {short_number(batch_tokens)} tokens became {short_number(realised_batch)}")
    scale = RunScale(params, tokens, realised_batch)
    total_steps = max(1, round(tokens / realised_batch))
    decays = settings.schedule == "wsd"
    final = settings.final_fraction
    values = {
        name: _value(settings, name, scale, notes) for name in ("learning_rate", "weight_decay", "beta2", "epsilon")
    }
    return RunRecipe(
        recipe=Recipe(
            **values,
            batch_sequences=batch_sequences,
            beta1=settings.beta1,
            gradient_clip=settings.gradient_clip,
            init_std=settings.init_std,
            embedding_multiplier=settings.embedding_multiplier,
            output_multiplier=settings.output_multiplier,
        ),
        warmup_steps=round(_value(settings, "warmup_steps", scale, notes)),
        decay_steps=max(1, round(settings.decay_fraction * total_steps)) if decays else 0,
        total_steps=total_steps,
        schedule_kind=settings.schedule,
        final_fraction=final if final is not None else (0.0 if decays else COSINE_FINAL_FRACTION),
        notes=tuple(notes),
    )


def _value(settings: RecipeSettings, name: str, scale: RunScale, notes: list[str]) -> float:
    given = getattr(settings, name)
    if not isinstance(given, Rule):
        return float(given)
    overflow = f"{name}: rule {given.rule} with exponent {given.exponent:g} overflows. Use a smaller one, or a maximum"
    try:
        resolved = resolve(given, scale)
    except OverflowError as error:
        raise ValueError(overflow) from error
    if not abs(resolved.value) <= LARGEST_COUNT:
        raise ValueError(overflow)
    if resolved.value < SMALLEST.get(name, -LARGEST_COUNT):
        raise ValueError(
            f"{name}: rule {given.rule} gives {resolved.value:.4g}, must be {SMALLEST[name]} or more. Use a minimum"
        )
    if resolved.cap_hit:
        notes.append(f"{name} is at its {resolved.cap_hit}")
    return float(f"{resolved.value:.{RULE_DIGITS}g}")
