"""Fixtures of the cluster's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.gangs import Attempts


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)
