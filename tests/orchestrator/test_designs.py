"""Designs give points, and one dial gives a shape."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.accounting import count_parameters, train_flops_per_token
from orchestrator.designs import Design, design_sizes, expand, left_out
from orchestrator.shapes import LARGEST_FACTOR_OFF, ShapeRule, SizedShape, shape_for
from tests.studies import refusal, small_study

RULE = ShapeRule(
    vocab_size=257, sequence_length=128, head_dim=8, aspect=16, min_layers=2, num_layers=None, mlp_multiple=8
)


def shapes_of(design: Design) -> dict[int, SizedShape]:
    return {size: shape_for(size, RULE) for size in design_sizes(design)}


def test_a_grid_is_every_size_at_every_budget_and_seed() -> None:
    design = small_study("design.sizes=[20k, 45k]", "design.tokens=[1M, 2M]", "design.seeds=[0, 7]").design
    points = expand(design, shapes_of(design))
    assert [(point.size, point.tokens, point.seed) for point in points] == [
        (size, tokens, seed) for size in (20_000, 45_000) for tokens in (10**6, 2 * 10**6) for seed in (0, 7)
    ]


def test_tokens_per_param_and_ladder_count_realised_parameters() -> None:
    grid = small_study("design={kind: grid, sizes: [20k, 45k], tokens_per_param: [20, 60]}").design
    ladder = small_study("design={kind: ladder, sizes: [20k, 45k], multiples: [1, 3]}").design
    shapes = shapes_of(grid)
    tokens = [point.tokens for point in expand(grid, shapes)]
    assert tokens == [point.tokens for point in expand(ladder, shapes)]
    assert tokens[0] == pytest.approx(20 * shapes[20_000].params.matmul, rel=5e-4)
    assert shapes[20_000].params.matmul != 20_000


def test_isoflop_points_cost_their_budget_to_four_digits() -> None:
    design = small_study("design={kind: isoflop, sizes: [20k, 45k], budgets: [2e11, 8e11]}").design
    shapes = shapes_of(design)
    costs = [point.tokens * train_flops_per_token(shapes[point.size].shape) for point in expand(design, shapes)]
    assert costs == pytest.approx([2e11, 8e11, 2e11, 8e11], rel=5e-4)


def test_isoflop_leaves_out_cells_outside_its_range_and_says_which() -> None:
    design = small_study(
        "design={kind: isoflop, sizes: [20k, 45k], budgets: [2e11, 8e11], tokens_per_param_range: [10, 60]}",
        "forecast.hold_out=none",
    ).design
    shapes = shapes_of(design)
    points = expand(design, shapes)
    assert {(point.size, round(point.tokens / shapes[point.size].params.matmul)) for point in points} == {
        (20_000, 52),
        (45_000, 41),
        (45_000, 10),
    }
    assert len(left_out(design, shapes)) == 1
    assert "at 20k" in left_out(design, shapes)[0]


def test_a_range_that_leaves_nothing_is_refused() -> None:
    design = "design={kind: isoflop, sizes: [20k, 45k], budgets: [2e11], tokens_per_param_range: [1, 2]}"
    assert "leaves no cell of the design" in refusal(design)
    assert "must rise" in refusal(design.replace("[1, 2]", "[2, 1]"))


def test_points_are_taken_as_written_and_a_repeated_one_is_refused() -> None:
    design = small_study(
        "design={kind: points, points: [{size: 20k, tokens: 1M}, {size: 95k, tokens: 2M, seed: 3}]}"
    ).design
    assert [(point.size, point.tokens, point.seed) for point in expand(design, {})] == [
        (20_000, 10**6, 0),
        (95_000, 2 * 10**6, 3),
    ]
    twice = refusal(
        "design={kind: points, points: [{size: 20k, tokens: 1M}, {size: 95k, tokens: 1M}, {size: 20k, tokens: 1M}]}"
    )
    assert "design.points[2]: 20k at 1M tokens is the same run as" in twice


@settings(max_examples=60, deadline=None)
@given(size=st.integers(5_000, 10**12), head_dim=st.sampled_from([8, 64, 128]), aspect=st.sampled_from([16.0, 64.0]))
def test_no_other_number_of_heads_comes_nearer_to_the_size(size: int, head_dim: int, aspect: float) -> None:
    rule = ShapeRule(257, 128, head_dim, aspect, 2, None, 8)
    try:
        sized = shape_for(size, rule)
    except ValueError:
        # Below the first shape of a wide head, and between its first two, there are gaps.
        reachable = [count_parameters(rule.shape(heads)).matmul for heads in range(1, 5)]
        assert all(abs(math.log(params / size)) > math.log(LARGEST_FACTOR_OFF) for params in reachable)
        return
    off = abs(math.log(sized.params.matmul / size))
    heads = sized.shape.num_heads
    for other in (heads - 1, heads + 1):
        if other > 0:
            assert off <= abs(math.log(count_parameters(rule.shape(other)).matmul / size))


def test_depth_follows_the_aspect_unless_it_is_fixed() -> None:
    assert shape_for(400_000, RULE).shape.num_layers == 5
    fixed = ShapeRule(257, 128, 8, 16, 2, 3, 8)
    assert {shape_for(size, fixed).shape.num_layers for size in (20_000, 400_000)} == {3}


def test_a_shape_says_what_rounding_did() -> None:
    assert shape_for(12_000, RULE).notes == ("size 12k became 10k (-16.7%)",)
    assert shape_for(10_000, RULE).notes == ()
