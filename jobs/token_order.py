"""The order of training tokens: a pure function of (data_seed, step), without loader state or ranks.

Training tokens are cut into windows of sequence_length + 1 tokens at stride sequence_length (the last token of one
window is the first of the next, so that every token is predicted once an epoch). Each epoch visits every window once,
in the order of a permutation keyed by (data_seed, epoch). Step i consumes the positions i*B .. (i+1)*B - 1 of that
endless sequence of windows, whatever the number of ranks, the horizon, or the step that training was resumed from.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Eight rounds of a Feistel network with a full-avalanche round function. Four already give a permutation that no
# statistical test tells from a random one (Luby and Rackoff 1988, with random round functions); the rest is margin.
FEISTEL_ROUNDS = 8

# Positions whose windows are computed at once and kept: a call for one small batch would be mostly overhead.
BLOCK_POSITIONS = 1 << 16

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


def window_ids(
    data_seed: int, step: int, batch_sequences: int, num_windows: int, rows: slice = slice(None)
) -> npt.NDArray[np.int64]:
    """Windows that rows `rows` of the global batch of `step` read: int64 [rows], each in [0, num_windows).

    Raises ValueError if there is no window, or a number is negative.
    """
    if num_windows < 1:
        raise ValueError(f"an order needs at least 1 window, got {num_windows}")
    if data_seed < 0 or step < 0 or batch_sequences < 1:
        raise ValueError(
            f"data_seed {data_seed} and step {step} must be 0 or more, batch_sequences {batch_sequences} 1 or more"
        )
    positions = np.arange(step * batch_sequences, (step + 1) * batch_sequences, dtype=np.int64)[rows]
    epochs, inside = np.divmod(positions, num_windows)
    blocks = inside // BLOCK_POSITIONS
    windows = np.empty_like(positions)
    for epoch, block in sorted(set(zip(epochs.tolist(), blocks.tolist(), strict=True))):
        chosen = (epochs == epoch) & (blocks == block)
        windows[chosen] = _block(data_seed, epoch, num_windows, block)[inside[chosen] - block * BLOCK_POSITIONS]
    return windows


@lru_cache(maxsize=16)
def _block(data_seed: int, epoch: int, num_windows: int, block: int) -> npt.NDArray[np.int64]:
    start = block * BLOCK_POSITIONS
    stop = min(start + BLOCK_POSITIONS, num_windows)
    permuted = permute(np.arange(start, stop, dtype=np.uint64), num_windows, key=(data_seed, epoch))
    permuted.setflags(write=False)
    return permuted


def permute(positions: npt.NDArray[np.uint64], size: int, key: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Images of `positions` under the permutation of [0, size) that `key` names: int64, same shape.

    A Feistel network over the smallest even number of bits that holds `size`, walked until it lands inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Own code rather than numpy's shuffle, whose
    stream may change between releases and needs the whole epoch in memory.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(key)
    images = _feistel(positions, half_bits, round_keys)
    outside = np.flatnonzero(images >= size)
    while outside.size:
        images[outside] = _feistel(images[outside], half_bits, round_keys)
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, round_keys: list[int]) -> npt.NDArray[np.uint64]:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(round_key)) & mask)
    return (left << shift) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # Finaliser of splitmix64 (Steele, Lea and Flood 2014); products wrap modulo 2**64 by intent.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(key: tuple[int, int]) -> list[int]:
    """Round keys by splitmix64 from both numbers of the key, the second mixed in after the first."""
    state = 0
    for number in key:
        state = int(_mix(np.array([(state ^ number) + _GOLDEN_GAMMA & _MASK_64], dtype=np.uint64))[0])
    counters = [(state + (index + 1) * _GOLDEN_GAMMA) & _MASK_64 for index in range(FEISTEL_ROUNDS)]
    return [int(value) for value in _mix(np.array(counters, dtype=np.uint64))]
