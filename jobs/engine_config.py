"""The JSON given to DeepSpeed: a pure function of run and gang, with every default that matters written out."""

from __future__ import annotations

from typing import Any

from jobs.spec import Execution, RunSpec

# Elements per reduction or gather. DeepSpeed's 5e8 is meant for models of billions; 5e7 fp32 elements are 200 MB.
BUCKET_ELEMENTS = 50_000_000

# Stage 3 keeps tensors up to this size whole on every rank: gathering a gain of 64 numbers costs more than it saves.
PERSISTENT_ELEMENTS = 100_000


def deepspeed_config(spec: RunSpec, execution: Execution) -> dict[str, Any]:
    """DeepSpeed's configuration of one run on one gang.

    Unknown top-level keys are ignored by DeepSpeed without a word, so this is the only place that writes them.
    Raises ValueError if the batch cannot be cut over the gang, or for a ZeRO stage other than 1, 2, 3: stage 0 in bf16
    takes a phantom optimizer step at construction (DeepSpeed issue 5104), and the whole grid takes one numeric path.
    """
    if execution.zero_stage not in (1, 2, 3):
        raise ValueError(
            f"execution.zero_stage: {execution.zero_stage} is refused, since stage 0 trains differently in bf16. "
            "Use 1, 2 or 3"
        )
    return {
        "train_batch_size": spec.recipe.batch_sequences,
        "train_micro_batch_size_per_gpu": execution.micro_batch_sequences,
        "gradient_accumulation_steps": execution.accumulation_steps(spec.recipe.batch_sequences),
        # DeepSpeed's own default is 1.0 since June 2026; 0 switches clipping off.
        "gradient_clipping": spec.recipe.gradient_clip,
        "bf16": {"enabled": spec.precision == "bf16"},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "prescale_gradients": False,
        "zero_optimization": {
            "stage": execution.zero_stage,
            # Both cost 5 to 10 % on the CPU, where there is no second stream to overlap with.
            "contiguous_gradients": execution.device == "cuda",
            "overlap_comm": execution.device == "cuda",
            "reduce_scatter": True,
            "round_robin_gradients": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "allgather_partitions": True,
            "sub_group_size": 1_000_000_000,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        },
        # The optimizer is a torch AdamW that we hand over, which DeepSpeed calls untested.
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
