"""The DeepSpeed loop takes the steps that plain torch takes: past releases trained wrongly without saying so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.engine import Engine
from jobs.model import build_model
from jobs.parametrization import optimizer_groups
from jobs.peers import Peers
from jobs.spec import Execution, RunSpec
from tests.jobs.rank_processes import FolderLink, run_ranks
from tests.jobs.tiny_runs import TinyCorpus, tiny_spec

NUM_STEPS = 30


def batch(spec: RunSpec, step: int, rows: slice) -> torch.Tensor:
    return torch.from_numpy(TinyCorpus().batch(0, step, spec.recipe.batch_sequences, spec.shape.sequence_length, rows))


def plain_torch_curve(spec: RunSpec) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step of a loop that a reader can check."""
    model = build_model(spec)
    optimizer = torch.optim.AdamW(optimizer_groups(model, spec))
    losses, norms = [], []
    for step in range(NUM_STEPS):
        tokens = batch(spec, step, slice(None))
        loss = model(tokens[:, :-1], tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), spec.recipe.gradient_clip or 1e9)))
        for group in optimizer.param_groups:
            peak = spec.recipe.learning_rate * group["learning_rate_scale"]
            group["lr"] = peak * spec.schedule.multiplier(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def deepspeed_curves(
    rank: int, world_size: int, folder: Path, spec: RunSpec, executions: list[Execution]
) -> list[tuple[list[float], list[float]]]:
    """The same of the engine, for each way of carrying it out."""
    share = spec.recipe.batch_sequences // world_size
    curves = []
    link = FolderLink(folder)
    with Peers.join(link, rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        for execution in executions:
            engine = Engine(spec, execution, torch.device("cpu"))
            losses, norms = [], []
            for step in range(NUM_STEPS):
                own_loss = engine.backward(batch(spec, step, slice(rank * share, (rank + 1) * share)))
                losses.append(peers.sum([own_loss])[0] / world_size)
                norms.append(engine.step(spec.schedule.multiplier(step)).gradient_norm)
            curves.append((losses, norms))
            engine.close()
    return curves


def assert_follows_plain_torch(spec: RunSpec, executions: list[Execution]) -> None:
    losses, norms = plain_torch_curve(spec)
    assert losses[-1] < 0.8 * losses[0]
    for curves in run_ranks(deepspeed_curves, executions[0].world_size, spec, executions):
        for execution, (found_losses, found_norms) in zip(executions, curves, strict=True):
            # fp32 sums in another order: 1e-7 a step, and 30 steps of growth.
            assert found_losses == pytest.approx(losses, rel=1e-5), execution
            assert found_norms == pytest.approx(norms, rel=1e-4), execution


def test_two_ranks_of_deepspeed_follow_plain_torch_at_every_stage_and_accumulation() -> None:
    # A clip that bites in most steps.
    assert_follows_plain_torch(
        tiny_spec(gradient_clip=0.3),
        [
            Execution(world_size=2, micro_batch_sequences=4 // accumulation, zero_stage=stage)
            for stage in (1, 2, 3)
            for accumulation in (1, 2)
        ],
    )


def test_two_ranks_of_deepspeed_follow_plain_torch_without_clipping_and_with_activation_checkpointing() -> None:
    assert_follows_plain_torch(
        tiny_spec(gradient_clip=0.0),
        [
            Execution(world_size=2, micro_batch_sequences=4, zero_stage=stage, activation_checkpointing=True)
            for stage in (1, 3)
        ],
    )


def test_one_rank_of_deepspeed_follows_plain_torch() -> None:
    assert_follows_plain_torch(tiny_spec(gradient_clip=0.3), [Execution(micro_batch_sequences=8)])
