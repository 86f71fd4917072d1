"""What DeepSpeed is told is known to the last key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.engine_config import deepspeed_config
from jobs.spec import Execution
from tests.jobs.tiny_runs import tiny_spec

GOLDEN = Path(__file__).parents[1] / "golden"


def test_configuration_of_two_cpu_ranks_is_the_one_on_record() -> None:
    execution = Execution(world_size=2, micro_batch_sequences=2, zero_stage=1)
    found = json.dumps(deepspeed_config(tiny_spec(gradient_clip=0.5), execution), indent=2)
    assert found + "\n" == (GOLDEN / "deepspeed_cpu_fp32_stage1.json").read_text()


def test_configuration_of_a_gpu_in_bf16_is_the_one_on_record() -> None:
    spec = tiny_spec().model_copy(update={"precision": "bf16"})
    execution = Execution(micro_batch_sequences=8, zero_stage=3, device="cuda")
    found = json.dumps(deepspeed_config(spec, execution), indent=2)
    assert found + "\n" == (GOLDEN / "deepspeed_cuda_bf16_stage3.json").read_text()


def test_stage_0_is_refused() -> None:
    execution = Execution(micro_batch_sequences=8).model_copy(update={"zero_stage": 0})
    with pytest.raises(ValueError, match=r"zero_stage: 0 is refused.*Use 1, 2 or 3"):
        deepspeed_config(tiny_spec(), execution)


def test_batch_that_the_gang_cannot_cut_is_refused() -> None:
    execution = Execution(world_size=3, micro_batch_sequences=2)
    with pytest.raises(ValueError, match="cannot be split over 3 ranks x 2 per micro-batch"):
        deepspeed_config(tiny_spec(), execution)
