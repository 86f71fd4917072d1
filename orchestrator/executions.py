"""Chooses how a run is carried out: device, ranks and micro-batch, within the memory of one rank. Pure."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Literal

from cluster.resources import Inventory
from jobs.accounting import MemoryEstimate, count_parameters, training_memory
from jobs.spec import Execution, RunSpec

if TYPE_CHECKING:
    from orchestrator.study import ExecutionSettings

BYTES_PER_GB = 10**9

# Sequences in one forward pass beyond which nothing is gained, whatever the memory.
LARGEST_MICRO_BATCH = 1 << 14


def choose_device(settings: ExecutionSettings, inventory: Inventory | None) -> Literal["cpu", "cuda"]:
    """The device asked for; auto means GPUs where the cluster is known to have some."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if inventory is not None and inventory.total_devices > 0 else "cpu"


def choose_execution(spec: RunSpec, settings: ExecutionSettings, device: Literal["cpu", "cuda"]) -> Execution:
    """Gang and micro-batch of a run.

    The world is the largest divisor of the batch that max_ranks and params_per_rank allow. The micro-batch is the
    largest divisor of a rank's share whose states and activations stay within memory_gb_per_rank; activations are
    recomputed in the backward pass only where none does without. Raises ValueError where none fits at all.
    """
    batch = spec.recipe.batch_sequences
    most_ranks = most_ranks_of(spec, settings)
    fixed = None if isinstance(settings.micro_batch_sequences, str) else settings.micro_batch_sequences
    passes = batch // fixed if fixed else batch
    world_size = max(ranks for ranks in range(1, min(most_ranks, passes) + 1) if passes % ranks == 0)
    share = batch // world_size
    candidates = (
        [fixed] if fixed else [count for count in range(min(share, LARGEST_MICRO_BATCH), 0, -1) if share % count == 0]
    )
    bound = settings.memory_gb_per_rank * BYTES_PER_GB
    for recompute, micro_batch in product((False, True), candidates):
        execution = Execution(
            world_size=world_size,
            micro_batch_sequences=micro_batch,
            zero_stage=settings.zero_stage,
            device=device,
            threads_per_rank=settings.threads_per_rank,
            activation_checkpointing=recompute,
        )
        memory = rank_memory(spec, execution)
        if memory.total_bytes <= bound:
            return execution
    needed, states = memory.total_bytes / BYTES_PER_GB, memory.states_bytes / BYTES_PER_GB
    raise ValueError(
        f"execution.memory_gb_per_rank: {settings.memory_gb_per_rank:g} GB do not hold a micro-batch of "
        f"{candidates[-1]} sequences at width {spec.shape.width} and {spec.shape.num_layers} layers, which needs "
        f"{needed:.3g} GB ({states:.3g} GB of them states). Raise it, or use zero_stage: 3 with more max_ranks"
    )


def most_ranks_of(spec: RunSpec, settings: ExecutionSettings) -> int:
    """Ranks that a run may have: small runs go side by side on devices of their own, large ones share several."""
    if settings.launcher == "inline":
        return 1
    if settings.params_per_rank is None:
        return settings.max_ranks
    return min(settings.max_ranks, ceil(count_parameters(spec.shape).matmul / settings.params_per_rank))


def rank_memory(spec: RunSpec, execution: Execution) -> MemoryEstimate:
    """Memory of one rank of a run."""
    return training_memory(spec.shape, execution, spec.precision)
