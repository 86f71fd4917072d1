"""Closed forms agree with the constructed model and with torch's own counter."""

from pathlib import Path

import pytest
import torch
from conftest import make_run_spec, make_shape
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.accounting import count_parameters, train_flops_per_token, training_memory
from jobs.model import Decoder, build_model
from jobs.spec import Execution, Shape
from orchestrator.loading import load_study
from orchestrator.plan import build_plan

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))

SHAPES = [
    make_shape(width=16),
    make_shape(width=48, num_layers=3, sequence_length=64),
    make_shape(width=64, num_heads=4, mlp_width=176, vocab_size=257, sequence_length=128),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"width{shape.width}")
def test_parameters_equal_those_of_the_constructed_model(shape: Shape) -> None:
    model = build_model(make_run_spec(shape=shape))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    count = count_parameters(shape)
    assert count.total == sum(sizes.values())
    assert count.norm == sum(size for name, size in sizes.items() if "norm" in name)
    assert count.embedding == sizes["embedding.weight"]
    assert count.head == sizes["head.weight"]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"width{shape.width}")
def test_training_flops_are_within_one_percent_of_the_counter(shape: Shape) -> None:
    model = build_model(make_run_spec(shape=shape))
    tokens = torch.randint(0, shape.vocab_size, (2, shape.sequence_length))
    # The counter sees no fused attention on the CPU, hence the math backend.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens).mean().backward()
    assert counter.get_total_flops() == pytest.approx(train_flops_per_token(shape) * tokens.numel(), rel=0.01)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shape_of_a_shipped_study_is_counted_as_it_is_built(config: Path) -> None:
    plan = build_plan(load_study(config))
    specs = {run.spec.shape: run.spec for run in plan.runs}
    for shape, spec in specs.items():
        # On the meta device the largest shapes take no memory, and the counter still sees every product.
        with torch.device("meta"):
            model = Decoder(shape, spec.parametrization, spec.recipe)
            tokens = torch.zeros((1, shape.sequence_length), dtype=torch.long)
        assert count_parameters(shape).total == sum(parameter.numel() for parameter in model.parameters())
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(tokens, tokens).mean().backward()
        assert counter.get_total_flops() == pytest.approx(train_flops_per_token(shape) * tokens.numel(), rel=0.01)


def test_memory_of_states_is_shared_among_ranks_as_the_stage_says() -> None:
    shape = make_shape(width=64)
    total = count_parameters(shape).total

    def states(stage: int, ranks: int) -> int:
        execution = Execution(world_size=ranks, micro_batch_sequences=1, zero_stage=stage)
        return training_memory(shape, execution).states_bytes

    assert states(1, 1) == 24 * total
    assert states(1, 4) == 12 * total
    assert states(2, 4) == 9 * total
    assert states(3, 4) == 6 * total
