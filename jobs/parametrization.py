"""How initialisation, learning rate, weight decay and epsilon of each tensor follow the shape.

`completep` (default) keeps the best learning rate in place across width and depth; `mup` across width alone; `sp` is
the common practice that does neither. Table 1 of Dey et al. 2025 (arXiv 2505.01618), Adam's epsilon completed as in
arXiv 2512.22382; the unembedding is in multiplier form, so its epsilon scales with its gradient, 1/width.

With m_N = width / base_width, m_L = layers / base_layers, s = init_std, eta = learning_rate, lambda = weight_decay:

    tensor        init std           learning rate     weight decay   epsilon
    embedding     s                  eta               lambda         eps / m_N
    hidden        s m_N^-1/2         eta / m_N         lambda m_N     eps / (m_N m_L)
    block norms   1                  eta               0              eps / (m_N m_L)
    final norm    1                  eta               0              eps
    head          s                  eta               lambda         eps / m_N

(completep: residual adds x + F(x) / m_L, logits divided by m_N. mup: m_L = 1 throughout. sp: m_N = m_L = 1, and
the two matrices that write to the residual stream start at s / sqrt(2 layers), Radford et al. 2019.)
The head size is fixed by the shape rule, so attention needs no width rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.spec import Parametrization, Recipe, RunSpec, Shape

if TYPE_CHECKING:
    from torch import nn

BLOCK_MATRICES = ("qkv", "attention_out", "gate_up", "mlp_out")
BLOCK_NORMS = ("attention_norm", "query_norm", "key_norm", "mlp_norm")
RESIDUAL_WRITERS = ("attention_out", "mlp_out")


@dataclass(frozen=True)
class TensorRule:
    """What applies to one tensor. `init_std` None: a gain, starting at 1. Scales multiply the recipe's values."""

    init_std: float | None
    learning_rate_scale: float
    weight_decay_scale: float
    epsilon_scale: float


@dataclass(frozen=True)
class ForwardMultipliers:
    """Constants in the forward pass: after the embedding, on each residual add, before the head."""

    embedding: float
    residual: float
    output: float


def _ratios(shape: Shape, parametrization: Parametrization) -> tuple[float, float]:
    """(m_N, m_L) as this kind of parametrization sees them."""
    if parametrization.kind == "sp":
        return 1.0, 1.0
    width_ratio = shape.width / parametrization.base_width
    depth_ratio = shape.num_layers / parametrization.base_layers if parametrization.kind == "completep" else 1.0
    return width_ratio, depth_ratio


def forward_multipliers(shape: Shape, parametrization: Parametrization, recipe: Recipe) -> ForwardMultipliers:
    """Constants of the forward pass under a parametrization."""
    width_ratio, depth_ratio = _ratios(shape, parametrization)
    return ForwardMultipliers(
        embedding=recipe.embedding_multiplier,
        residual=1.0 / depth_ratio,
        output=recipe.output_multiplier / width_ratio,
    )


def tensor_rules(shape: Shape, parametrization: Parametrization, recipe: Recipe) -> dict[str, TensorRule]:
    """The rule of every tensor of the decoder, by parameter name."""
    width_ratio, depth_ratio = _ratios(shape, parametrization)
    std = recipe.init_std
    residual_std = std / (2 * shape.num_layers) ** 0.5 if parametrization.kind == "sp" else std / width_ratio**0.5
    block_epsilon = 1.0 / (width_ratio * depth_ratio)

    rules = {
        "embedding.weight": TensorRule(std, 1.0, 1.0, 1.0 / width_ratio),
        "final_norm.weight": TensorRule(None, 1.0, 0.0, 1.0),
        "head.weight": TensorRule(std, 1.0, 1.0, 1.0 / width_ratio),
    }
    for layer in range(shape.num_layers):
        for name in BLOCK_MATRICES:
            matrix_std = residual_std if name in RESIDUAL_WRITERS else std / width_ratio**0.5
            rules[f"blocks.{layer}.{name}.weight"] = TensorRule(
                matrix_std, 1.0 / width_ratio, width_ratio, block_epsilon
            )
        for name in BLOCK_NORMS:
            rules[f"blocks.{layer}.{name}.weight"] = TensorRule(None, 1.0, 0.0, block_epsilon)
    return rules


def optimizer_groups(model: nn.Module, spec: RunSpec) -> list[dict[str, Any]]:
    """Parameter groups for torch's AdamW: tensors under equal rules share a group.

    Each group carries `names` and `learning_rate_scale` beside torch's own keys; the training loop sets
    lr = recipe.learning_rate * schedule.multiplier(step) * learning_rate_scale before each step.
    Raises ValueError if a tensor of the model has no rule.
    """
    rules = tensor_rules(spec.shape, spec.parametrization, spec.recipe)
    groups: dict[tuple[float, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if name not in rules:
            raise ValueError(f"parametrization {spec.parametrization.kind} has no rule for the tensor {name}")
        rule = rules[name]
        key = (rule.learning_rate_scale, rule.weight_decay_scale, rule.epsilon_scale)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "lr": 0.0,
                "weight_decay": spec.recipe.weight_decay * rule.weight_decay_scale,
                "eps": spec.recipe.epsilon * rule.epsilon_scale,
                "betas": (spec.recipe.beta1, spec.recipe.beta2),
                "learning_rate_scale": rule.learning_rate_scale,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
