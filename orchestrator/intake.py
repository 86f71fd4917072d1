"""Takes an attempt's journal into the ledger: points, checkpoints, accepted states and final observations.

What is taken in twice changes nothing, so a journal may be read again from its beginning at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.checkpoints import MANIFEST, CheckpointError, Manifest, drop_state, verify_state
from jobs.journal import JournalLine
from jobs.observation import Observation
from jobs.storage import sha256_of_bytes
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRun, PlannedSegment


@dataclass(frozen=True)
class Claim:
    """An attempt as its journal is read: which number may accept, and what the chain holds."""

    attempt: int
    state_ids: tuple[str, ...]
    world_size: int


@dataclass(frozen=True)
class Taken:
    """What a reading of the journal changed."""

    accepted: tuple[str, ...] = ()
    finished: tuple[Observation, ...] = ()
    refused: tuple[str, ...] = ()
    """One sentence for each state that is not what its line says."""


def take_in(
    ledger: Ledger, plan: Plan, claim: Claim, lines: Sequence[JournalLine], now: float, *, verify_files: bool = False
) -> Taken:
    """Store what the lines say. `verify_files` reads the states whole, not only their manifests (after a crash)."""
    manifests, refused = _manifests(plan, claim, lines, verify_files)
    accepted: list[str] = []
    finished: list[Observation] = []
    with ledger.transaction():
        for curve_id in dict.fromkeys(line.curve_id for line in lines if line.kind == "metrics"):
            ledger.record_points(curve_id, [line for line in lines if line.curve_id == curve_id])
        for line in lines:
            if (line.kind, line.step) not in manifests:
                continue
            path, digest = str(line.data["path"]), str(line.data["manifest_digest"])
            if line.kind == "checkpoint":
                segment = _segment_around(plan, claim, line)
                ledger.record_checkpoint(segment.segment.state_id, claim.attempt, line.step, path, digest, now)
                continue
            state_id = str(line.data["state_id"])
            if ledger.accept_state(state_id, claim.attempt, path, digest, line.step, now):
                accepted.append(state_id)
                finished += _finish_runs(ledger, plan, claim, manifests[line.kind, line.step], state_id, now)
    return Taken(tuple(accepted), tuple(finished), tuple(refused))


def drop_checkpoints(ledger: Ledger, state_ids: Iterable[str]) -> None:
    """Delete the checkpoints inside segments that are accepted: nothing needs them any more."""
    done = set(state_ids)
    for row in ledger.checkpoints():
        if row.state_id in done:
            drop_state(Path(row.path))
            ledger.forget_checkpoint(row.state_id, row.step, row.attempt)


def _manifests(
    plan: Plan, claim: Claim, lines: Sequence[JournalLine], verify_files: bool
) -> tuple[dict[tuple[str, int], Manifest], list[str]]:
    """Manifests of the states that the lines tell of, read before the ledger is locked; and what is wrong with others.

    A checkpoint that its own attempt has dropped meanwhile is passed over without a word.
    """
    manifests: dict[tuple[str, int], Manifest] = {}
    refused = []
    for line in lines:
        if line.kind not in ("checkpoint", "state"):
            continue
        folder = Path(str(line.data["path"]))
        if line.kind == "checkpoint" and not folder.exists():
            continue
        try:
            manifest = _read(folder, str(line.data["manifest_digest"]), verify_files)
            _check(plan, claim, line, manifest)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        manifests[line.kind, line.step] = manifest
    return manifests, refused


def _read(folder: Path, manifest_digest: str, verify_files: bool) -> Manifest:
    if verify_files:
        return verify_state(folder, manifest_digest)
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: expected the manifest of a training state, found none ({error})") from error
    found = sha256_of_bytes(content)
    if found != manifest_digest:
        raise CheckpointError(f"{path}: expected sha256 {manifest_digest}, found {found}")
    return Manifest.model_validate_json(content)


def _check(plan: Plan, claim: Claim, line: JournalLine, manifest: Manifest) -> None:
    """Raises CheckpointError unless the state is the one that the chain was to give."""
    where = f"{line.data['path']}: a state at step {line.step}"
    if manifest.step != line.step:
        raise CheckpointError(f"{where} whose manifest says step {manifest.step}")
    if line.kind == "checkpoint":
        _segment_around(plan, claim, line)
        return
    state_id = line.data["state_id"]
    if manifest.state_id != state_id or state_id not in claim.state_ids:
        raise CheckpointError(f"{where} whose manifest says {manifest.state_id}, where its journal says {state_id}")
    if plan.segments[state_id].is_final and manifest.final is None:
        raise CheckpointError(f"{where} that ends a run and has no final loss")


def _segment_around(plan: Plan, claim: Claim, line: JournalLine) -> PlannedSegment:
    for state_id in claim.state_ids:
        planned = plan.segments[state_id]
        if planned.segment.start_step < line.step < planned.segment.end_step:
            return planned
    raise CheckpointError(f"{line.data['path']}: a checkpoint at step {line.step} that lies inside no segment")


def _finish_runs(
    ledger: Ledger, plan: Plan, claim: Claim, manifest: Manifest, state_id: str, now: float
) -> list[Observation]:
    """Final observations of the runs that end in this state."""
    finished = []
    for run in plan.runs:
        if run.segments[-1] != state_id:
            continue
        observation = observation_of(run, plan, manifest, claim.world_size)
        if ledger.record_final(run.name, observation, claim.attempt, now):
            finished.append(observation)
    return finished


def observation_of(run: PlannedRun, plan: Plan, manifest: Manifest, world_size: int) -> Observation:
    """The row of a fit that a run's final state gives."""
    final = manifest.final
    assert final is not None, "a state that ends a run holds its final loss"
    return Observation(
        name=run.name,
        role=run.role,
        state_id=run.segments[-1],
        trunk=plan.segments[run.segments[0]].segment.curve_id,
        seed=run.spec.seed,
        data_seed=run.spec.data_seed,
        params=run.params.matmul,
        total_params=run.params.total,
        non_embedding_params=run.params.non_embedding,
        tokens=run.tokens,
        train_flops=run.train_flops,
        loss=final.loss_nats_per_token,
        loss_se=final.loss_standard_error,
        bits_per_byte=final.bits_per_byte,
        evaluation_tokens=final.tokens,
        evaluation_digest=final.evaluation_digest,
        document_losses_path=final.path,
        document_losses_sha256=final.sha256,
        world_size=world_size,
    )
