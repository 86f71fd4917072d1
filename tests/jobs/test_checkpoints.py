"""A state that was written is read back whole, anywhere, or refused with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import CheckpointError, drop_state, load_state, save_state, verify_state
from jobs.engine import Engine
from jobs.identity import state_fingerprint
from jobs.peers import Peers
from jobs.spec import Execution, RunSpec, StateRef
from jobs.storage import sha256_of_bytes
from tests.jobs.rank_processes import FolderLink, run_ranks
from tests.jobs.tiny_runs import TinyCorpus, tiny_spec

SAVED_AT = 6
NUM_STEPS = 10


@dataclass(frozen=True)
class Continued:
    """Losses of the steps after the saved one, and every tensor of the state at the end."""

    losses: list[float]
    state: dict[str, torch.Tensor]


def train(engine: Engine, peers: Peers, spec: RunSpec, steps: range) -> list[float]:
    share = spec.recipe.batch_sequences // peers.world_size
    rows = slice(peers.rank * share, (peers.rank + 1) * share)
    losses = []
    for step in steps:
        tokens = TinyCorpus().batch(0, step, spec.recipe.batch_sequences, spec.shape.sequence_length, rows)
        loss = engine.backward(torch.from_numpy(tokens))
        losses.append(peers.sum([loss])[0] / peers.world_size)
        engine.step(spec.schedule.multiplier(step))
    return losses


def whole_state(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        f"{name} {kind}": tensor
        for name in engine.parameter_names
        for kind, tensor in vars(engine.read_state(name)).items()
    }


def continued(engine: Engine, peers: Peers, spec: RunSpec) -> Continued:
    losses = train(engine, peers, spec, range(SAVED_AT, NUM_STEPS))
    result = Continued(losses, whole_state(engine))
    engine.close()
    return result


def save_and_go_on(
    rank: int, world_size: int, folder: Path, spec: RunSpec, executions: list[Execution], states: Path
) -> list[tuple[StateRef, Continued]]:
    """For each execution: train, save under `states`, go on undisturbed."""
    results = []
    with Peers.join(FolderLink(folder), rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        for index, execution in enumerate(executions):
            engine = Engine(spec, execution, torch.device("cpu"))
            train(engine, peers, spec, range(SAVED_AT))
            reference = save_state(states / f"{index}", engine, peers, spec=spec, step=SAVED_AT, attempt=1)
            results.append((reference, continued(engine, peers, spec)))
    return results


def load_and_go_on(
    rank: int, world_size: int, folder: Path, spec: RunSpec, cases: list[tuple[StateRef, Execution]]
) -> list[Continued]:
    """For each case: load the state, go on."""
    results = []
    with Peers.join(FolderLink(folder), rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        for reference, execution in cases:
            engine = Engine(spec, execution, torch.device("cpu"))
            load_state(reference, engine, peers, spec=spec)
            results.append(continued(engine, peers, spec))
    return results


def refusals(rank: int, world_size: int, folder: Path, spec: RunSpec, references: list[StateRef]) -> list[str]:
    """What loading each state says on this rank; an engine that refused one can still load the last."""
    messages = []
    with Peers.join(FolderLink(folder), rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        engine = Engine(spec, Execution(world_size=world_size, micro_batch_sequences=4), torch.device("cpu"))
        for reference in references:
            try:
                load_state(reference, engine, peers, spec=spec)
            except CheckpointError as error:
                messages.append(str(error))
            else:
                messages.append("loaded")
        engine.close()
    return messages


TWO_RANKS = [Execution(world_size=2, micro_batch_sequences=4, zero_stage=stage) for stage in (1, 2, 3)]


@dataclass(frozen=True)
class Saved:
    """States of one run at one step, by ZeRO stage on two ranks, and how each went on."""

    spec: RunSpec
    references: list[StateRef]
    undisturbed: list[Continued]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    spec = tiny_spec()
    results = run_ranks(save_and_go_on, 2, spec, TWO_RANKS, tmp_path_factory.mktemp("states"))
    return Saved(spec, [reference for reference, _ in results[0]], [after for _, after in results[0]])


def assert_same(found: Continued, expected: Continued) -> None:
    assert found.losses == expected.losses
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name


def test_resumed_run_is_bitwise_the_undisturbed_one_on_the_same_gang_at_every_stage(saved: Saved) -> None:
    cases = list(zip(saved.references, TWO_RANKS, strict=True))
    for per_rank in run_ranks(load_and_go_on, 2, saved.spec, cases):
        for found, expected in zip(per_rank, saved.undisturbed, strict=True):
            assert_same(found, expected)


def test_resumed_run_in_bf16_is_bitwise_the_undisturbed_one_at_every_stage(tmp_path: Path) -> None:
    spec = tiny_spec().model_copy(update={"precision": "bf16"})
    results = run_ranks(save_and_go_on, 2, spec, TWO_RANKS, tmp_path)[0]
    cases = [(reference, execution) for (reference, _), execution in zip(results, TWO_RANKS, strict=True)]
    for found, (_, expected) in zip(run_ranks(load_and_go_on, 2, spec, cases)[0], results, strict=True):
        assert_same(found, expected)
        # The stages round alike up to the order of sums: bf16 has 3 digits.
        assert found.losses == pytest.approx(results[0][1].losses, rel=3e-3)


def test_slices_that_need_padding_and_tensors_too_large_to_be_kept_whole_come_back(tmp_path: Path) -> None:
    # On three ranks no tensor divides evenly; 100,000 numbers and more are partitioned by stage 3 between uses.
    small = tiny_spec(batch_sequences=6)
    large = small.model_copy(update={"shape": small.shape.model_copy(update={"vocab_size": 6301})})
    for spec in (small, large):
        executions = [Execution(world_size=3, micro_batch_sequences=2, zero_stage=stage) for stage in (1, 3)]
        results = run_ranks(save_and_go_on, 3, spec, executions, tmp_path / str(spec.shape.vocab_size))[0]
        cases = [(reference, execution) for (reference, _), execution in zip(results, executions, strict=True)]
        for found, (_, expected) in zip(run_ranks(load_and_go_on, 3, spec, cases)[0], results, strict=True):
            assert_same(found, expected)


def test_state_of_one_stage_goes_on_at_another(saved: Saved) -> None:
    cases = [(saved.references[0], TWO_RANKS[2]), (saved.references[2], TWO_RANKS[0])]
    for found in run_ranks(load_and_go_on, 2, saved.spec, cases)[0]:
        assert found.losses == pytest.approx(saved.undisturbed[0].losses, rel=1e-6)


def test_state_of_two_ranks_goes_on_on_one(saved: Saved) -> None:
    one_rank = [Execution(micro_batch_sequences=8, zero_stage=stage) for stage in (1, 2, 3)]
    cases = [(saved.references[0], execution) for execution in one_rank] + [(saved.references[2], one_rank[0])]
    for found in run_ranks(load_and_go_on, 1, saved.spec, cases)[0]:
        assert found.losses == pytest.approx(saved.undisturbed[0].losses, rel=1e-6)


def test_state_is_plain_safetensors_that_other_tools_can_read(saved: Saved) -> None:
    from safetensors.torch import load_file

    folder = Path(saved.references[0].path)
    tensors = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert tensors["parameter.embedding.weight"].shape == (61, 16)
    assert {name.partition(".")[0] for name in tensors} == {"parameter", "exp_avg", "exp_avg_sq"}
    assert not list(folder.parent.glob("*.tmp"))


def damaged(saved: Saved, folder: Path, damage: Callable[[Path], None]) -> StateRef:
    reference = saved.references[0]
    shutil.copytree(reference.path, folder)
    damage(folder)
    return reference.model_copy(update={"path": str(folder)})


def flip_a_bit(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def truncate(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])


def lose_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def change_the_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"attempt": 1', '"attempt": 2'))


def with_manifest(saved: Saved, folder: Path, **changes: Any) -> StateRef:
    """A copy with another manifest, in whose digest the ledger believes."""
    reference = saved.references[0]
    shutil.copytree(reference.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = json.dumps({**manifest, **changes}).encode()
    (folder / "manifest.json").write_bytes(content)
    return StateRef(path=str(folder), manifest_digest=sha256_of_bytes(content), step=SAVED_AT)


DAMAGES = {
    "bit": (flip_a_bit, "shard-00001-of-00002.safetensors: expected sha256"),
    "short": (truncate, "shard-00001-of-00002.safetensors: expected"),
    "lost": (lose_a_shard, "shard-00001-of-00002.safetensors: expected"),
    "unfinished": (lose_the_manifest, "manifest.json: expected the manifest"),
    "changed": (change_the_manifest, "manifest.json: expected sha256"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_verification_names_file_expected_and_found(saved: Saved, tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGES[kind]
    reference = damaged(saved, tmp_path / kind, damage)
    with pytest.raises(CheckpointError, match=message) as caught:
        verify_state(Path(reference.path), reference.manifest_digest)
    assert "found" in str(caught.value)


def test_all_ranks_refuse_a_bad_state_together_and_take_the_good_one(saved: Saved, tmp_path: Path) -> None:
    other_run = saved.spec.model_copy(update={"seed": 7})
    references = [
        *(damaged(saved, tmp_path / kind, damage) for kind, (damage, _) in DAMAGES.items()),
        with_manifest(saved, tmp_path / "version", format_version=2),
        with_manifest(
            saved,
            tmp_path / "run",
            spec=other_run.model_dump(mode="json"),
            state_id=state_fingerprint(other_run, SAVED_AT),
        ),
        saved.references[0],
    ]
    for messages in run_ranks(refusals, 2, saved.spec, references, timeout_s=60):
        assert "format_version" in messages[-3]
        assert "seed: 0 != 7" in messages[-2]
        assert messages[-1] == "loaded"
        for message, (_, expected) in zip(messages, DAMAGES.values(), strict=False):
            assert expected in message
            assert "rank 0" in message
            assert "rank 1" in message


def write_where_one_cannot(rank: int, world_size: int, folder: Path, spec: RunSpec, states: Path) -> str:
    with Peers.join(FolderLink(folder), rank=rank, world_size=world_size, on_one_node=True, backend="gloo") as peers:
        engine = Engine(spec, Execution(world_size=2, micro_batch_sequences=4), torch.device("cpu"))
        train(engine, peers, spec, range(1))
        if rank == 1:
            # Rank 1's shard cannot be written: its name is taken by a folder.
            (states / "state.tmp" / "shard-00001-of-00002.safetensors").mkdir(parents=True)
        peers.gather(None)
        try:
            save_state(states / "state", engine, peers, spec=spec, step=1, attempt=1)
        except CheckpointError as error:
            return str(error)
        return "saved"


def test_no_rank_believes_in_a_state_that_one_could_not_write(tmp_path: Path) -> None:
    messages = run_ranks(write_where_one_cannot, 2, tiny_spec(), tmp_path, timeout_s=60)
    assert all("rank" in str(message) for message in messages), messages
    assert not (tmp_path / "state").exists()


def test_dropping_a_state_twice_is_harmless(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved.references[0].path, tmp_path / "state")
    drop_state(tmp_path / "state")
    drop_state(tmp_path / "state")
    assert not list(tmp_path.iterdir())
