"""What must hold across the fields of a study: every problem at once, each with its place and its way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.corpus_spec import MIN_BPE_VOCAB_SIZE
from jobs.recipe import Rule
from orchestrator.designs import Point, count_points, design_sizes, expand, repeated_entries
from orchestrator.numbers import EXACT_DIGITS, short_number
from orchestrator.recipes import RunRecipe, resolve_recipe
from orchestrator.shapes import SizedShape, shape_for

if TYPE_CHECKING:
    from orchestrator.study import Study

# A study beyond this is a slip of the pen: a plan of it would not be read by anybody.
MOST_RUNS = 100_000

# One token could not be predicted wrongly.
FEWEST_TOKENS = 2

LARGEST_BPE_VOCAB_SIZE = 1 << 24

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place of the study file."""

    path: Path
    message: str


def find_problems(study: Study) -> list[Problem]:
    """Everything that is wrong across fields, at most one problem a place."""
    found = [*_corpus(study), *_model(study), *_recipe(study), *_fit(study), *_design(study), *_hold_out(study)]
    if not found:
        # Points can only be looked at once sizes and recipe make sense.
        found = list(_points(study))
    return list({problem.path: problem for problem in reversed(found)}.values())[::-1]


def find_warnings(study: Study) -> tuple[str, ...]:
    """Settings that were given and change nothing."""
    recipe, model, corpus = study.recipe, study.model, study.corpus
    idle: list[tuple[bool, str, str]] = [
        (_given(model, "aspect") and model.num_layers is not None, "model.aspect", "model.num_layers fixes the depth"),
        (
            _given(model, "min_layers") and model.num_layers is not None,
            "model.min_layers",
            "model.num_layers fixes the depth",
        ),
        (
            _given(recipe, "decay_fraction") and recipe.schedule == "cosine",
            "recipe.decay_fraction",
            "a cosine schedule decays over the whole run",
        ),
        (
            _given(corpus, "bpe_vocab_size") and corpus.tokenizer != "bpe",
            "corpus.bpe_vocab_size",
            f"the tokenizer is {corpus.tokenizer}",
        ),
        (
            _given(corpus, "hf_tokenizer") and corpus.tokenizer != "hf",
            "corpus.hf_tokenizer",
            f"the tokenizer is {corpus.tokenizer}",
        ),
        *(
            (_given(corpus, name) and corpus.source != "hub", f"corpus.{name}", f"the source is {corpus.source}")
            for name in ("name", "split", "revision")
        ),
        (_given(corpus, "path") and corpus.source == "python-stdlib", "corpus.path", "the source is python-stdlib"),
        (
            study.execution.max_ranks > 1 and study.execution.launcher == "inline",
            "execution.max_ranks",
            "the inline launcher runs one rank",
        ),
    ]
    return tuple(f"{name} has no effect: {reason}" for applies, name, reason in idle if applies)


def _given(settings: object, name: str) -> bool:
    return name in getattr(settings, "model_fields_set", ())


def _corpus(study: Study) -> Iterator[Problem]:
    corpus = study.corpus
    if corpus.source in ("files", "hub") and not corpus.path:
        example = "corpus.path: texts/*.txt" if corpus.source == "files" else "corpus.path: roneneldan/TinyStories"
        yield Problem(("corpus", "path"), f"is needed with source {corpus.source}. Use for example {example}")
    if corpus.source == "python-stdlib" and corpus.text_column != "text":
        yield Problem(("corpus", "text_column"), "means nothing for source python-stdlib. Remove it")
    if corpus.tokenizer == "hf":
        if not corpus.hf_tokenizer:
            yield Problem(("corpus", "hf_tokenizer"), "is needed with tokenizer hf. Use for example hf_tokenizer: gpt2")
        if study.model.vocab_size is None:
            yield Problem(
                ("model", "vocab_size"),
                "is needed with tokenizer hf, since sizes depend on it. Write the tokenizer's size, e.g. 50257",
            )
    if corpus.tokenizer == "bpe" and not MIN_BPE_VOCAB_SIZE <= corpus.bpe_vocab_size <= LARGEST_BPE_VOCAB_SIZE:
        yield Problem(
            ("corpus", "bpe_vocab_size"),
            f"{corpus.bpe_vocab_size} must be {MIN_BPE_VOCAB_SIZE} (256 bytes, the boundary and one merge) to "
            f"{LARGEST_BPE_VOCAB_SIZE}. Use for example 4096",
        )


def _model(study: Study) -> Iterator[Problem]:
    model = study.model
    if model.head_dim % 2:
        yield Problem(
            ("model", "head_dim"),
            f"{model.head_dim} must be even (rotary positions turn pairs). Use {model.head_dim + 1}",
        )
    needed = study.corpus.vocab_size or FEWEST_TOKENS
    if model.vocab_size is not None and model.vocab_size < needed:
        yield Problem(
            ("model", "vocab_size"),
            f"{model.vocab_size} must be {needed} or more, the size of tokenizer {study.corpus.tokenizer}. "
            "Use that size",
        )


def _recipe(study: Study) -> Iterator[Problem]:
    recipe, length = study.recipe, study.model.sequence_length
    if not isinstance(recipe.batch_tokens, Rule) and recipe.batch_tokens % length:
        below = recipe.batch_tokens // length * length
        choices = f"{below} or {below + length}" if below else f"{length}"
        yield Problem(
            ("recipe", "batch_tokens"),
            f"{recipe.batch_tokens} must be a multiple of model.sequence_length {length}. Use {choices}",
        )
    if not isinstance(recipe.beta2, Rule) and recipe.beta2 >= 1:
        yield Problem(("recipe", "beta2"), f"{recipe.beta2:g} must be < 1. Use for example 0.98")
    if recipe.final_fraction is not None and recipe.final_fraction >= 1:
        yield Problem(("recipe", "final_fraction"), f"{recipe.final_fraction:g} must be < 1. Use for example 0.1")
    if study.evaluation.tokens < length:
        yield Problem(
            ("evaluation", "tokens"),
            f"{study.evaluation.tokens} must be at least one sequence of {length}. Use for example 256k",
        )


def _fit(study: Study) -> Iterator[Problem]:
    fit = study.fit
    if fit.form not in fit.forms:
        yield Problem(("fit", "form"), f"{fit.form!r} must be one of fit.forms. Add it there or use {fit.forms[0]!r}")
    if fit.hold_out != "none" and float(fit.hold_out.partition(":")[2]) <= 0:
        yield Problem(("fit", "hold_out"), f"{fit.hold_out!r} holds nothing out. Use compute:0.2 or none")


def _design(study: Study) -> Iterator[Problem]:
    design = study.design
    runs = count_points(design)
    if runs > MOST_RUNS:
        yield Problem(("design",), f"asks for {runs:,} runs; at most {MOST_RUNS:,} are planned. Use shorter lists")
        return
    for path, entry in repeated_entries(design):
        yield Problem(("design", *path), f"{entry} is listed twice. Remove one of them")
    vocab_size = study.model.vocab_size or study.corpus.vocab_size
    if study.model.head_dim % 2 or vocab_size is None or vocab_size < FEWEST_TOKENS:
        return
    rule = study.model.shape_rule(vocab_size)
    realised: dict[object, int] = {}
    for i, size in enumerate(design_sizes(design)):
        path = ("design", "sizes", i) if hasattr(design, "sizes") else ("design", "points")
        try:
            sized = shape_for(size, rule)
        except ValueError as error:
            yield Problem(path, str(error))
            continue
        other = realised.setdefault(sized.shape, size)
        if other != size:
            yield Problem(
                path,
                f"{short_number(size)} becomes the same shape as {short_number(other)} (width {sized.shape.width}, "
                f"{sized.shape.num_layers} layers). Use sizes farther apart, or a smaller model.head_dim",
            )


def _hold_out(study: Study) -> Iterator[Problem]:
    hold_out = study.forecast.hold_out
    if hold_out == "none":
        return
    sizes = design_sizes(study.design)
    if not isinstance(hold_out, str) and hold_out.size not in sizes:
        known = ", ".join(short_number(size) for size in sizes[:20])
        yield Problem(
            ("forecast", "hold_out", "size"),
            f"{short_number(hold_out.size)} is not a size of the design. Use one of {known}",
        )
    elif len(sizes) < 2:
        yield Problem(
            ("forecast", "hold_out"),
            f"holds out {short_number(sizes[0])}, the only size, and leaves nothing to fit. "
            "Add sizes, or use hold_out: none",
        )


def _points(study: Study) -> Iterator[Problem]:
    rule = study.model.shape_rule(study.vocab_size)
    shapes = {size: shape_for(size, rule) for size in design_sizes(study.design)}
    every_seed = sorted({point.seed for point in expand(study.design, shapes)})
    unknown = sorted(set(study.forecast.seeds or ()) - set(every_seed))
    if unknown and every_seed:
        known = ", ".join(map(str, every_seed[:20]))
        yield Problem(("forecast", "seeds"), f"{unknown[0]} is not a seed of the design. Use some of {known}")
        return
    points = planned_points(study, shapes)
    if not points:
        yield Problem(
            ("design", "tokens_per_param_range"), "leaves no cell of the design. Use a wider range or other budgets"
        )
        return
    held_out = held_out_sizes(study)
    if held_out and len({point.size in held_out for point in points}) < 2:
        left = "nothing to fit" if points[0].size in held_out else "no run of the held-out size"
        yield Problem(("design", "tokens_per_param_range"), f"leaves {left}. Use a wider range or other budgets")
    seen: dict[tuple[int, int, int], Point] = {}
    recipes: dict[tuple[int, int], RunRecipe] = {}
    for point in points:
        key = (point.size, point.tokens)
        if key not in recipes:
            sized = shapes[point.size]
            try:
                recipes[key] = resolve_recipe(
                    study.recipe, study.model.sequence_length, sized.params.matmul, point.tokens
                )
            except ValueError as error:
                yield Problem(("recipe",), f"{_cell(point)}: {_reason(error)}")
                return
            yield from _one_run(study, point, sized, recipes[key])
        steps = recipes[key].total_steps
        twin = seen.setdefault((point.size, point.seed, steps), point)
        if twin is not point:
            yield Problem(
                ("design", *point.path),
                f"{_cell(point)} is the same run as {_cell(twin)}: both are {steps} steps at seed {point.seed}. "
                "Use budgets farther apart, or a smaller recipe.batch_tokens",
            )


def _one_run(study: Study, point: Point, sized: SizedShape, run: RunRecipe) -> Iterator[Problem]:
    batch_tokens = run.recipe.batch_sequences * sized.shape.sequence_length
    if run.schedule_kind == "cosine":
        longest = run.total_steps - 1
        what = f"be below its {run.total_steps} steps"
    else:
        longest = run.fork_step // 2
        what = f"be at most half of its fork at step {run.fork_step}"
    if run.warmup_steps > longest:
        at_least = _steps_needed(study, run) * batch_tokens
        yield Problem(
            ("recipe", "warmup_steps"),
            f"{run.warmup_steps} steps must {what} for {_cell(point)} ({run.total_steps} steps of "
            f"{short_number(batch_tokens)} tokens). Use at most {longest}, or budgets of "
            f"{short_number(at_least)} or more",
        )
    if longest < 1 and not run.warmup_steps and run.fork_step < 1:
        yield Problem(
            ("design", *point.path),
            f"{_cell(point)} is {run.total_steps} step of {short_number(batch_tokens)} tokens, too short to fork. "
            "Use more tokens or a smaller recipe.batch_tokens",
        )
    micro = study.execution.micro_batch_sequences
    if not isinstance(micro, str) and run.recipe.batch_sequences % micro:
        sequences = run.recipe.batch_sequences
        divisors = [count for count in range(1, min(sequences, 4096) + 1) if sequences % count == 0]
        near = sorted(sorted(divisors, key=lambda count: abs(count - micro))[:2])
        yield Problem(
            ("execution", "micro_batch_sequences"),
            f"{sequences} sequences in a batch cannot be split by {micro} per micro-batch (needs a multiple of "
            f"{micro}). Use {' or '.join(map(str, near))}, or auto",
        )


def held_out_sizes(study: Study) -> frozenset[int]:
    """Sizes asked for whose runs wait for the forecast."""
    hold_out = study.forecast.hold_out
    if isinstance(hold_out, str):
        return frozenset({max(design_sizes(study.design))} if hold_out == "largest_size" else ())
    return frozenset({hold_out.size})


def planned_points(study: Study, shapes: Mapping[int, SizedShape]) -> tuple[Point, ...]:
    """The design's points; of the held-out sizes only those of the seeds that `forecast.seeds` names."""
    seeds, held_out = study.forecast.seeds, held_out_sizes(study)
    points = expand(study.design, shapes)
    return tuple(point for point in points if seeds is None or point.size not in held_out or point.seed in seeds)


def _steps_needed(study: Study, run: RunRecipe) -> int:
    if run.schedule_kind == "cosine":
        return run.warmup_steps + 1
    return round(2 * run.warmup_steps / (1 - study.recipe.decay_fraction)) + 2


def _cell(point: Point) -> str:
    return f"{short_number(point.size, EXACT_DIGITS)} at {short_number(point.tokens, EXACT_DIGITS)} tokens"


def _reason(error: ValueError) -> str:
    """One line of a pydantic error about a resolved value, or the error's own text."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where} = {first['input']!r}: {first['msg'].lower()}. Change its rule or cap it"
