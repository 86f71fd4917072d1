"""The ledger: what it refuses, who may accept a state, what is stored once, and that it survives its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from jobs.identity import state_fingerprint
from jobs.journal import JournalLine
from jobs.observation import Observation
from orchestrator.database import LedgerError, open_engine, sqlite_url
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.reading import LedgerReader
from orchestrator.schema import VERSION_TABLE, metadata
from tests.orchestrator.bench import small_plan

NOW = 1_750_000_000.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "study" / "ledger.sqlite")


@pytest.fixture
def plan() -> Plan:
    return small_plan()


@pytest.fixture
def ledger(url: str, plan: Plan) -> Ledger:
    ledger = Ledger.open(url, create=True)
    ledger.register_plan(plan, NOW)
    return ledger


def path_of(plan: Plan, run_name: str) -> tuple[str, ...]:
    return next(run.segments for run in plan.runs if run.name == run_name)


def end_step(plan: Plan, state_id: str) -> int:
    return plan.segments[state_id].segment.end_step


def observation_of(plan: Plan, run_name: str, loss: float = 2.0) -> Observation:
    run = next(run for run in plan.runs if run.name == run_name)
    return Observation(
        name=run.name,
        role=run.role,
        state_id=run.segments[-1],
        trunk="a trunk",
        seed=0,
        data_seed=0,
        params=run.params.matmul,
        total_params=run.params.total,
        non_embedding_params=run.params.non_embedding,
        tokens=run.tokens,
        train_flops=run.train_flops,
        loss=loss,
        loss_se=0.01,
        bits_per_byte=1.0,
        evaluation_tokens=1000,
        evaluation_digest="an evaluation",
        document_losses_path="losses",
        document_losses_sha256="0" * 64,
        world_size=1,
    )


def metrics(curve_id: str, step: int, time_ms: int = 1, **data: float) -> JournalLine:
    return JournalLine(kind="metrics", curve_id=curve_id, step=step, tokens=step * 1024, time_ms=time_ms, data=data)


# A new database


def test_migrations_give_the_tables_that_the_code_names(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_opening_again_finds_what_was_written(ledger: Ledger, url: str, plan: Plan) -> None:
    again = LedgerReader.open(url)
    assert again.study_name == plan.study_name
    assert [run.name for run in again.runs()] == [run.name for run in plan.runs]
    assert set(again.segments()) == set(plan.segments)


def test_reading_a_ledger_that_is_not_there_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"there is no ledger at .*`scaling run` makes one"):
        LedgerReader.open(sqlite_url(tmp_path / "none.sqlite"))


def test_database_of_a_newer_version_is_refused(ledger: Ledger, url: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = 'of next year'")
    with pytest.raises(LedgerError, match=r"unknown to this version .*or a newer one"):
        Ledger.open(url, create=True)
    with pytest.raises(LedgerError, match="has schema of next year"):
        LedgerReader.open(url)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("these are not the pages of a database, " * 100)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(sqlite_url(path), create=True)


def test_text_that_is_no_url_is_refused() -> None:
    with pytest.raises(LedgerError, match="is not a database URL"):
        Ledger.open("somewhere", create=True)


def test_two_studies_in_one_database_must_be_named(url: str, plan: Plan) -> None:
    for name in ("one", "two"):
        Ledger.open(url, create=True, study_name=name).register_plan(replace(plan, study_name=name), NOW)
    with pytest.raises(LedgerError, match=r"2 studies \(one, two\): name one"):
        Ledger.open(url)
    assert len(Ledger.open(url, study_name="two").runs()) == len(plan.runs)


# Plans


def test_registering_the_same_plan_again_changes_nothing(ledger: Ledger, plan: Plan) -> None:
    before = (ledger.runs(), ledger.segments(), ledger.study())
    ledger.register_plan(plan, NOW + 5)
    assert (ledger.runs(), ledger.segments(), ledger.study()) == before


def test_budget_inserted_between_two_keeps_accepted_states_and_adds_the_missing(ledger: Ledger, plan: Plan) -> None:
    states = path_of(plan, "n20k-d400k-s0")
    attempt = ledger.claim_attempt(states, "gang", NOW)
    for state_id in states:
        assert ledger.accept_state(state_id, attempt, "somewhere", "d" * 64, end_step(plan, state_id), NOW)
    wider = small_plan("design.tokens=[0.2M, 0.3M, 0.4M]")
    ledger.register_plan(wider, NOW)
    segments = ledger.segments()
    assert {segments[state_id].status for state_id in states} == {"accepted"}
    middle = path_of(wider, "n20k-d300k-s0")
    assert [segments[state_id].status for state_id in middle] == ["accepted", "waiting", "waiting"]


def test_changed_recipe_under_the_same_name_is_refused_with_the_fields_that_differ(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"recipe\.learning_rate: 0\.005 != 0\.012"):
        ledger.register_plan(small_plan("recipe.learning_rate=0.005"), NOW)


def test_plan_of_another_study_is_refused(ledger: Ledger, plan: Plan) -> None:
    with pytest.raises(LedgerError, match="keeps study 'small', the plan is of 'other'"):
        ledger.register_plan(replace(plan, study_name="other"), NOW)


def test_run_added_behind_a_failed_trunk_is_failed_with_it(ledger: Ledger, plan: Plan) -> None:
    trunk = path_of(plan, "n20k-d200k-s0")[0]
    ledger.fail_state(trunk, "a bug", NOW)
    ledger.register_plan(small_plan("design.tokens=[0.2M, 0.3M, 0.4M]"), NOW)
    assert (ledger.run("n20k-d300k-s0").status, ledger.run("n20k-d300k-s0").reason) == ("failed", "a bug")


# Attempts and states


def test_attempt_numbers_grow_over_all_chains(ledger: Ledger, plan: Plan) -> None:
    first, second = path_of(plan, "n20k-d200k-s0"), path_of(plan, "n45k-d200k-s0")
    numbers = [ledger.claim_attempt(chain, "gang", NOW) for chain in (first, second, first)]
    assert numbers == [1, 2, 3]


def test_only_the_newest_attempt_that_covers_a_state_may_accept_it(ledger: Ledger, plan: Plan) -> None:
    trunk = path_of(plan, "n20k-d200k-s0")[0]
    old, new = (ledger.claim_attempt([trunk], "gang", NOW) for _ in range(2))
    before = ledger.segments()[trunk]
    assert not ledger.accept_state(trunk, old, "late", "1" * 64, end_step(plan, trunk), NOW)
    assert not ledger.record_checkpoint(trunk, old, 10, "late", "1" * 64, NOW)
    assert ledger.segments()[trunk] == before
    assert ledger.accept_state(trunk, new, "in time", "2" * 64, end_step(plan, trunk), NOW)
    assert not ledger.accept_state(trunk, new, "twice", "3" * 64, end_step(plan, trunk), NOW)
    assert ledger.segments()[trunk].path == "in time"


def test_state_at_another_step_than_the_segments_end_is_not_accepted(ledger: Ledger, plan: Plan) -> None:
    trunk = path_of(plan, "n20k-d200k-s0")[0]
    attempt = ledger.claim_attempt([trunk], "gang", NOW)
    assert not ledger.accept_state(trunk, attempt, "path", "1" * 64, end_step(plan, trunk) - 1, NOW)


def test_ended_attempt_leaves_unaccepted_segments_waiting_and_is_charged_to_the_first(
    ledger: Ledger, plan: Plan
) -> None:
    chain = path_of(plan, "n20k-d400k-s0")
    attempt = ledger.claim_attempt(chain, "gang", NOW)
    ledger.accept_state(chain[0], attempt, "path", "1" * 64, end_step(plan, chain[0]), NOW)
    assert ledger.end_attempt(attempt, "infrastructure", NOW, cause="killed", log_path="a log")
    assert [ledger.segments()[state_id].status for state_id in chain] == ["accepted", "waiting", "waiting"]
    assert ledger.attempts()[0].charged_state_id == chain[1]
    assert not ledger.end_attempt(attempt, "bug", NOW)
    assert ledger.attempts()[0].outcome == "infrastructure"


def test_end_of_an_old_attempt_leaves_the_newer_ones_segments_open(ledger: Ledger, plan: Plan) -> None:
    trunk = path_of(plan, "n20k-d200k-s0")[0]
    old, _ = (ledger.claim_attempt([trunk], "gang", NOW) for _ in range(2))
    ledger.end_attempt(old, "node_lost", NOW)
    assert ledger.segments()[trunk].status == "open"


@pytest.mark.parametrize(("status", "match"), [("accepted", "accepted -> open"), ("failed", "failed -> open")])
def test_segment_that_is_settled_is_not_opened_again(ledger: Ledger, plan: Plan, status: str, match: str) -> None:
    trunk = path_of(plan, "n20k-d200k-s0")[0]
    if status == "accepted":
        attempt = ledger.claim_attempt([trunk], "gang", NOW)
        ledger.accept_state(trunk, attempt, "path", "1" * 64, end_step(plan, trunk), NOW)
    else:
        ledger.fail_state(trunk, "a bug", NOW)
    with pytest.raises(LedgerError, match=f"segment n20k-s0 trunk 0-156: {match} is not allowed"):
        ledger.claim_attempt([trunk], "gang", NOW)


def test_refused_claim_leaves_nothing_behind(ledger: Ledger, plan: Plan) -> None:
    chain = path_of(plan, "n20k-d200k-s0")
    ledger.fail_state(chain[1], "a bug", NOW)
    with pytest.raises(LedgerError):
        ledger.claim_attempt(chain, "gang", NOW)
    assert ledger.segments()[chain[0]].status == "waiting"
    assert ledger.attempts() == []


def test_lost_state_is_trained_again_and_its_runs_keep_their_observation(ledger: Ledger, plan: Plan) -> None:
    final = path_of(plan, "n20k-d200k-s0")[-1]
    attempt = ledger.claim_attempt([final], "gang", NOW)
    ledger.accept_state(final, attempt, "path", "1" * 64, end_step(plan, final), NOW)
    ledger.record_final("n20k-d200k-s0", observation_of(plan, "n20k-d200k-s0"), attempt, NOW)
    ledger.lose_state(final, "bit flip", NOW)
    assert ledger.segments()[final].status == "waiting"
    assert [row.name for row in ledger.observations()] == ["n20k-d200k-s0"]


# Ends of runs


def test_first_final_observation_wins(ledger: Ledger, plan: Plan) -> None:
    name = "n20k-d200k-s0"
    assert ledger.record_final(name, observation_of(plan, name, loss=2.0), 1, NOW)
    assert not ledger.record_final(name, observation_of(plan, name, loss=3.0), 2, NOW)
    assert [row.loss for row in ledger.observations()] == [2.0]
    assert ledger.run(name).status == "finished"


def test_quarantined_trunk_takes_its_unfinished_runs_along(ledger: Ledger, plan: Plan) -> None:
    short, long = "n20k-d200k-s0", "n20k-d400k-s0"
    ledger.record_final(short, observation_of(plan, short), 1, NOW)
    attempt = ledger.claim_attempt(path_of(plan, long), "gang", NOW)
    ledger.end_attempt(attempt, "diverged", NOW)
    assert ledger.quarantine(path_of(plan, long)[0], "loss nan in step 7", NOW) == [long]
    assert (ledger.run(short).status, ledger.run(long).status) == ("finished", "diverged")
    assert not ledger.record_final(long, observation_of(plan, long), attempt, NOW)


def test_failed_run_waits_again_when_asked_and_its_failures_are_forgiven(ledger: Ledger, plan: Plan) -> None:
    name = "n20k-d200k-s0"
    final = path_of(plan, name)[-1]
    attempt = ledger.claim_attempt([final], "gang", NOW)
    ledger.end_attempt(attempt, "bug", NOW)
    ledger.fail_state(final, "a bug", NOW)
    assert ledger.reopen_runs([name], NOW) == [name]
    assert (ledger.run(name).status, ledger.segments()[final].status) == ("waiting", "waiting")
    assert ledger.segments()[final].forgiven_attempt == attempt
    assert ledger.reopen_runs([name], NOW) == []


def test_diverged_run_waits_again_only_when_divergence_is_named(ledger: Ledger, plan: Plan) -> None:
    name = "n20k-d200k-s0"
    ledger.quarantine(path_of(plan, name)[-1], "loss nan", NOW)
    assert ledger.reopen_runs([name], NOW) == []
    assert ledger.reopen_runs([name], NOW, diverged=True) == [name]


def test_unknown_run_is_named(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="study small has no run 'n1-d1-s0'"):
        ledger.reopen_runs(["n1-d1-s0"], NOW)


# Forecasts


def test_target_opens_only_after_its_forecast_is_frozen(ledger: Ledger, plan: Plan) -> None:
    name = "n95k-d200k-s0"
    with pytest.raises(LedgerError, match="belongs to target n95k-d200k-s0, whose forecast is not frozen"):
        ledger.claim_attempt(path_of(plan, name)[-1:], "gang", NOW)
    ledger.freeze_forecast({"predicted": 1.5}, [name], NOW)
    ledger.claim_attempt(path_of(plan, name)[-1:], "gang", NOW)
    with pytest.raises(LedgerError, match="belongs to target n95k-d400k-s0"):
        ledger.claim_attempt(path_of(plan, name)[:1], "gang", NOW)


def test_first_forecast_is_blind_and_one_made_after_the_target_opened_is_not(ledger: Ledger, plan: Plan) -> None:
    name = "n95k-d200k-s0"
    ledger.freeze_forecast({"predicted": 1.5}, [name], NOW)
    ledger.claim_attempt(path_of(plan, name)[-1:], "gang", NOW)
    ledger.freeze_forecast({"predicted": 1.6}, [name], NOW)
    assert [row.blind for row in ledger.forecasts()] == [True, False]


def test_freezing_the_same_record_again_is_the_same_forecast(ledger: Ledger) -> None:
    digests = {ledger.freeze_forecast({"predicted": 1.5}, ["n95k-d200k-s0"], NOW + i) for i in range(2)}
    assert len(digests) == len(ledger.forecasts()) == 1


def test_first_score_of_a_forecast_stands(ledger: Ledger) -> None:
    digest = ledger.freeze_forecast({"predicted": 1.5}, ["n95k-d200k-s0"], NOW)
    assert ledger.score_forecast(digest, {"error": 0.01}, NOW)
    assert not ledger.score_forecast(digest, {"error": 0.0}, NOW)
    assert ledger.forecasts()[0].score == {"error": 0.01}
    with pytest.raises(LedgerError, match="no forecast with digest f00"):
        ledger.score_forecast("f00", {}, NOW)


# Curves, events, marks


def test_first_point_of_each_curve_key_and_step_wins(ledger: Ledger) -> None:
    ledger.record_points("trunk", [metrics("trunk", 10, loss=2.0, rate=0.1), metrics("trunk", 20, loss=1.9)])
    ledger.record_points("trunk", [metrics("trunk", 20, time_ms=9, loss=7.0), metrics("trunk", 30, loss=1.8)])
    points = ledger.points_after()
    assert [(point.key, point.step, point.value) for point in points] == [
        ("loss", 10, 2.0),
        ("rate", 10, 0.1),
        ("loss", 20, 1.9),
        ("loss", 30, 1.8),
    ]
    assert [point.sequence for point in points] == sorted(point.sequence for point in points)


def test_points_are_read_on_from_a_sequence_and_by_curve(ledger: Ledger) -> None:
    for curve_id in ("trunk", "decay"):
        ledger.record_points(curve_id, [metrics(curve_id, step, loss=1.0) for step in (1, 2, 3)])
    first = ledger.points_after(limit=2)
    rest = ledger.points_after(first[-1].sequence)
    assert [(point.curve_id, point.step) for point in rest] == [("trunk", 3), ("decay", 1), ("decay", 2), ("decay", 3)]
    assert [point.step for point in ledger.points_after(0, 10, ["decay"])] == [1, 2, 3]
    assert ledger.heads() == {"trunk": first[-1].sequence + 1, "decay": rest[-1].sequence}
    assert ledger.latest_steps() == {"trunk": 3, "decay": 3}


def test_marks_hold_their_last_value(ledger: Ledger) -> None:
    assert ledger.get_mark("shipped", 0) == 0
    for value in (5, 7):
        ledger.set_mark("shipped", value)
    assert ledger.get_mark("shipped") == 7


def test_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def fails() -> None:
        with ledger.transaction():
            ledger.append_event("half", {}, NOW)
            ledger.set_mark("half", 1)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [event.kind for event in ledger.events_after()] == []
    assert ledger.get_mark("half") is None


# Processes


def _write_points(url: str, name: str, announce: str) -> None:
    ledger = Ledger.open(url)
    for step in range(10_000):
        with ledger.transaction():
            ledger.record_points(name, [metrics(name, step, loss=1.0)])
            ledger.set_mark(name, step)
        if step == 20:
            Path(announce).touch()


def test_kill_9_of_a_writer_leaves_whole_transactions_only(ledger: Ledger, url: str, tmp_path: Path) -> None:
    announce = tmp_path / "twenty"
    writer = multiprocessing.get_context("spawn").Process(target=_write_points, args=(url, "curve", str(announce)))
    writer.start()
    while not announce.exists():
        assert writer.is_alive()
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    steps = [point.step for point in ledger.points_after(limit=10_000)]
    assert steps == list(range(len(steps)))
    assert ledger.get_mark("curve") == steps[-1]
    ledger.set_mark("after", 1)


def test_two_processes_write_one_ledger_without_losing_anything(ledger: Ledger, url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_points, args=(url, name, str(tmp_path / name)), daemon=True)
        for name in ("left", "right")
    ]
    for writer in writers:
        writer.start()
    while not all((tmp_path / name).exists() for name in ("left", "right")):
        assert all(writer.is_alive() for writer in writers)
        time.sleep(0.01)
    for writer in writers:
        writer.terminate()
        writer.join()
    for name in ("left", "right"):
        steps = [point.step for point in ledger.points_after(0, 30_000, [name])]
        assert steps == list(range(len(steps)))


def _open_first(url: str) -> None:
    Ledger.open(url, create=True)


def test_several_processes_may_open_a_new_ledger_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    openers = [context.Process(target=_open_first, args=(url,)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0, 0, 0]
    with open_engine(url, create=False).connect() as connection:
        assert sa.inspect(connection).has_table("scaling_run")


def test_state_ids_of_the_ledger_are_fingerprints(ledger: Ledger, plan: Plan) -> None:
    run = plan.runs[0]
    assert ledger.run(run.name).state_ids[-1] == state_fingerprint(run.spec, run.spec.total_steps)
