"""Who may import whom: one door for each heavy dependency, three packages that keep apart, light commands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "jobs", "cluster")

DOORS = {
    "ray": {"cluster/session.py", "cluster/launchers/ray.py"},
    "deepspeed": {"jobs/engine.py"},
    "datasets": {"jobs/corpus.py"},
    "mlflow": {"jobs/tracking.py"},
}
FORBIDDEN = {"jobs": {"orchestrator", "cluster"}, "cluster": {"orchestrator", "jobs"}, "orchestrator": set()}
HEAVY = ("torch", "deepspeed", "ray", "datasets", "mlflow", "pandas", "matplotlib")


def imports() -> Iterator[tuple[str, str]]:
    """(file, top-level module it imports) over the three packages, imports inside functions included."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((name, alias.name.split(".")[0]) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    yield name, node.module.split(".")[0]


def test_each_heavy_dependency_has_one_door() -> None:
    offenders = [(name, module) for name, module in imports() if module in DOORS and name not in DOORS[module]]
    assert offenders == []


def test_packages_keep_apart() -> None:
    offenders = [(name, module) for name, module in imports() if module in FORBIDDEN[name.split("/")[0]]]
    assert offenders == []


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "configs/quickstart.yaml"], ["schema"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nassert not loaded, loaded\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "SCALING_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr[-2000:]
