"""Each rule reaches each tensor, and the coordinates of the network show it (slopes with width and depth)."""

import math

import numpy as np
import pytest
import torch
from conftest import make_run_spec
from torch import Tensor

from jobs.model import Decoder, build_model
from jobs.parametrization import forward_multipliers, optimizer_groups, tensor_rules
from jobs.spec import RunSpec, Shape


def spec_of(kind: str, width: int, num_layers: int, seed: int = 0) -> RunSpec:
    shape = Shape(
        vocab_size=64,
        width=width,
        num_layers=num_layers,
        num_heads=width // 16,
        mlp_width=4 * width,
        sequence_length=32,
    )
    recipe = {"learning_rate": 2e-3, "init_std": 0.1, "weight_decay": 0.1, "epsilon": 1e-12}
    return make_run_spec(shape=shape, parametrization=kind, recipe=recipe, seed=seed)


def test_every_tensor_of_the_model_has_the_rule_of_the_table() -> None:
    spec = spec_of("completep", width=64, num_layers=8)  # m_N = 4, m_L = 4 against base 16 x 2
    groups = {name: group for group in optimizer_groups(build_model(spec), spec) for name in group["names"]}
    hidden, norm = groups["blocks.3.qkv.weight"], groups["blocks.3.query_norm.weight"]
    assert hidden["learning_rate_scale"] == pytest.approx(1 / 4)
    assert hidden["weight_decay"] == pytest.approx(0.1 * 4)
    assert hidden["eps"] == pytest.approx(1e-12 / 16)
    assert (norm["learning_rate_scale"], norm["weight_decay"]) == (1.0, 0.0)
    for name in ("embedding.weight", "head.weight"):
        assert groups[name]["learning_rate_scale"] == 1.0
        assert groups[name]["weight_decay"] == pytest.approx(0.1)
        assert groups[name]["eps"] == pytest.approx(1e-12 / 4)
    assert forward_multipliers(spec.shape, spec.parametrization, spec.recipe).residual == pytest.approx(1 / 4)
    assert forward_multipliers(spec.shape, spec.parametrization, spec.recipe).output == pytest.approx(1 / 4)


@pytest.mark.parametrize("kind", ["sp", "mup", "completep"])
def test_tensors_start_with_the_deviation_that_their_rule_states(kind: str) -> None:
    spec = spec_of(kind, width=128, num_layers=4)
    rules = tensor_rules(spec.shape, spec.parametrization, spec.recipe)
    for name, parameter in build_model(spec).named_parameters():
        std = rules[name].init_std
        if std is None:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            # Standard error of a deviation over n draws: 1 / sqrt(2 n); four of them.
            assert parameter.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * parameter.numel()))


def test_kinds_agree_at_the_base_shape() -> None:
    specs = [spec_of(kind, width=16, num_layers=2) for kind in ("mup", "completep")]
    rules = [tensor_rules(spec.shape, spec.parametrization, spec.recipe) for spec in specs]
    assert rules[0] == rules[1]


def residual_after_steps(spec: RunSpec, tokens: Tensor, num_steps: int) -> tuple[Tensor, Decoder]:
    """Last residual stream after some steps on one batch, and the model."""
    model = build_model(spec)
    optimizer = torch.optim.AdamW(optimizer_groups(model, spec))
    for group in optimizer.param_groups:
        group["lr"] = spec.recipe.learning_rate * group["learning_rate_scale"]
    for _ in range(num_steps):
        model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    seen: list[Tensor] = []
    handle = model.final_norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(tokens[:, :-1], tokens[:, 1:])
    handle.remove()
    return seen[0], model


def slope(kind: str, shapes: list[tuple[int, int]], along: int, measure: str) -> float:
    """Least-squares slope of log measure against log size, mean over two seeds."""
    tokens = torch.randint(0, 64, (8, 33), generator=torch.Generator().manual_seed(0))
    slopes = []
    for seed in (0, 1):
        values = []
        for width, num_layers in shapes:
            spec = spec_of(kind, width, num_layers, seed)
            before, start = residual_after_steps(spec, tokens, 0)
            after, end = residual_after_steps(spec, tokens, 5)
            if measure == "residual change":
                values.append((after - before).pow(2).mean().sqrt().item())
            else:
                weights = [(block.gate_up.weight, end.blocks[i].gate_up.weight) for i, block in enumerate(start.blocks)]
                values.append(float(np.mean([((b - a).norm() / a.norm()).item() for a, b in weights])))
        sizes = [shape[along] for shape in shapes]
        slopes.append(np.polyfit(np.log(sizes), np.log(values), 1)[0])
    return float(np.mean(slopes))


WIDTHS = [(64, 2), (128, 2), (256, 2), (512, 2)]
DEPTHS = [(64, 2), (64, 4), (64, 8), (64, 16)]


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_residual_change_does_not_depend_on_width(kind: str) -> None:
    """Threshold of the coordinate check: |slope| < 0.1 (seen elsewhere: -0.04)."""
    assert abs(slope(kind, WIDTHS, along=0, measure="residual change")) < 0.1


def test_residual_change_grows_with_width_under_standard_parametrization() -> None:
    """Threshold of the coordinate check: slope > 0.8 (seen elsewhere: 1.21)."""
    assert slope("sp", WIDTHS, along=0, measure="residual change") > 0.8


def test_relative_movement_of_weights_does_not_depend_on_depth_under_completep() -> None:
    """|slope| < 0.1 (seen elsewhere: -0.05): stable in depth and not lazy in depth."""
    assert abs(slope("completep", DEPTHS, along=1, measure="weight movement")) < 0.1
