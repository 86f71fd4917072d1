"""Fills in gang requests: which entry, modules and environment the ranks of an execution need."""

from __future__ import annotations

from cluster.resources import GangRequest
from jobs.spec import Execution

ENTRY = "jobs.entry:main"

# Imported once by each fork server, so that an attempt starts in a tenth of a second. Those after deepspeed itself are
# what it imports at the first ZeRO engine and at the first checkpoint; the Muon modules take 2 s.
PRELOAD = (
    "torch",
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "safetensors.torch",
    "safetensors.numpy",
    "jobs.entry",
)


def gang_request(gang_id: str, execution: Execution) -> GangRequest:
    """What a gang for this execution asks of the cluster."""
    on_cpu = execution.device == "cpu"
    threads = str(execution.threads_per_rank)
    environment = {
        # Left to itself each rank takes every core of the machine.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "DS_ACCELERATOR": execution.device,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not on_cpu:
        # A fork server must not touch CUDA, or its children cannot use it: devices are counted through NVML.
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        # cuBLAS is deterministic only with a workspace of fixed size.
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return GangRequest(
        gang_id=gang_id,
        world_size=execution.world_size,
        entry=ENTRY,
        preload=PRELOAD,
        environment=environment,
        cpus_per_rank=float(execution.threads_per_rank),
        devices_per_rank=0.0 if on_cpu else 1.0,
    )
