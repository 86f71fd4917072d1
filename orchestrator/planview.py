"""How a plan is read: the text of `scaling plan` and `scaling validate`, and the stable JSON document of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.recipe import Rule
from orchestrator.carrying import carrying_warnings, sharing_warnings
from orchestrator.designs import design_sizes, left_out
from orchestrator.executions import BYTES_PER_GB, rank_memory
from orchestrator.numbers import scientific, short_number
from orchestrator.plan import STATE_BYTES_PER_PARAM, UNPREPARED, Plan, PlannedRun, PlannedSegment
from orchestrator.shapes import shape_for

if TYPE_CHECKING:
    from orchestrator.study import Study

PLAN_FORMAT = 1

# Beyond this, rows of a table are no longer read; `--json` has all.
MOST_ROWS = 200

# The convention 6 N D counts no attention scores (Kaplan et al. 2020, sec. 2.1).
SIX = 6

LEGEND = (
    "N: weights in matrix products, unembedding included, input embedding not; N all: every parameter; "
    "N body: without both embeddings.",
    "C: training FLOPs of the whole path 0 -> D, attention scores included, no causal halving; 6ND beside it.",
    "gang: ranks x micro-batch sequences x accumulation.",
)


def plan_text(plan: Plan, study: Study) -> str:
    """The whole plan for a person: every run, totals, what rounding did, and what to look at."""
    blocks = [
        _heading(plan, study),
        _runs_table(plan),
        "\n".join(LEGEND),
        _totals(plan, study),
        _listed("rounding and caps", _notes(plan)),
        _listed("warnings", plan_warnings(study, plan)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def validate_text(plan: Plan, study: Study, source: str) -> str:
    """What `scaling validate` says of a study that is right."""
    fitted = sum(run.role == "fit" for run in plan.runs)
    line = f"{source}: valid, {len(plan.runs)} runs ({fitted} to fit, {len(plan.runs) - fitted} held out)"
    warnings = _listed("warnings", plan_warnings(study, plan))
    return f"{line}\n{warnings}\n" if warnings else f"{line}\n"


def plan_warnings(study: Study, plan: Plan) -> tuple[str, ...]:
    """What a person should look at before the plan is run."""
    cells: tuple[str, ...] = ()
    if left := left_out_cells(study):
        cells = (f"{len(left)} cells lie outside design.tokens_per_param_range and are left out, such as {left[0]}",)
    return (*study.warnings, *cells, *sharing_warnings(study, plan), *carrying_warnings(study, plan))


def left_out_cells(study: Study) -> tuple[str, ...]:
    """Cells of an IsoFLOP design that its range leaves out."""
    rule = study.model.shape_rule(study.vocab_size)
    return left_out(study.design, {size: shape_for(size, rule) for size in design_sizes(study.design)})


def duration(seconds: float) -> str:
    """Time as people say it: `45 s`, `8.0 min`, `3.2 h`, `12 d`."""
    for unit, scale in (("d", 86_400 * 3), ("h", 5_400), ("min", 90)):
        if seconds >= scale:
            return f"{seconds / {'d': 86_400, 'h': 3_600, 'min': 60}[unit]:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def disk(num_bytes: float) -> str:
    """Bytes with a decimal unit: `61.1 MB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one document. Keys are added, never renamed, within a `format`."""
    return {
        "format": PLAN_FORMAT,
        "study": plan.study_name,
        "study_digest": plan.study_digest,
        "corpus_digest": plan.corpus_digest,
        "fingerprints_final": plan.corpus_digest != UNPREPARED,
        "conventions": {
            "params": "matrix-product weights: unembedding included, input embedding not",
            "train_flops": "exact: attention scores included, no causal halving, whole path 0 -> D",
        },
        "runs": [_run_json(plan, run) for run in plan.runs],
        "segments": [_segment_json(planned) for planned in plan.segments.values()],
        "totals": {
            "from_scratch_flops": plan.from_scratch_flops,
            "shared_flops": plan.shared_flops,
            "estimate_source": plan.estimate_source,
            "device_hours": _rounded(plan.device_hours),
            "longest_path_s": _rounded(plan.longest_path_s),
            "price": _rounded(plan.price) if plan.price is not None else None,
            "retained_bytes": plan.retained_bytes,
        },
    }


def _run_json(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    execution = plan.execution_of(run)
    return {
        "name": run.name,
        "role": run.role,
        "requested": {"params": run.requested_params, "tokens": run.requested_tokens},
        "shape": run.spec.shape.model_dump(),
        "params": {
            "default": run.params.matmul,
            "total": run.params.total,
            "non_embedding": run.params.non_embedding,
            "embedding": run.params.embedding,
            "attention": run.params.attention,
            "mlp": run.params.mlp,
            "norm": run.params.norm,
            "head": run.params.head,
        },
        "tokens": run.tokens,
        "train_flops": run.train_flops,
        "batch_tokens": run.spec.batch_tokens,
        "steps": run.spec.total_steps,
        "recipe": run.spec.recipe.model_dump(),
        "seed": run.spec.seed,
        "data_seed": run.spec.data_seed,
        "segments": list(run.segments),
        "execution": execution.model_dump(),
        "memory_bytes_per_rank": rank_memory(run.spec, execution).total_bytes,
        "path_s": _rounded(plan.path_s(run)),
        "notes": list(run.notes),
    }


def _segment_json(planned: PlannedSegment) -> dict[str, Any]:
    return {
        **planned.segment.model_dump(),
        "name": planned.name,
        "role": planned.role,
        "runs": list(planned.runs),
        "is_final": planned.is_final,
        "train_flops": planned.train_flops,
        "estimated_s": _rounded(planned.estimated_s),
        "state_bytes": planned.state_bytes,
    }


def _rounded(value: float) -> float:
    """Estimates to six digits, so that the document does not differ in the last bit between machines."""
    return float(f"{value:.6g}")


def _heading(plan: Plan, study: Study) -> str:
    fitted = sum(run.role == "fit" for run in plan.runs)
    held_out = len(plan.runs) - fitted
    corpus, recipe = study.corpus, study.recipe
    prepared = "prepared" if plan.corpus_digest != UNPREPARED else "not prepared yet"
    lines = [
        f"study {plan.study_name}" + (f": {study.question}" if study.question else ""),
        f"  design  {study.design.kind}, {len(plan.runs)} runs: {fitted} to fit, {held_out} held out for the forecast",
        f"  corpus  {corpus.source}, tokenizer {corpus.tokenizer}, vocabulary {study.vocab_size}, {prepared}",
        f"  recipe  {_schedule(study)}; {study.model.parametrization} from width {study.model.base_width} and "
        f"{study.model.base_layers} layers; {recipe.precision}",
        f"  digest  {plan.study_digest}",
    ]
    if plan.corpus_digest == UNPREPARED:
        lines.append("  (fingerprints of states follow when the corpus is prepared)")
    return "\n".join(lines)


def _schedule(study: Study) -> str:
    recipe = study.recipe
    warmup = (
        f"rule {recipe.warmup_steps.rule}" if isinstance(recipe.warmup_steps, Rule) else f"{recipe.warmup_steps} steps"
    )
    decay = f", decay {recipe.decay_fraction:.0%} of D" if recipe.schedule == "wsd" else ""
    return f"{recipe.schedule}, warm-up {warmup}{decay}"


def _runs_table(plan: Plan) -> str:
    header = (
        *("run", "role", "width", "layers", "heads", "mlp", "N", "N all", "N body", "D", "D/N", "C", "6ND"),
        *("batch", "steps", "peak lr", "gang", "memory", "time"),
    )
    rows = [_run_row(plan, run) for run in plan.runs[:MOST_ROWS]]
    table = _aligned([header, *rows], left_columns=2)
    hidden = len(plan.runs) - MOST_ROWS
    return table + (f"\n... and {hidden} more runs; `--json` has all" if hidden > 0 else "")


def _run_row(plan: Plan, run: PlannedRun) -> tuple[str, ...]:
    spec, shape, execution = run.spec, run.spec.shape, plan.execution_of(run)
    accumulation = execution.accumulation_steps(spec.recipe.batch_sequences)
    return (
        run.name,
        run.role,
        str(shape.width),
        str(shape.num_layers),
        str(shape.num_heads),
        str(shape.mlp_width),
        short_number(run.params.matmul),
        short_number(run.params.total),
        short_number(run.params.non_embedding),
        short_number(run.tokens),
        f"{run.tokens / run.params.matmul:.3g}",
        scientific(run.train_flops),
        scientific(SIX * run.params.matmul * run.tokens),
        short_number(spec.batch_tokens),
        str(spec.total_steps),
        f"{spec.recipe.learning_rate:.3g}",
        f"{execution.world_size}x{execution.micro_batch_sequences}x{accumulation}",
        disk(rank_memory(spec, execution).total_bytes),
        duration(plan.path_s(run)),
    )


def _totals(plan: Plan, study: Study) -> str:
    share = plan.shared_flops / plan.from_scratch_flops
    kinds = Counter(planned.segment.kind for planned in plan.segments.values())
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    device = next(iter(plan.segments.values())).execution.device
    basis = (
        "from measured speeds"
        if plan.estimate_source == "measured"
        else "a guess: no run of this kind was measured here yet"
    )
    held_out = sorted({run.requested_params for run in plan.runs if run.role == "target"})
    lines = [
        f"  segments   {len(plan.segments)} ({parts})",
        f"  compute    {scientific(plan.shared_flops)} FLOPs with shared trunks, {scientific(plan.from_scratch_flops)} "
        f"from scratch ({share:.0%})",
        f"  time       {duration(plan.device_hours * 3600)} of one device ({device}), at least "
        f"{duration(plan.longest_path_s)} on any number ({basis})",
    ]
    if plan.price is not None:
        price = study.execution.price_per_device_hour
        lines.append(f"  price      {plan.price:.2f} at {price:g} per device hour")
    lines.append(
        f"  disk       {disk(plan.retained_bytes)} for {len(plan.segments)} kept states: fork points, ends of trunks "
        f"and finals, {STATE_BYTES_PER_PARAM} bytes a parameter" + _disk_bound(study)
    )
    if held_out:
        sizes = ", ".join(short_number(size) for size in held_out)
        lines.append(f"  held out   size {sizes}: trained only after its forecast is frozen")
    return "\n".join(["totals", *lines])


def _disk_bound(study: Study) -> str:
    bound = study.execution.disk_gb
    return f" (bound {disk(bound * BYTES_PER_GB)})" if bound is not None else ""


def _notes(plan: Plan) -> tuple[str, ...]:
    """What rounding and caps did, each note once with the number of runs it holds for."""
    counted = Counter(note for run in plan.runs for note in run.notes)
    return tuple(note if count == 1 else f"{note}: {count} runs" for note, count in counted.items())


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  - {line}" for line in lines)]) if lines else ""


def _aligned(rows: Sequence[Sequence[str]], left_columns: int) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
