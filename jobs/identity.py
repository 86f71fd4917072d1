"""Fingerprints: the one canonical encoding of values, and the identity of training states made of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from jobs.spec import RunSpec

# Raised when code changes what is computed for the same RunSpec: finished states are then never mixed with new ones.
NUMERICS_VERSION = 1

FINGERPRINT_HEX_DIGITS = 32


def canonical(value: Any) -> str:
    """Canonical JSON text of a value: sorted keys, no spaces, floats by shortest round trip.

    Raises TypeError on anything without a stable canonical form (sets, objects, non-string keys) and ValueError on
    NaN or infinity, rather than to fall back on `repr`.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        # 1.0 and 1 must not differ by how a person wrote them.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} of type {type(key).__name__} has no canonical form")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form")


def digest(value: Any) -> str:
    """sha256 of the canonical form, shortened to 32 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()[:FINGERPRINT_HEX_DIGITS]


def _identity_without_schedule(spec: RunSpec) -> dict[str, Any]:
    fields = {name: getattr(spec, name) for name in RunSpec.model_fields if name != "schedule"}
    return {"numerics_version": NUMERICS_VERSION, **fields}


def state_identity(spec: RunSpec, step: int) -> dict[str, Any]:
    """The fields whose hash names the state at `step`: how [0, step) was cut into segments does not enter."""
    return {**_identity_without_schedule(spec), "schedule": spec.schedule.prefix(step), "step": step}


def state_fingerprint(spec: RunSpec, step: int) -> str:
    """Name of the training state at `step` of a run."""
    return digest(state_identity(spec, step))


def curve_fingerprint(spec: RunSpec, step: int) -> str:
    """Name of the curve on which the points just before `step` lie.

    On a constant piece the curve is open-ended, so that a trunk keeps its name when a longer horizon continues it;
    elsewhere it is the schedule through the piece that covers the point.
    """
    prefix = spec.schedule.prefix(step)
    last = prefix.pieces[-1]
    pieces: list[Any] = list(prefix.pieces[:-1])
    if last.kind == "constant":
        pieces.append({"kind": "constant", "start_step": last.start_step, "value": last.start_value})
    else:
        pieces.append(last)
    return digest({**_identity_without_schedule(spec), "curve": pieces})


def differing_fields(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Human-readable differences of two identities, one line a field: `recipe.learning_rate: 0.012 != 0.01`."""

    def walk(path: str, left: Any, right: Any) -> list[str]:
        if isinstance(left, dict) and isinstance(right, dict):
            return [
                line
                for key in sorted(left.keys() | right.keys())
                for line in walk(f"{path}.{key}" if path else key, left.get(key), right.get(key))
            ]
        return [] if left == right else [f"{path}: {left!r} != {right!r}"]

    return walk("", _plain(expected), _plain(found))
