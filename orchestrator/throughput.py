"""How fast a shape trains: measured tokens per second where this place has some, else a guess that says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from jobs.accounting import train_flops_per_token
from jobs.spec import Execution, Frozen, Shape
from jobs.storage import write_atomically

Source = Literal["measured", "guess"]

# Guesses, to be replaced by a measurement of the first run (`record`). One CPU thread in fp32 reached 24 to 54 GFLOP/s
# at 45k to 2.8M parameters; a GPU is taken at 40 % of 125 TFLOP/s.
GUESSED_FLOPS_PER_S = {"cpu": 3e10, "cuda": 5e13}

# Guess: Python, optimizer and DeepSpeed for one step of one layer and of the rest, whatever the width.
GUESSED_STEP_S = 4e-3
GUESSED_LAYER_S = 1.5e-3

# A second measurement of the same case moves the stored value by this much, so that one bad run is forgotten.
NEW_WEIGHT = 0.5


class Measurement(Frozen):
    """Tokens per second of one shape under one execution."""

    shape: Shape
    device: Literal["cpu", "cuda"]
    world_size: int = Field(gt=0)
    threads_per_rank: int = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    tokens_per_s: float = Field(gt=0)

    def same_case(self, other: Measurement) -> bool:
        """Whether both measure the same thing."""
        return self.model_dump(exclude={"tokens_per_s"}) == other.model_dump(exclude={"tokens_per_s"})


@dataclass(frozen=True)
class Estimate:
    """Expected speed, and where it comes from."""

    tokens_per_s: float
    source: Source


@dataclass(frozen=True)
class Throughput:
    """What was measured in this place."""

    measurements: tuple[Measurement, ...] = ()

    def estimate(self, shape: Shape, execution: Execution, batch_tokens: int) -> Estimate:
        """Speed of a shape under an execution.

        The measurement of the same device, world size and threads that is nearest in FLOPs per step (log distance) is
        scaled by FLOPs per token; without one, step time = fixed cost + FLOPs / guessed rate.
        """
        flops = train_flops_per_token(shape)
        alike = [
            measured
            for measured in self.measurements
            if (measured.device, measured.world_size, measured.threads_per_rank)
            == (execution.device, execution.world_size, execution.threads_per_rank)
        ]
        if not alike:
            return Estimate(_guess(shape, execution, batch_tokens), "guess")

        def distance(measured: Measurement) -> float:
            return abs(math.log(train_flops_per_token(measured.shape) * measured.batch_tokens / (flops * batch_tokens)))

        nearest = min(alike, key=distance)
        return Estimate(nearest.tokens_per_s * train_flops_per_token(nearest.shape) / flops, "measured")

    def with_measurement(self, new: Measurement) -> Throughput:
        """The same with one measurement more; one of the same case is averaged with it."""
        others = tuple(known for known in self.measurements if not known.same_case(new))
        before = next((known for known in self.measurements if known.same_case(new)), new)
        speed = (1 - NEW_WEIGHT) * before.tokens_per_s + NEW_WEIGHT * new.tokens_per_s
        return Throughput((*others, new.model_copy(update={"tokens_per_s": speed})))


def load_throughput(path: Path) -> Throughput:
    """Measurements stored at `path`, none if there is no such file. Raises ValueError if the file is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Throughput()
    try:
        stored: Any = json.loads(text)
        return Throughput(tuple(Measurement.model_validate(entry) for entry in stored["measurements"]))
    except (json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not a table of measured speeds. Delete it; the next run measures them anew"
        ) from error


def record(path: Path, measurement: Measurement) -> None:
    """Add one measurement to the file."""
    throughput = load_throughput(path).with_measurement(measurement)
    entries = [entry.model_dump() for entry in throughput.measurements]
    write_atomically(path, json.dumps({"measurements": entries}, indent=1, sort_keys=True) + "\n")


def _guess(shape: Shape, execution: Execution, batch_tokens: int) -> float:
    threads = execution.threads_per_rank if execution.device == "cpu" else 1
    flops_per_s = GUESSED_FLOPS_PER_S[execution.device] * execution.world_size * threads
    passes = max(1, batch_tokens // (execution.world_size * execution.micro_batch_sequences * shape.sequence_length))
    fixed_s = passes * (GUESSED_STEP_S + GUESSED_LAYER_S * shape.num_layers)
    return batch_tokens / (fixed_s + batch_tokens * train_flops_per_token(shape) / flops_per_s)
