"""What people read of a plan, held as golden files.

After an intended change run `REWRITE_GOLDEN=1 pytest tests/orchestrator/test_planview.py`, read the difference and
commit it. `plan.json` is a promise: keys may be added, not renamed or removed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.loading import load_study
from orchestrator.plan import build_plan
from orchestrator.planview import duration, plan_json, plan_text, plan_warnings, validate_text
from tests.studies import small_study

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ROOT = GOLDEN.parent.parent


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("REWRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_plan_as_text() -> None:
    study = load_study(GOLDEN / "study.yaml")
    check_golden("plan.txt", plan_text(build_plan(study), study))


def test_plan_as_json() -> None:
    study = load_study(GOLDEN / "study.yaml")
    document = plan_json(build_plan(study, corpus_digest="0" * 32))
    check_golden("plan.json", json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")


def test_validation_as_text() -> None:
    study = load_study(GOLDEN / "study.yaml")
    check_golden("validate.txt", validate_text(build_plan(study), study, "study.yaml"))


def test_an_unprepared_corpus_is_told() -> None:
    study = small_study()
    assert "fingerprints of states follow when the corpus is prepared" in plan_text(build_plan(study), study)
    assert "fingerprints" not in plan_text(build_plan(study, corpus_digest="a corpus"), study)


def test_a_long_plan_is_cut_in_text_and_whole_in_json() -> None:
    study = small_study(f"design.seeds={list(range(20))}")
    plan = build_plan(study)
    assert "... and 40 more runs" in plan_text(plan, study)
    assert len(plan_json(plan)["runs"]) == 240


def test_forms_that_the_design_cannot_carry_are_told() -> None:
    study = small_study()
    assert plan_warnings(study, build_plan(study)) == (
        "form chinchilla needs 7 cells and 4 distinct values of params and tokens to fit; the fitted runs have "
        "8 cells, 2 of params, 4 of tokens. Add sizes or budgets, or leave the form out",
        "form coupled needs 8 cells and 4 distinct values of params and tokens to fit; the fitted runs have "
        "8 cells, 2 of params, 4 of tokens. Add sizes or budgets, or leave the form out",
    )


def test_what_unshared_trunks_cost_is_told() -> None:
    study = small_study("recipe.beta2={rule: tokens_power, value: 0.9, reference: 1M, exponent: 0.01}")
    assert plan_warnings(study, build_plan(study))[0] == (
        "recipe.beta2 looks at each run's own tokens, so every budget trains its own trunk: 1.05e13 FLOPs, where rules "
        "of N alone would share trunks and need about 6.57e12"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.24, "5.2 s"), (45, "45 s"), (482, "8.03 min"), (11_520, "3.2 h"), (1e6, "11.6 d")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_planning_is_quick_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from orchestrator.loading import load_study\n"
        "from orchestrator.plan import build_plan\n"
        "from orchestrator.planview import plan_text\n"
        "study = load_study('configs/quickstart.yaml'); plan_text(build_plan(study), study)\n"
        "heavy = {'torch', 'ray', 'mlflow', 'datasets', 'deepspeed', 'pandas', 'scipy', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.perf_counter() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # .35 s measured on a quiet core; DESIGN promises 1 s, the rest is for a busy machine.
    assert float(done.stdout) < 3.0
