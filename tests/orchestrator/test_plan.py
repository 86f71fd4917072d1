"""The trie of segments: what runs share, what a state's name depends on, and what a study costs."""

import pytest

from cluster.resources import Inventory, Node
from jobs.identity import state_fingerprint
from jobs.spec import Execution, Segment
from jobs.storage import checked_name
from orchestrator.executions import choose_execution, rank_memory
from orchestrator.plan import UNPREPARED, Plan, PlannedRun, build_plan
from tests.studies import refusal, small_study

ONE_SIZE = ("design.sizes=[45k]", "forecast.hold_out=none")


def plan_of(*overrides: str) -> Plan:
    return build_plan(small_study(*overrides), corpus_digest="a corpus")


def trunk_of(plan: Plan, run: PlannedRun) -> list[Segment]:
    return [plan.segments[state_id].segment for state_id in run.segments[:-1]]


def test_segments_of_a_run_follow_each_other_from_start_to_horizon() -> None:
    plan = plan_of()
    for run in plan.runs:
        chain = [plan.segments[state_id].segment for state_id in run.segments]
        assert [segment.parent_id for segment in chain] == [None, *run.segments[:-1]]
        assert [segment.start_step for segment in chain] == [0, *(segment.end_step for segment in chain[:-1])]
        assert chain[-1].end_step == run.spec.total_steps
        assert [segment.kind for segment in chain] == ["trunk"] * (len(chain) - 1) + ["decay"]


def test_every_state_is_named_by_its_fingerprint_whatever_run_is_asked() -> None:
    plan = plan_of()
    for run in plan.runs:
        for state_id in run.segments:
            assert state_id == state_fingerprint(run.spec, plan.segments[state_id].segment.end_step)


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for state_id, planned in plan_of().segments.items():
        assert planned.segment.parent_id is None or planned.segment.parent_id in seen
        seen.add(state_id)


def test_budgets_of_a_size_share_one_trunk() -> None:
    plan = plan_of(*ONE_SIZE)
    trunk = [planned for planned in plan.segments.values() if planned.segment.kind == "trunk"]
    assert len({planned.segment.curve_id for planned in trunk}) == 1
    assert [len(planned.runs) for planned in trunk] == [4, 3, 2, 1]
    assert [planned.name for planned in trunk] == [
        "n45k-s0 trunk 0-390",
        "n45k-s0 trunk 390-782",
        "n45k-s0 trunk 782-1562",
        "n45k-s0 trunk 1562-3125",
    ]
    assert len(plan.segments) == 8


@pytest.mark.parametrize(
    "tokens",
    ["[0.5M, 0.7M, 1M, 2M, 4M]", "[0.5M, 1M, 2M, 4M, 8M]", "[0.3M, 0.5M, 1M, 2M, 4M]"],
    ids=["inserted", "longer", "shorter"],
)
def test_a_budget_added_later_renames_no_state_and_no_run(tokens: str) -> None:
    before, after = plan_of(*ONE_SIZE), plan_of(*ONE_SIZE, f"design.tokens={tokens}")
    assert before.segments.keys() <= after.segments.keys()
    # One decay, and one trunk state where it forks.
    assert len(after.segments) == len(before.segments) + 2
    assert {run.name for run in before.runs} < {run.name for run in after.runs}


def test_a_size_added_later_renames_nothing() -> None:
    before, after = plan_of(), plan_of("design.sizes=[20k, 45k, 95k, 200k]")
    assert before.segments.keys() < after.segments.keys()


def test_a_longer_horizon_continues_the_trunk() -> None:
    after = plan_of(*ONE_SIZE, "design.tokens=[0.5M, 1M, 2M, 4M, 8M]")
    before = plan_of(*ONE_SIZE)
    ends = [segment.state_id for segment in trunk_of(before, before.runs[-1])]
    continued = trunk_of(after, after.runs[-1])
    assert [segment.state_id for segment in continued[:-1]] == ends
    assert continued[-1].parent_id == ends[-1]
    assert continued[-1].curve_id == trunk_of(before, before.runs[0])[0].curve_id


def test_four_doubling_budgets_cost_63_percent_of_from_scratch() -> None:
    plan = plan_of(*ONE_SIZE)
    # [(1 - f) max D + f sum D] / sum D = (.8 * 8 + .2 * 15) / 15 = .6267; rounding to whole steps moves it by 1e-3.
    assert plan.shared_flops / plan.from_scratch_flops == pytest.approx(0.6267, abs=1e-3)


def test_eight_half_octave_budgets_cost_45_percent() -> None:
    budgets = [round(500_000 * 2 ** (i / 2)) for i in range(8)]
    plan = plan_of(*ONE_SIZE, f"design.tokens={budgets}")
    assert plan.shared_flops / plan.from_scratch_flops == pytest.approx(0.45, abs=5e-3)


def test_cosine_runs_are_single_segments_that_share_nothing() -> None:
    plan = plan_of("recipe.schedule=cosine", "design.seeds=[0, 1]")
    assert all(len(run.segments) == 1 for run in plan.runs)
    assert {planned.segment.kind for planned in plan.segments.values()} == {"whole"}
    assert plan.shared_flops == plan.from_scratch_flops


def test_two_seeds_share_nothing() -> None:
    plan = plan_of("design.seeds=[0, 1]")
    by_seed = [{s for run in plan.runs if run.spec.seed == seed for s in run.segments} for seed in (0, 1)]
    assert not by_seed[0] & by_seed[1]
    assert all(run.spec.data_seed == run.spec.seed for run in plan.runs)


def test_the_corpus_is_part_of_every_state_and_execution_of_none() -> None:
    plan, other = plan_of(), build_plan(small_study(), corpus_digest="another")
    assert not plan.segments.keys() & other.segments.keys()
    moved = plan_of("execution.max_ranks=4", "execution.zero_stage=3", "execution.threads_per_rank=2")
    assert moved.segments.keys() == plan.segments.keys()
    assert build_plan(small_study()).corpus_digest == UNPREPARED


def test_a_rule_of_the_horizon_parts_the_trunks_and_one_of_size_does_not() -> None:
    rule = "recipe.learning_rate={rule: %s, value: 0.012, reference: 50k, exponent: -0.1, maximum: 1}"
    by_tokens, by_params = (plan_of(*ONE_SIZE, rule % name) for name in ("tokens_power", "params_power"))
    assert by_tokens.shared_flops == by_tokens.from_scratch_flops
    assert by_params.shared_flops < 0.65 * by_params.from_scratch_flops
    names = [planned.name for planned in by_tokens.segments.values()]
    assert len(set(names)) == len(names)
    assert "n45k-d500k-s0 trunk 0-390" in names


def test_held_out_runs_are_targets_and_so_are_their_segments() -> None:
    plan = plan_of()
    assert {run.name for run in plan.runs if run.role == "target"} == {
        f"n95k-d{tokens}-s0" for tokens in ("500k", "1M", "2M", "4M")
    }
    for planned in plan.segments.values():
        assert (planned.role == "target") == planned.name.startswith("n95k")


def test_a_size_may_be_held_out_by_name_or_none_at_all() -> None:
    named = plan_of("forecast.hold_out={size: 45k}")
    assert {run.requested_params for run in named.runs if run.role == "target"} == {45_000}
    assert all(run.role == "fit" for run in plan_of("forecast.hold_out=none").runs)


def test_names_are_unique_and_good_as_folders() -> None:
    plan = plan_of("design.tokens=[0.5M, 1234567, 1238999, 4M]", "design.seeds=[0, 12]")
    names = [run.name for run in plan.runs] + [planned.name for planned in plan.segments.values()]
    assert len(set(names)) == len(names)
    for planned in plan.segments.values():
        assert checked_name(planned.folder_name) == planned.folder_name


def test_tokens_are_whole_steps_and_flops_count_the_whole_path() -> None:
    run = plan_of(*ONE_SIZE).runs[0]
    assert (run.tokens, run.requested_tokens) == (488 * 1024, 500_000)
    assert run.train_flops == sum(plan_of(*ONE_SIZE).segments[state_id].train_flops for state_id in run.segments)


def test_rounding_and_caps_are_noted() -> None:
    plan = plan_of(
        "recipe.learning_rate={rule: params_power, value: 0.012, reference: 50k, exponent: -1, maximum: 0.02}",
        "recipe.batch_tokens={rule: params_power, value: 3000, reference: 50k, exponent: 0.3}",
        "execution.max_ranks=5",
    )
    notes = " | ".join(plan.runs[0].notes)
    assert "learning_rate is at its maximum 0.02 (rule gave 0.03" in notes
    assert "tokens became" in notes
    assert "not 5, to divide a batch of" in notes


def test_the_gang_divides_the_batch_and_the_micro_batch_fits_the_memory() -> None:
    execution = plan_of("execution.max_ranks=3").segments[plan_of().runs[0].segments[0]].execution
    assert (execution.world_size, execution.micro_batch_sequences) == (2, 4)
    tight = plan_of("execution.memory_gb_per_rank=0.01").segments[plan_of().runs[0].segments[0]].execution
    assert tight.micro_batch_sequences < 8
    assert not tight.activation_checkpointing
    assert plan_of("execution.launcher=inline").execution_of(plan_of().runs[0]).world_size == 1


def test_activations_are_recomputed_only_where_nothing_else_fits() -> None:
    spec = plan_of("model.num_layers=12", "design.sizes=[95k, 200k]").runs[0].spec
    one = Execution(micro_batch_sequences=1)
    plain = rank_memory(spec, one).total_bytes
    recomputed = rank_memory(spec, one.model_copy(update={"activation_checkpointing": True})).total_bytes
    between = (plain + recomputed) / 2
    settings = small_study(f"execution.memory_gb_per_rank={between / 1e9}").execution
    assert choose_execution(spec, settings, "cpu").activation_checkpointing
    assert not choose_execution(spec, small_study().execution, "cpu").activation_checkpointing


def test_a_memory_or_disk_that_cannot_hold_the_study_is_refused_with_the_need() -> None:
    with pytest.raises(ValueError, match=r"memory_gb_per_rank: 0\.001 GB do not hold a micro-batch of 1 .* Raise it"):
        plan_of("execution.memory_gb_per_rank=0.001")
    with pytest.raises(ValueError, match=r"disk_gb: 0\.001 GB do not hold the 0\.\d+ GB of 24 kept states"):
        plan_of("execution.disk_gb=0.001")


def test_a_corpus_with_more_tokens_than_the_model_is_refused() -> None:
    assert build_plan(small_study(), "a corpus", vocab_size=257).runs
    with pytest.raises(ValueError, match="257 must hold the 300 tokens of the prepared corpus"):
        build_plan(small_study(), "a corpus", vocab_size=300)


def test_auto_takes_gpus_where_the_cluster_has_some() -> None:
    node = Node("a", "10.0.0.1", total_cpus=8, total_devices=4, free_cpus=8, free_devices=4, device_type="H100")
    with_gpus = build_plan(small_study(), "a corpus", inventory=Inventory((node,)))
    assert {planned.execution.device for planned in with_gpus.segments.values()} == {"cuda"}
    assert {planned.execution.device for planned in plan_of().segments.values()} == {"cpu"}


def test_kept_states_take_twelve_bytes_a_parameter() -> None:
    plan = plan_of()
    assert plan.retained_bytes == sum(
        12 * run.params.total * 2
        for run in plan.runs  # a fork and a final for each budget
    )


def test_price_follows_device_hours() -> None:
    plan = plan_of("execution.price_per_device_hour=2.5")
    assert plan.price == pytest.approx(2.5 * plan.device_hours)
    assert plan_of().price is None


def test_a_thousand_runs_are_planned_in_a_second() -> None:
    import time

    start = time.perf_counter()
    budgets = [500_000 + 100_000 * i for i in range(20)]
    seeds = list(range(17))
    plan = plan_of(f"design.tokens={budgets}", f"design.seeds={seeds}")
    assert len(plan.runs) == 1020
    # Measured .6 s on one core; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 5


def test_held_out_runs_may_have_fewer_seeds_than_the_fitted_ones() -> None:
    plan = build_plan(small_study("design.seeds=[0, 1]", "forecast.seeds=[1]"))
    assert {run.spec.seed for run in plan.runs if run.role == "fit"} == {0, 1}
    assert {run.spec.seed for run in plan.runs if run.role == "target"} == {1}


def test_a_forecast_seed_that_the_design_lacks_is_refused() -> None:
    assert "forecast.seeds: 7 is not a seed of the design. Use some of 0, 1" in refusal(
        "design.seeds=[0, 1]", "forecast.seeds=[7]"
    )
