"""The order of training tokens depends on (data_seed, step) and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jobs.token_order import BLOCK_POSITIONS, permute, window_ids


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097, 70_001])
def test_permute_visits_every_window_once(size: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, key=(0, 0))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_every_epoch_visits_every_window_once_across_batches_and_blocks() -> None:
    num_windows, batch = BLOCK_POSITIONS + 123, 4096
    steps = -(-num_windows // batch) + 1
    stream = np.concatenate([window_ids(3, step, batch, num_windows) for step in range(steps)])
    assert np.array_equal(np.sort(stream[:num_windows]), np.arange(num_windows))


def test_epochs_and_seeds_have_unlike_orders() -> None:
    num_windows = 1000
    orders = [window_ids(seed, epoch, num_windows, num_windows) for seed in (0, 1) for epoch in (0, 1)]
    for i, left in enumerate(orders):
        for right in orders[i + 1 :]:
            # Two independent permutations agree at Poisson(1) places; 12 or more has probability 1e-9.
            assert np.count_nonzero(left == right) < 12


def test_order_looks_random() -> None:
    order = window_ids(0, 0, 20_000, 20_000).astype(float)
    # Standard error of a correlation over 20,000 pairs is 0.007; five of them.
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.035
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.035
    # Of neighbours in the text, as many stay neighbours as in a random order: 2 of 20,000 expected.
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
def test_slices_of_ranks_make_up_the_same_batch(world_size: int) -> None:
    rows = 12 // world_size
    whole = window_ids(0, 7, 12, 50)
    cut = [window_ids(0, 7, 12, 50, slice(rank * rows, (rank + 1) * rows)) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(cut), whole)


def test_doubling_the_batch_consumes_the_same_stream() -> None:
    small = np.concatenate([window_ids(0, step, 8, 1000) for step in range(10)])
    large = np.concatenate([window_ids(0, step, 16, 1000) for step in range(5)])
    assert np.array_equal(small, large)


def test_order_is_the_same_in_another_process_and_release() -> None:
    # Written down once: a change of the order makes other runs of the same specs (raise NUMERICS_VERSION then).
    expected = [11, 90, 31, 88, 46, 85, 64, 41]
    assert window_ids(1, 2, 8, 100).tolist() == expected
    code = "from jobs.token_order import window_ids; print(window_ids(1, 2, 8, 100).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(expected)


def test_order_of_no_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 window, got 0"):
        window_ids(0, 0, 8, 0)
    with pytest.raises(ValueError, match="step -1"):
        window_ids(0, -1, 8, 10)
