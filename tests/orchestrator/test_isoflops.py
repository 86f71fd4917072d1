"""IsoFLOP designs end in parabolas whose optimum lies where the surface has it."""

import json
import math

import pytest

from jobs.accounting import count_parameters, train_flops_per_token
from jobs.observation import Observation
from orchestrator.designs import design_sizes
from orchestrator.figures import isoflop_figure
from orchestrator.isoflops import figure_rows, isoflop_json, isoflop_lines, isoflops_of
from orchestrator.plan import build_plan
from orchestrator.shapes import shape_for
from orchestrator.study import Study
from tests.studies import small_study

BUDGETS = (2.5e11, 1e12, 4e12)


def isoflop_study() -> Study:
    return small_study(
        "design={kind: isoflop, budgets: [2.5e11, 1e12, 4e12], sizes: [10k, 20k, 33k, 48k, 95k, 210k]}",
        "forecast.hold_out=none",
        "recipe.schedule=cosine",
    )


def best_params(train_flops: float) -> float:
    """The optimum of the surface below: 30k parameters at 2.5e11 FLOPs, as the square root of compute from there."""
    return 30_000 * math.sqrt(train_flops / 2.5e11)


def observed(study: Study) -> list[Observation]:
    rows = []
    for run in build_plan(study).runs:
        budget = min(BUDGETS, key=lambda known: abs(math.log(known / run.train_flops)))
        distance = math.log(run.params.matmul / best_params(budget))
        rows.append(
            Observation(
                name=run.name,
                role="fit",
                state_id=run.segments[-1],
                seed=0,
                data_seed=0,
                params=run.params.matmul,
                total_params=run.params.total,
                non_embedding_params=run.params.non_embedding,
                tokens=run.tokens,
                train_flops=run.train_flops,
                loss=2.0 - 0.1 * math.log(budget / 2.5e11) + 0.05 * distance**2,
                loss_se=0.01,
                bits_per_byte=2.8,
                evaluation_tokens=1000,
                evaluation_digest="evaluation",
                document_losses_path="losses",
                document_losses_sha256="sha",
                trunk=run.name,
                world_size=1,
            )
        )
    return rows


def test_each_budget_has_its_optimum_where_the_surface_has_it() -> None:
    study = isoflop_study()
    isoflop = isoflops_of(study, observed(study))
    assert isoflop is not None
    for optimum in isoflop.optima:
        assert optimum.params == pytest.approx(best_params(optimum.train_flops), rel=0.02)
        assert optimum.loss_at(optimum.params) == pytest.approx(optimum.loss)
    assert isoflop.params.exponent == pytest.approx(0.5, abs=0.02)


def test_the_tokens_of_an_optimum_spend_its_budget_by_the_exact_convention() -> None:
    """Between two sizes D* is interpolated, so N* and D* meet the budget within the curvature between neighbours."""
    study = isoflop_study()
    isoflop = isoflops_of(study, observed(study))
    assert isoflop is not None
    shapes = {size: shape_for(size, study.model.shape_rule(study.vocab_size)) for size in design_sizes(study.design)}
    for optimum in isoflop.optima:
        nearest = min(
            (sized.shape for sized in shapes.values()),
            key=lambda shape: abs(math.log(count_parameters(shape).matmul / optimum.params)),
        )
        flops_per_param = train_flops_per_token(nearest) / count_parameters(nearest).matmul
        assert optimum.tokens * optimum.params * flops_per_param == pytest.approx(optimum.train_flops, rel=0.1)


def test_text_document_and_figure_say_the_same() -> None:
    study = isoflop_study()
    rows = observed(study)
    isoflop = isoflops_of(study, rows)
    assert isoflop is not None
    text = "\n".join(isoflop_lines(isoflop))
    assert "N* = " in text
    assert len(json.loads(isoflop_json(isoflop))["optima"]) == len(isoflop.optima)
    drawn, parabolas = figure_rows(study, isoflop, rows)
    assert len(parabolas) == len(isoflop.optima)
    assert {row["budget"] for row in drawn} == {parabola["compute"] for parabola in parabolas}
    assert isoflop_figure(drawn, parabolas).axes


def test_other_designs_have_no_parabolas() -> None:
    assert isoflops_of(small_study(), []) is None
