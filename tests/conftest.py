"""Builders that arrange a test in a line or two."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from jobs.schedules import Schedule, warmup_stable_decay
from jobs.spec import Parametrization, Recipe, RunSpec, Shape


def make_shape(width: int = 16, num_layers: int = 2, **changes: Any) -> Shape:
    fields = {
        "vocab_size": 61,
        "width": width,
        "num_layers": num_layers,
        "num_heads": max(1, width // 8),
        "mlp_width": 3 * width,
        "sequence_length": 16,
    }
    return Shape(**{**fields, **changes})


def make_run_spec(
    *,
    shape: Shape | None = None,
    schedule: Schedule | None = None,
    recipe: dict[str, Any] | None = None,
    parametrization: str = "completep",
    **changes: Any,
) -> RunSpec:
    values = {"learning_rate": 0.01, "batch_sequences": 4, "init_std": 0.06, **(recipe or {})}
    fields: dict[str, Any] = {
        "shape": shape or make_shape(),
        "parametrization": Parametrization(kind=parametrization, base_width=16, base_layers=2),
        "recipe": Recipe(**values),
        "schedule": schedule or warmup_stable_decay(total_steps=40, warmup_steps=8, decay_steps=8),
        "corpus_digest": "a corpus",
    }
    return RunSpec(**{**fields, **changes})


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI no test may skip: what it would need has to be installed by the test command."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if os.environ.get("CI") == "true" and skipped and exitstatus == pytest.ExitCode.OK:
        for report in skipped:
            reporter.write_line(f"skipped in CI: {report.nodeid}: {report.longrepr}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
