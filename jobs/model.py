"""The decoder: RMSNorm, rotary positions, QK-norm, SwiGLU, no biases, untied embeddings.

Shapes in names: B sequences, T tokens, D width, H heads, K head size, M MLP width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from jobs.parametrization import forward_multipliers, tensor_rules
from jobs.spec import Parametrization, Recipe, RunSpec, Shape

ROTARY_BASE = 10_000.0  # Su et al. 2021, sec. 3.3


class Block(nn.Module):
    """One pre-norm residual block: x + m F(norm x) for attention, then for the MLP."""

    def __init__(self, shape: Shape, residual_multiplier: float) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.head_dim = shape.head_dim
        self.residual_multiplier = residual_multiplier
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.attention_out = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.gate_up = nn.Linear(shape.width, 2 * shape.mlp_width, bias=False)
        self.mlp_out = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(batch, length, 3, self.num_heads, self.head_dim)
        query_BHTK, key_BHTK, value_BHTK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query_BHTK = _rotate(self.query_norm(query_BHTK), cos_TK, sin_TK)
        key_BHTK = _rotate(self.key_norm(key_BHTK), cos_TK, sin_TK)
        mixed_BHTK = F.scaled_dot_product_attention(query_BHTK, key_BHTK, value_BHTK, is_causal=True)
        mixed_BTD = mixed_BHTK.transpose(1, 2).reshape(batch, length, width)
        x_BTD = torch.add(x_BTD, self.attention_out(mixed_BTD), alpha=self.residual_multiplier)
        gate_BTM, up_BTM = self.gate_up(self.mlp_norm(x_BTD)).chunk(2, dim=-1)
        return torch.add(x_BTD, self.mlp_out(F.silu(gate_BTM) * up_BTM), alpha=self.residual_multiplier)


class Decoder(nn.Module):
    """Decoder-only language model of one shape under one parametrization."""

    def __init__(self, shape: Shape, parametrization: Parametrization, recipe: Recipe) -> None:
        super().__init__()
        multipliers = forward_multipliers(shape, parametrization, recipe)
        self.shape = shape
        self.embedding_multiplier = multipliers.embedding
        self.output_multiplier = multipliers.output
        self.activation_checkpointing = False
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape, multipliers.residual) for _ in range(shape.num_layers))
        self.final_norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits, BTV."""
        x_BTD = self.embedding(tokens_BT) * self.embedding_multiplier
        cos_TK, sin_TK = _rotary_tables(tokens_BT.shape[1], self.shape.head_dim, x_BTD.device, x_BTD.dtype)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x_BTD = torch.utils.checkpoint.checkpoint(block, x_BTD, cos_TK, sin_TK, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cos_TK, sin_TK)
        logits_BTV: Tensor = self.head(self.final_norm(x_BTD) * self.output_multiplier)
        return logits_BTV

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, BT, in fp32; no reduction."""
        logits_BTV = self.logits(tokens_BT)
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(
            targets_BT
        )


@lru_cache(maxsize=8)
def _rotary_tables(length: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # Angles in fp32 whatever the model computes in: bf16 cannot hold positions beyond 256.
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles_TK = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles_TK.cos().to(dtype), angles_TK.sin().to(dtype)


def _rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK


def build_model(spec: RunSpec) -> Decoder:
    """The model of a run at initialisation: a pure function of its shape, parametrization, recipe and seed.

    Every tensor draws from a generator of its own, seeded by (seed, name), so that no tensor's start depends on which
    others exist or in which order they were made.
    """
    model = Decoder(spec.shape, spec.parametrization, spec.recipe)
    rules = tensor_rules(spec.shape, spec.parametrization, spec.recipe)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rule = rules[name]
            if rule.init_std is None:
                parameter.fill_(1.0)
                continue
            seed = int.from_bytes(hashlib.sha256(f"{spec.seed}:{name}".encode()).digest()[:8], "big") >> 1
            generator = torch.Generator().manual_seed(seed)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * rule.init_std)
    return model
