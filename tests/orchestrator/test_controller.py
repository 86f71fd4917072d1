"""The controller against a fake cluster: a study comes to the same end whatever happens on the way, and tells it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cluster.resources import ClusterUnreachable
from jobs.checkpoints import MANIFEST
from orchestrator.events import PROGRESS, Event
from orchestrator.lease import Lease
from orchestrator.watchdog import SHORTEST_LIMIT_S, START_LIMIT_S
from orchestrator.writing import LeaseLost
from tests.orchestrator.bench import Bench
from tests.orchestrator.fake_cluster import CHECKPOINT_EVERY_STEPS, STEP_S, DriverKilled, Fault

ONE_SIZE = ("design.sizes=[20k]", "forecast.hold_out=none")
RUNS = ["n20k-d200k-s0", "n20k-d400k-s0"]
# Steps of the one size: trunk 0-156-313, decays 156-195 and 313-391.
ALL_STEPS = 391 + 39


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "study")


@pytest.fixture
def one_size(tmp_path: Path) -> Bench:
    """One size at two budgets, nothing held out, one core."""
    return Bench(tmp_path / "study", *ONE_SIZE, cpus=(1.0,))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same study with nothing in its way."""
    bench = Bench(tmp_path_factory.mktemp("undisturbed") / "study", *ONE_SIZE, cpus=(1.0,))
    bench.run()
    return bench


def assert_same_records(bench: Bench, undisturbed: Bench) -> None:
    """Every run once, with equal losses; every point of the curves once, with equal values."""
    assert bench.losses() == undisturbed.losses()
    curves = [
        sorted((point.curve_id, point.key, point.step, point.value) for point in one.ledger.points_after(limit=10_000))
        for one in (bench, undisturbed)
    ]
    assert curves[0] == curves[1]


# The ordinary way


def test_every_run_ends_and_every_step_is_trained_once(bench: Bench) -> None:
    outcome = bench.run()
    assert sorted(outcome.finished) == sorted(run.name for run in bench.plan.runs)
    assert (outcome.failed, outcome.diverged, outcome.withheld, outcome.interrupted) == ({}, {}, (), False)
    assert bench.cluster.steps_taken == sum(planned.segment.num_steps for planned in bench.plan.segments.values())
    assert bench.cluster.most_open == 2
    assert set(bench.outcomes()) == {"finished"}


def test_targets_begin_after_all_fitted_runs_ended_and_their_forecast_is_frozen(bench: Bench) -> None:
    bench.run()
    assert bench.frozen_at == [4]
    frozen = next(event for event in bench.ledger.events_after() if event.kind == "forecast.frozen")
    for attempt in bench.ledger.attempts():
        is_target = bench.plan.segments[attempt.state_ids[0]].role == "target"
        assert (attempt.began_ms >= bench.ledger.forecasts()[0].frozen_ms) or not is_target
    placed = [event for event in bench.ledger.events_after(frozen.sequence) if event.kind == "attempt.placed"]
    assert {bench.plan.segments[state_id].role for event in placed for state_id in event.content["segments"]} == {
        "target"
    }


def test_two_gangs_serve_all_runs(bench: Bench) -> None:
    bench.run()
    assert bench.cluster.opened == 2


def test_curves_reach_from_the_first_step_to_the_last(one_size: Bench) -> None:
    one_size.run()
    steps = Counter(point.curve_id for point in one_size.ledger.points_after(limit=10_000))
    assert sum(steps.values()) == 31 + 4 + 8


def test_second_launch_of_a_finished_study_opens_no_gang(bench: Bench) -> None:
    first = bench.run()
    again = bench.run()
    assert again == first
    assert (bench.cluster.opened, bench.cluster.attempts) == (0, [])


def test_budget_added_between_two_trains_only_what_is_missing(one_size: Bench) -> None:
    one_size.run()
    before = one_size.losses()
    outcome = one_size.run(overrides=(*ONE_SIZE, "design.tokens=[0.2M, 0.3M, 0.4M]"))
    assert len(outcome.finished) == 3
    # Trunk 156 to 234 once more, and the new decay.
    assert one_size.cluster.steps_taken == (234 - 156) + (293 - 234)
    assert before.items() <= one_size.losses().items()


def test_longer_horizon_continues_the_trunk(one_size: Bench) -> None:
    one_size.run()
    one_size.run(overrides=(*ONE_SIZE, "design.tokens=[0.2M, 0.4M, 0.8M]"))
    assert one_size.cluster.attempts[0].resume is not None
    assert one_size.cluster.attempts[0].resume.step == 313
    assert one_size.cluster.steps_taken == 781 - 313


def test_events_tell_the_story_one_line_each(one_size: Bench) -> None:
    one_size.run()
    assert one_size.texts == [
        "gang-1: up, 1 rank",
        "run n20k-d400k-s0: placed on 1 rank (attempt 1), steps 0 to 391",
        "run n20k-d400k-s0: finished, held-out loss 2.2410 +- 0.0100",
        "run n20k-d200k-s0: placed on 1 rank (attempt 1), steps 156 to 195",
        "run n20k-d200k-s0: finished, held-out loss 2.4566 +- 0.0100",
    ]
    stored = [event.content["text"] for event in one_size.ledger.events_after()]
    assert stored == one_size.texts


def test_progress_is_told_to_the_watcher_and_not_stored(one_size: Bench) -> None:
    one_size.run()
    told = [event.content["step"] for event in one_size.events if event.kind == PROGRESS]
    assert len(told) > 20
    assert PROGRESS not in {event.kind for event in one_size.ledger.events_after()}


# Faults after which a study ends as if nothing had been

HARMLESS = {
    "kill -9 of a rank in the trunk": Fault("kill", 120),
    "kill -9 of a rank in the decay": Fault("kill", 350),
    "kill -9 before anything was saved": Fault("kill", 1),
    "kill -9 at the last step": Fault("kill", 391),
    "gang and node lost": Fault("lose gang", 200),
    "gang lost three times": Fault("lose gang", 200, times=3),
    "hang": Fault("hang", 170),
    "hang before the first step": Fault("hang", 1),
    "out of memory": Fault("out of memory", 60),
    "state damaged as it was committed": Fault("damage state", 313),
    "final state damaged as it was committed": Fault("damage state", 391),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_fault_changes_no_record(case: str, tmp_path: Path, undisturbed: Bench) -> None:
    bench = Bench(tmp_path / "study", *ONE_SIZE, cpus=(1.0,))
    outcome = bench.run(HARMLESS[case])
    assert sorted(outcome.finished) == RUNS
    assert_same_records(bench, undisturbed)
    assert bench.outcomes()[-1] == "finished"


@pytest.mark.parametrize("step", [1, 49, 50, 51, 155, 156, 157, 195, 312, 313, 314, 390, 391])
def test_driver_killed_at_any_step_is_answered_by_the_same_command(
    step: int, tmp_path: Path, undisturbed: Bench
) -> None:
    bench = Bench(tmp_path / "study", *ONE_SIZE, cpus=(1.0,))
    with pytest.raises(DriverKilled):
        bench.run(Fault("driver", step))
    taken = bench.cluster.steps_taken
    outcome = bench.run()
    assert sorted(outcome.finished) == RUNS
    assert_same_records(bench, undisturbed)
    # At most one checkpoint interval is lost.
    assert taken + bench.cluster.steps_taken - ALL_STEPS <= CHECKPOINT_EVERY_STEPS
    assert bench.outcomes()[-1] == "finished"


def test_driver_killed_again_and_again_still_ends(tmp_path: Path, undisturbed: Bench) -> None:
    bench = Bench(tmp_path / "study", *ONE_SIZE, cpus=(1.0,))
    for step in (40, 90, 130, 180, 260, 330, 380, 170):
        with pytest.raises(DriverKilled):
            bench.run(Fault("driver", step))
    bench.run()
    assert_same_records(bench, undisturbed)


def test_state_that_was_committed_but_not_accepted_is_adopted(one_size: Bench) -> None:
    with pytest.raises(DriverKilled):
        # The report that would have told of the trunk's first state is never read.
        one_size.run(Fault("driver", 156))
    trunk = one_size.plan.runs[0].segments[0]
    assert one_size.ledger.segments()[trunk].status == "open"
    one_size.run()
    attempts = one_size.ledger.attempts()
    assert [attempt.outcome for attempt in attempts[:2]] == ["driver_lost", "adopted"]
    assert one_size.ledger.segments()[trunk].attempt == attempts[1].number
    assert any("1 states adopted" in text for text in one_size.texts)
    assert one_size.cluster.attempts[0].resume is not None
    assert one_size.cluster.attempts[0].resume.step == 156


def test_resumed_run_is_told_with_its_attempt_and_the_reason(one_size: Bench) -> None:
    one_size.run(Fault("kill", 120))
    assert "run n20k-d400k-s0: placed on 1 rank (attempt 2, after infrastructure), steps 100 to 391" in one_size.texts
    assert "run n20k-d400k-s0: infrastructure at step 120 (rank 0: killed by SIGKILL)" in one_size.texts


def test_lost_gang_is_closed_whole_and_another_opened(one_size: Bench) -> None:
    one_size.run(Fault("lose gang", 200))
    assert one_size.cluster.opened == 2
    assert one_size.outcomes()[:2] == ["node_lost", "finished"]
    assert "gang-1: lost (node gone)" in one_size.texts


def test_hang_is_killed_after_its_limit(one_size: Bench) -> None:
    began = one_size.clock.now_s
    one_size.run(Fault("hang", 170))
    assert one_size.outcomes()[0] == "hang"
    undisturbed_s = ALL_STEPS * STEP_S
    assert one_size.clock.now_s - began < undisturbed_s + SHORTEST_LIMIT_S + 20
    assert SHORTEST_LIMIT_S < START_LIMIT_S


def test_memory_that_ran_out_halves_the_micro_batch_and_keeps_the_batch(one_size: Bench) -> None:
    one_size.run(Fault("out of memory", 60, times=2))
    sizes = [payload.execution.micro_batch_sequences for payload in one_size.cluster.attempts]
    assert sizes[:3] == [8, 4, 2]
    assert {payload.spec.recipe.batch_sequences for payload in one_size.cluster.attempts} == {8}


def test_damaged_checkpoint_is_passed_over_for_the_one_before(one_size: Bench, undisturbed: Bench) -> None:
    def damage(event: Event) -> None:
        if event.kind == "attempt.ended" and "SIGKILL" in event.text:
            newest = one_size.ledger.checkpoints()[-1]
            assert newest.step == 150
            (Path(newest.path) / "shard.safetensors").write_bytes(b"flipped")

    one_size.run(Fault("kill", 155), listen=damage)
    resumes = [payload.resume.step if payload.resume else 0 for payload in one_size.cluster.attempts]
    assert resumes[:3] == [0, 150, 100]
    assert any("the state before it is used" in text for text in one_size.texts)
    assert_same_records(one_size, undisturbed)


def test_damaged_fork_point_is_trained_again(one_size: Bench, undisturbed: Bench) -> None:
    def damage(event: Event) -> None:
        if event.kind == "run.finished" and "d400k" in event.text:
            fork = one_size.ledger.segments()[one_size.plan.runs[0].segments[0]]
            (Path(fork.path or "") / MANIFEST).write_bytes(b"flipped")

    one_size.run(listen=damage)
    assert any("n20k-s0 trunk 0-156 is trained again" in text for text in one_size.texts)
    assert_same_records(one_size, undisturbed)


def test_checkpoints_are_gone_once_their_segment_is_accepted(one_size: Bench) -> None:
    one_size.run(Fault("kill", 120))
    assert one_size.ledger.checkpoints() == []
    folders = sorted(path.name for path in one_size.paths.attempts.glob("*/states/*"))
    assert folders == ["step-00000156", "step-00000195", "step-00000313", "step-00000391"]


# Faults that end a run


def test_bug_fails_its_run_with_traceback_and_log_and_the_rest_goes_on(one_size: Bench) -> None:
    outcome = one_size.run(Fault("bug", 320))
    assert outcome.finished == ("n20k-d200k-s0",)
    reason = outcome.failed["n20k-d400k-s0"]
    assert reason.startswith("bug: rank 0: KeyError: 'a bug' (log: a log")
    told = next(text for text in one_size.texts if text.startswith("run n20k-d400k-s0: failed"))
    assert "Traceback" in told
    assert "a log" in told


def test_bug_in_the_trunk_fails_every_run_through_it_and_no_other(bench: Bench) -> None:
    outcome = bench.run(Fault("bug", 100, chain="n20k"))
    assert sorted(outcome.failed) == RUNS
    assert len(outcome.finished) == 4
    # The forecast is frozen from what did finish.
    assert bench.frozen_at == [2]


def test_diverged_run_is_quarantined_with_its_step_and_not_tried_again(one_size: Bench) -> None:
    outcome = one_size.run(Fault("diverge", 350, times=9))
    assert outcome.diverged == {"n20k-d400k-s0": "loss nan in step 350 at step 350"}
    assert outcome.finished == ("n20k-d200k-s0",)
    assert Counter(one_size.outcomes()) == {"diverged": 1, "finished": 1}
    assert sorted(one_size.losses()) == ["n20k-d200k-s0"]


def test_infrastructure_that_keeps_failing_at_one_place_is_given_up(one_size: Bench) -> None:
    outcome = one_size.run(Fault("kill", 330, times=99))
    assert list(outcome.failed) == ["n20k-d400k-s0"]
    assert "6 times without progress" in outcome.failed["n20k-d400k-s0"]
    assert Counter(one_size.outcomes())["infrastructure"] == 6


def test_failures_with_progress_between_them_are_not_added_up(one_size: Bench) -> None:
    kills = [Fault("kill", step) for step in range(55, 391, 50)]
    assert len(kills) > 6
    outcome = one_size.run(*kills)
    assert sorted(outcome.finished) == RUNS


def test_memory_that_no_micro_batch_fits_fails_the_run(one_size: Bench) -> None:
    outcome = one_size.run(Fault("out of memory", 320, times=99))
    assert "with the smallest micro-batch" in outcome.failed["n20k-d400k-s0"]
    assert Counter(one_size.outcomes())["out_of_memory"] == 4


def test_failed_run_that_is_asked_for_again_is_tried_again(one_size: Bench) -> None:
    one_size.run(Fault("bug", 320))
    one_size.ledger.reopen_runs(["n20k-d400k-s0"], one_size.clock.wall_s())
    assert sorted(one_size.run().finished) == RUNS


def test_targets_without_a_frozen_forecast_are_withheld(bench: Bench) -> None:
    outcome = bench.run(freeze=lambda ledger, plan: None)
    assert outcome.withheld == ("n95k-d200k-s0", "n95k-d400k-s0")
    assert len(outcome.finished) == 4
    assert bench.texts[-1].startswith("targets withheld, their forecast is not frozen: n95k-d200k-s0")
    assert bench.run().withheld == ()


# Stopping


def test_stop_saves_what_is_running_and_the_same_command_goes_on(one_size: Bench, undisturbed: Bench) -> None:
    outcome = one_size.run(stop_at=(PROGRESS, 20))
    assert outcome.interrupted
    assert one_size.outcomes() == ["stopped"]
    assert "stopped with 2 of 2 runs to go; the same command goes on from here" in one_size.texts[-1]
    taken = one_size.cluster.steps_taken
    assert one_size.cluster.gangs == {}
    one_size.run()
    assert taken + one_size.cluster.steps_taken == ALL_STEPS
    assert_same_records(one_size, undisturbed)


def test_gang_that_does_not_leave_is_killed_in_the_end(one_size: Bench) -> None:
    began = one_size.clock.now_s
    outcome = one_size.run(Fault("hang", 100), stop_at=(PROGRESS, 25))
    assert outcome.interrupted
    assert one_size.clock.now_s - began < 100
    assert one_size.cluster.gangs == {}


def test_stop_before_anything_started_starts_nothing(one_size: Bench) -> None:
    outcome = one_size.run(stop_at=("gang.opened", 1))
    assert outcome.interrupted
    assert one_size.cluster.attempts == []


# The cluster


def test_gang_that_cannot_be_opened_now_is_tried_later(one_size: Bench) -> None:
    outcome = one_size.run(Fault("refuse", 0, times=3))
    assert sorted(outcome.finished) == RUNS
    assert "gang-1: could not be opened (gang-1: no room now); again in 2 s" in one_size.texts


def test_cluster_that_never_opens_a_gang_counts_as_unreachable(one_size: Bench) -> None:
    with pytest.raises(ClusterUnreachable, match="8 gangs in a row could not be opened; the last: gang-8: no room"):
        one_size.run(Fault("refuse", 0, times=99))


def test_gang_that_never_fits_is_refused_before_anything_starts(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "study", "execution.threads_per_rank=4", cpus=(2.0,))
    with pytest.raises(ValueError, match="a rank needs 4 cores"):
        bench.run()
    assert bench.ledger.attempts() == []


def test_controller_whose_lease_was_taken_stops_writing(one_size: Bench) -> None:
    taken = []

    def take_over(event: Event) -> None:
        if event.kind == PROGRESS and event.content["step"] > 100 and not taken:
            with one_size.ledger.transaction() as connection:
                connection.exec_driver_sql("DELETE FROM scaling_lease")
            taken.append(Lease.take(one_size.ledger, one_size.clock.wall_s()))

    def run_with_lease() -> None:
        Lease.take(one_size.current_ledger, one_size.clock.wall_s())
        one_size.run(listen=take_over)

    with pytest.raises(LeaseLost):
        run_with_lease()
    assert [attempt.outcome for attempt in one_size.ledger.attempts()] == ["open"]


def test_ledger_grows_with_the_study_and_not_with_time(one_size: Bench) -> None:
    one_size.run()
    assert len(one_size.ledger.events_after(limit=1000)) == 5


def test_attempts_of_a_ledger_that_is_gone_are_not_written_into(one_size: Bench, undisturbed: Bench) -> None:
    one_size.run()
    one_size.current_ledger.close()
    one_size.paths.ledger.unlink()
    one_size.current_ledger = one_size.ledger
    one_size.run()
    assert [payload.attempt for payload in one_size.cluster.attempts] == [3, 4]
    assert one_size.losses() == undisturbed.losses()


def test_every_stored_event_has_its_line(bench: Bench) -> None:
    bench.run(Fault("kill", 120), Fault("damage state", 156))
    bench.run(overrides=("design.tokens=[0.2M, 0.3M, 0.4M]",))
    events = bench.ledger.events_after(limit=10_000)
    assert {"study.changed", "run.replanned", "forecast.frozen", "run.finished"} <= {event.kind for event in events}
    assert all(event.content["text"] for event in events)
