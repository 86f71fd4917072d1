"""CUDA devices as the driver's tool prints them."""

from __future__ import annotations

import pytest

from cluster.devices import parse, visible

TABLE = """\
0, GPU-aaaa, 81559, NVIDIA H100 80GB HBM3
1, GPU-bbbb, 81559, NVIDIA H100 80GB HBM3
"""


def test_rows_are_devices_with_their_memory() -> None:
    first, second = parse(TABLE)
    assert (first.index, first.uuid, first.name) == ("0", "GPU-aaaa", "NVIDIA H100 80GB HBM3")
    assert second.memory_bytes == 81559 * 2**20


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb"]),
        ("", []),
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("7", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_chooses(chosen: str | None, uuids: list[str]) -> None:
    assert [device.uuid for device in visible(parse(TABLE), chosen)] == uuids
