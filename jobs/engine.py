"""Trains one model with DeepSpeed: the only door to it.

Micro-batches, optimizer steps at a learning rate that we set, and the training state of each tensor by name, whole,
whatever the ZeRO stage and the number of ranks.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.engine_config import deepspeed_config
from jobs.model import build_model
from jobs.parametrization import optimizer_groups
from jobs.spec import Execution, RunSpec

MOMENTS = ("exp_avg", "exp_avg_sq")

# Process groups that DeepSpeed keeps in module variables.
DEEPSPEED_GROUPS = (
    "_WORLD_GROUP",
    "_DATA_PARALLEL_GROUP",
    "_MODEL_PARALLEL_GROUP",
    "_ZERO_PARAM_INTRA_PARALLEL_GROUP",
)


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step says. `applied` is False if DeepSpeed skipped it (a gradient was not finite)."""

    applied: bool
    gradient_norm: float


@dataclass(frozen=True)
class TensorState:
    """All that AdamW needs to go on with one tensor, in fp32 on the CPU: master weight, first and second moment."""

    parameter: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Engine:
    """A model of one run in training on one gang. Every method is collective.

    Needs the default process group (jobs.peers). One engine at a time in a process; `close` before the process group
    goes, or the next engine finds DeepSpeed holding on to groups that are gone.
    """

    def __init__(self, spec: RunSpec, execution: Execution, device: torch.device) -> None:
        self.device = device
        self._stage = execution.zero_stage
        self._learning_rate = spec.recipe.learning_rate
        self._micro_batch_sequences = execution.micro_batch_sequences
        model = build_model(spec)
        model.activation_checkpointing = execution.activation_checkpointing
        model.to(device)
        # Fused: one kernel for the many small operations of an Adam step.
        optimizer = torch.optim.AdamW(optimizer_groups(model, spec), fused=True)
        deepspeed = import_deepspeed(device.type)
        # DeepSpeed takes this for the index of the device, which is 0 where a rank sees its own device alone.
        os.environ["LOCAL_RANK"] = str(device.index or 0)
        self._deepspeed, _, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(spec, execution), dist_init_required=False
        )
        if device.type == "cpu" and torch.distributed.get_world_size() == 1:
            _reduce_alone_at_once()
        self._zero = self._deepspeed.optimizer
        self._adam = self._zero.optimizer
        self._module = self._deepspeed.module
        self._parameters = dict(self._module.named_parameters())

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    def backward(self, rows: Tensor) -> float:
        """Forward and backward of this rank's rows of the batch, [sequences, T + 1], micro-batch by micro-batch.

        Returns their mean loss in nats per token. The gradient waits for `step`.
        """
        total = 0.0
        micro_batches = torch.split(rows.to(self.device), self._micro_batch_sequences)
        for index, tokens in enumerate(micro_batches):
            if index:
                # DeepSpeed counts micro-batches by calls of step, which does nothing else before the last one.
                self._deepspeed.step()
            loss = self._deepspeed(tokens[:, :-1], tokens[:, 1:]).mean()
            self._deepspeed.backward(loss)
            total += float(loss.detach())
        return total / len(micro_batches)

    def step(self, multiplier: float) -> StepResult:
        """Average the gradient over ranks, clip, and take one AdamW step at `multiplier` of the peak learning rate."""
        for group in self._adam.param_groups:
            group["lr"] = self._learning_rate * multiplier * group["learning_rate_scale"]
        self._deepspeed.step()
        norm = self._deepspeed.get_global_grad_norm()
        return StepResult(applied=bool(self._deepspeed.was_step_applied()), gradient_norm=float(norm))

    def losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Loss of every target in nats, BT, without gradient."""
        self._module.eval()
        with torch.no_grad():
            loss_BT: Tensor = self._module(tokens_BT, targets_BT)
        self._module.train()
        return loss_BT

    def read_state(self, name: str) -> TensorState:
        """Whole state of one tensor, on every rank. Only after the first step or `write_states`."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        self._link_moments()
        return TensorState(
            safe_get_full_fp32_param(parameter).detach().cpu(),
            *(safe_get_full_optimizer_state(parameter, moment).detach().cpu() for moment in MOMENTS),
        )

    def write_states(self, states: Iterable[tuple[str, TensorState]], step: int) -> None:
        """Take over the state of every tensor, by name, `step` optimizer steps after initialisation."""
        for flat in self._flat_partitions():
            # torch makes Adam's state at its first step; made here, there need not have been one.
            self._adam.state[flat] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if self._stage == 3:
            self._write_partitions(states)
        else:
            self._write_flat(states)

    def _write_flat(self, states: Iterable[tuple[str, TensorState]]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._link_moments()
        for name, state in states:
            parameter = self._parameters[name]
            safe_set_full_fp32_param(parameter, state.parameter.to(self.device))
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, getattr(state, moment).to(self.device), moment)
        self._zero.update_lp_params()

    def _write_partitions(self, states: Iterable[tuple[str, TensorState]]) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        # The steps that DeepSpeed itself takes around an update: partition, write masters, copy to the working
        # weights, gather again what stays whole. Its safe_set_full_* does neither the last two nor padding.
        self._zero._partition_all_parameters()
        for name, state in states:
            parameter = self._parameters[name]
            safe_set_local_fp32_param(parameter, self._own_slice(parameter, state.parameter))
            for moment in MOMENTS:
                safe_set_local_optimizer_state(parameter, self._own_slice(parameter, getattr(state, moment)), moment)
        for index in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def _own_slice(self, parameter: Any, whole: Tensor) -> Tensor:
        """This rank's slice of a stage 3 tensor; the last slice is padded with zeros to the length of the others."""
        length = parameter.partition_numel()
        start = length * torch.distributed.get_rank()
        own = torch.zeros(length, dtype=torch.float32)
        part = whole.flatten()[start : start + length]
        own[: part.numel()] = part
        return own.to(self.device)

    def _flat_partitions(self) -> list[Tensor]:
        """The flat fp32 tensors on which this rank's Adam works."""
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        return [group["params"][0] for group in self._adam.param_groups]

    def _link_moments(self) -> None:
        # With several parameter groups DeepSpeed links names to moments after the first group's first step, when the
        # other groups have none yet, and never looks again.
        if self._stage != 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Let go of the model, and let DeepSpeed forget the process group."""
        import deepspeed.comm.comm
        import deepspeed.utils.groups

        self._deepspeed.destroy()
        deepspeed.comm.comm.cdb = None
        for name in DEEPSPEED_GROUPS:
            setattr(deepspeed.utils.groups, name, None)


def _reduce_alone_at_once() -> None:
    """Let a rank without peers keep what it would reduce.

    gloo hands even that to another thread, five times a step: a tenth of the step of a model of 15k parameters.
    """
    import deepspeed.comm.comm

    backend = deepspeed.comm.comm.cdb
    reduce_with_gloo = backend.all_reduce

    def all_reduce(tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        return reduce_with_gloo(tensor, op, group, async_op) if async_op else tensor

    backend.all_reduce = all_reduce


def import_deepspeed(device_type: str) -> Any:
    """DeepSpeed for "cpu" or "cuda". Raises ValueError if this process has it already for the other one."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    found = get_accelerator().device_name()
    if found != device_type:
        raise ValueError(
            f"execution.device: {device_type} was asked for, but DeepSpeed was loaded for {found} in this process. "
            f"Set DS_ACCELERATOR={device_type} in the environment of the workers"
        )
    # None of its own kernels: the one for CPU collectives would compile for two minutes at the first use on a machine,
    # though training never calls it, and asking which of them could be compiled takes 0.2 s in every process.
    deepspeed.ops.__compatible_ops__ = {}
    # Otherwise stage 3 on the CPU starts a process at every step, to count what it calls devices.
    os.environ.setdefault("LOCAL_SIZE", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Stage 3 calls collectives under names that torch 2.13 wants changed, and says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
