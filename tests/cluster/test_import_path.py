"""The PYTHONPATH that ranks get."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.import_path import import_path


def test_sources_are_on_it_and_the_interpreters_own_folders_are_not() -> None:
    entries = import_path().split(os.pathsep)
    assert str(Path(__file__).parents[2]) in entries
    assert sysconfig.get_path("purelib") not in entries
    assert sysconfig.get_path("stdlib") not in entries


def test_what_a_request_asks_for_comes_first_and_nothing_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path), "", "/no/such/folder"])
    assert import_path(first=f"/first{os.pathsep}/second") == os.pathsep.join(
        ["/first", "/second", str(tmp_path), os.getcwd()]
    )
