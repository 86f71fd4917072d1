"""A chain ends in the same states and losses however it was cut, interrupted and carried out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.checkpoints import CheckpointError, verify_state
from jobs.engine import Engine
from jobs.journal import JournalLine, JournalWriter, decode_lines
from jobs.peers import Peers
from jobs.records import DocumentLosses
from jobs.spec import ChainPayload, StateRef
from jobs.storage import AttemptPaths
from jobs.training import Attempt, Outcome
from tests.jobs.rank_processes import FolderLink, run_ranks
from tests.jobs.tiny_runs import TinyCorpus, segments_of, tiny_payload, tiny_spec


class PoisonedEngine(Engine):
    """From the sixth step on, rank 0's weights, or its gradients alone, are not finite."""

    def __init__(self, *arguments: Any, poison: str) -> None:
        super().__init__(*arguments)
        self.poison = poison
        self.steps_left = 5

    def backward(self, rows: torch.Tensor) -> float:
        weight = self._parameters["head.weight"]
        if self.steps_left == 0 and torch.distributed.get_rank() == 0:
            if self.poison == "weight":
                with torch.no_grad():
                    weight.fill_(math.nan)
            else:
                self._deepspeed.module.head.register_full_backward_hook(
                    lambda _module, inputs, _outputs: tuple(gradient * math.nan for gradient in inputs)
                )
        self.steps_left -= 1
        return super().backward(rows)


def attempts(
    rank: int, world_size: int, folder: Path, chains: list[tuple[ChainPayload, int | None, str | None]]
) -> list[Outcome]:
    """Execute chains one after another: (payload, step at which the last rank is asked to leave, poison)."""
    outcomes = []
    with Peers.join(FolderLink(folder), rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        for payload, leave_at, poison in chains:
            link = FolderLink(folder, leave_at if rank == world_size - 1 else None)
            arguments = (payload.spec, payload.execution, torch.device("cpu"))
            engine = Engine(*arguments) if poison is None else PoisonedEngine(*arguments, poison=poison)
            journal = JournalWriter(AttemptPaths(Path(payload.attempt_dir)).journal) if rank == 0 else None
            outcomes.append(Attempt(payload, engine, TinyCorpus(), peers, link, journal).run())
            engine.close()
    return outcomes


def run_chains(world_size: int, *chains: tuple[ChainPayload, int | None, str | None]) -> list[Outcome]:
    results = run_ranks(attempts, world_size, list(chains))
    assert all(outcomes == results[0] for outcomes in results)
    return results[0]


def journal_of(payload: ChainPayload) -> list[JournalLine]:
    return decode_lines(AttemptPaths(Path(payload.attempt_dir)).journal.read_text())


def reference_of(line: JournalLine) -> StateRef:
    return StateRef(path=line.data["path"], manifest_digest=line.data["manifest_digest"], step=line.step)


def state_at(payload: ChainPayload, step: int) -> dict[str, torch.Tensor]:
    folder = AttemptPaths(Path(payload.attempt_dir)).state(step)
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def assert_same_state(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(right[name], tensor), name


def losses_of(*payloads: ChainPayload) -> dict[int, float]:
    return {
        line.step: line.data["train/loss"]
        for payload in payloads
        for line in journal_of(payload)
        if line.kind == "metrics"
    }


def final_of(payload: ChainPayload) -> dict[str, Any]:
    [line] = [line for line in journal_of(payload) if line.kind == "final"]
    return {key: value for key, value in line.data.items() if key != "path"}


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_interrupted_and_resumed_chain_is_bitwise_the_undisturbed_one(tmp_path: Path, zero_stage: int) -> None:
    spec = tiny_spec()
    segments = segments_of(spec, 12, 24, 30)
    how = {"world_size": 2, "zero_stage": zero_stage, "micro_batch_sequences": 2}
    whole = tiny_payload(tmp_path / "whole", spec, segments, **how)
    cut = tiny_payload(tmp_path / "cut", spec, segments, **how)
    outcomes = run_chains(2, (whole, None, None), (cut, 17, None))
    assert [(outcome.kind, outcome.step) for outcome in outcomes] == [("finished", 30), ("preempted", 17)]

    checkpoint = journal_of(cut)[-2]
    assert (checkpoint.kind, checkpoint.step) == ("checkpoint", 17)
    rest = tiny_payload(tmp_path / "rest", spec, segments, resume=reference_of(checkpoint), attempt=2, **how)
    run_chains(2, (rest, None, None))
    assert losses_of(cut, rest) == losses_of(whole)
    assert_same_state(state_at(rest, 30), state_at(whole, 30))
    assert final_of(rest) == final_of(whole)


def test_branch_from_a_trunk_is_bitwise_the_run_trained_alone(tmp_path: Path) -> None:
    short, long = tiny_spec(total_steps=20, decay_steps=4), tiny_spec(total_steps=30, decay_steps=6)
    alone = tiny_payload(tmp_path / "alone", short, segments_of(short, 16, 20))
    # The trunk runs on to the longer horizon; the shorter run leaves it at step 16.
    trunk_segments = segments_of(long, 16, 24, 30)
    assert trunk_segments[0] == segments_of(short, 16, 20)[0]
    trunk = tiny_payload(tmp_path / "trunk", long, trunk_segments)
    run_chains(1, (alone, None, None), (trunk, None, None))
    fork = next(line for line in journal_of(trunk) if line.kind == "state")
    assert fork.data["state_id"] == trunk_segments[0].state_id
    branch = tiny_payload(tmp_path / "branch", short, segments_of(short, 16, 20)[1:], resume=reference_of(fork))
    run_chains(1, (branch, None, None))
    assert_same_state(state_at(branch, 20), state_at(alone, 20))
    assert final_of(branch) == final_of(alone)
    assert {**losses_of(trunk), **losses_of(branch)}.items() >= losses_of(alone).items()


def test_journal_tells_the_chain_in_order(tmp_path: Path) -> None:
    spec = tiny_spec()
    payload = tiny_payload(tmp_path / "run", spec, segments_of(spec, 12, 24, 30))
    run_chains(1, (payload, None, None))
    lines = journal_of(payload)
    assert [(line.kind, line.step) for line in lines if line.kind != "metrics"] == [
        ("begin", 0),
        ("state", 12),
        ("state", 24),
        ("state", 30),
        ("final", 30),
        ("end", 30),
    ]
    assert [line.step for line in lines if line.kind == "metrics"] == list(range(1, 31))
    assert all(line.tokens == line.step * spec.batch_tokens for line in lines)
    first = next(line for line in lines if line.kind == "metrics")
    assert first.data["train/learning_rate"] == pytest.approx(0.01 * 0.25)
    assert first.data["train/loss"] == pytest.approx(math.log(61), abs=0.2)
    assert first.data["train/optimizer_step"] == 1


def test_final_loss_can_be_had_again_from_its_file_and_its_manifest(tmp_path: Path) -> None:
    spec = tiny_spec()
    payload = tiny_payload(tmp_path / "run", spec, segments_of(spec, 30))
    run_chains(1, (payload, None, None))
    [line] = [line for line in journal_of(payload) if line.kind == "final"]
    losses = DocumentLosses.load(Path(line.data["path"]), line.data["sha256"])
    assert losses.loss == line.data["val/loss"]
    assert losses.standard_error == line.data["val/loss_se"]
    assert (losses.tokens.sum(), len(losses.tokens)) == (line.data["tokens"], line.data["documents"]) == (500, 4)
    # One byte a token in this corpus.
    assert losses.bits_per_byte == pytest.approx(losses.loss / math.log(2))
    manifest = verify_state(AttemptPaths(Path(payload.attempt_dir)).state(30))
    assert manifest.final is not None
    assert manifest.final.journal_data(manifest.state_id) == line.data


def test_final_loss_depends_on_the_number_of_ranks_by_rounding_alone(tmp_path: Path) -> None:
    spec = tiny_spec()
    one = tiny_payload(tmp_path / "one", spec, segments_of(spec, 30))
    two = tiny_payload(tmp_path / "two", spec, segments_of(spec, 30), world_size=2, zero_stage=3)
    run_chains(1, (one, None, None))
    run_chains(2, (two, None, None))
    assert final_of(two)["val/loss"] == pytest.approx(final_of(one)["val/loss"], rel=1e-5)
    assert final_of(two)["tokens"] == final_of(one)["tokens"]


def test_checkpoints_inside_a_segment_are_kept_two_deep_and_dropped_at_its_end(tmp_path: Path) -> None:
    spec = tiny_spec()
    running = tiny_payload(tmp_path / "left", spec, segments_of(spec, 24, 30), checkpoint_interval_s=1e-9)
    ended = tiny_payload(tmp_path / "ended", spec, segments_of(spec, 24), checkpoint_interval_s=1e-9)
    run_chains(1, (running, 10, None), (ended, None, None))
    states = AttemptPaths(Path(running.attempt_dir)).states
    assert sorted(path.name for path in states.iterdir()) == ["step-00000009", "step-00000010"]
    assert [path.name for path in AttemptPaths(Path(ended.attempt_dir)).states.iterdir()] == ["step-00000024"]
    assert [line.step for line in journal_of(ended) if line.kind == "checkpoint"] == list(range(1, 24))


def test_leaving_at_the_end_of_a_segment_needs_no_further_checkpoint(tmp_path: Path) -> None:
    spec = tiny_spec()
    payload = tiny_payload(tmp_path / "run", spec, segments_of(spec, 12, 24))
    [outcome] = run_chains(1, (payload, 12, None))
    assert (outcome.kind, outcome.step) == ("preempted", 12)
    assert [line.kind for line in journal_of(payload) if line.kind != "metrics"] == ["begin", "state", "end"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_loss_or_gradient_that_is_not_finite_ends_the_attempt_as_diverged(tmp_path: Path, world_size: int) -> None:
    spec = tiny_spec()
    chains = [
        (
            tiny_payload(
                tmp_path / f"{poison}{stage}", spec, segments_of(spec, 30), world_size=world_size, zero_stage=stage
            ),
            None,
            poison,
        )
        for stage in (1, 2, 3)
        for poison in ("weight", "gradient")
        # Stage 3 gathers a weight anew before it is used.
        if (stage, poison) != (3, "weight")
    ]
    for outcome, (payload, _, poison) in zip(run_chains(world_size, *chains), chains, strict=True):
        reason = "loss nan in step 6" if poison == "weight" else "gradient norm inf in step 6"
        assert outcome == Outcome("diverged", 5, reason)
        assert journal_of(payload)[-1].data == {"outcome": "diverged", "reason": reason}


def test_loss_far_above_uniform_guessing_for_long_is_divergence(tmp_path: Path) -> None:
    spec = tiny_spec(total_steps=200, decay_steps=10, learning_rate=30.0, gradient_clip=0.0, weight_decay=0.0)
    payload = tiny_payload(tmp_path / "run", spec, segments_of(spec, 200))
    [outcome] = run_chains(1, (payload, None, None))
    assert outcome.kind == "diverged"
    assert outcome.step < 200
    assert "above uniform" in outcome.reason


def test_chain_is_refused_outside_its_steps_or_from_another_run(tmp_path: Path) -> None:
    spec, other = tiny_spec(), tiny_spec(learning_rate=0.02)
    payload = tiny_payload(tmp_path / "run", spec, segments_of(spec, 12))
    run_chains(1, (payload, None, None))
    reference = reference_of(next(line for line in journal_of(payload) if line.kind == "state"))
    with pytest.raises(ValueError, match="cannot begin at step 0"):
        run_chains(1, (tiny_payload(tmp_path / "early", spec, segments_of(spec, 12, 30)[1:]), None, None))
    with pytest.raises(ValueError, match="cannot begin at step 12"):
        run_chains(1, (tiny_payload(tmp_path / "late", spec, segments_of(spec, 12), resume=reference), None, None))
    foreign = tiny_payload(tmp_path / "foreign", other, segments_of(other, 12, 30)[1:], resume=reference)
    with pytest.raises(CheckpointError, match=r"recipe.learning_rate: 0.02 != 0.01"):
        run_chains(1, (foreign, None, None))
