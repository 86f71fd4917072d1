"""Training states on disk: one format that any number of ranks, any ZeRO stage and other tools can read.

A state is a folder: safetensors shards that hold each tensor of the model whole, its fp32 master weight and both Adam
moments, under `parameter.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME`; and `manifest.json`, written last, with size and
sha256 of every shard. It becomes visible by one rename. It is verified before it is believed, on every rank, and no
rank goes on unless all of them found it whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from jobs.identity import NUMERICS_VERSION, curve_fingerprint, differing_fields, state_fingerprint, state_identity
from jobs.records import FinalLoss
from jobs.spec import Frozen, RunSpec, StateRef
from jobs.storage import commit, sha256_of_bytes, sha256_of_file, sync_file, sync_folder, unfinished

if TYPE_CHECKING:
    from jobs.engine import Engine, TensorState
    from jobs.peers import Peers

MANIFEST = "manifest.json"
KINDS = ("parameter", "exp_avg", "exp_avg_sq")


class CheckpointError(RuntimeError):
    """A training state that cannot be written; or one that is damaged, foreign, or not the one expected."""


class FileEntry(Frozen):
    """One file of a state, as it was written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    size_bytes: int = Field(ge=0)
    sha256: str


class Manifest(Frozen):
    """What a state is, and the files of which it consists."""

    format: Literal["scaling training state"] = "scaling training state"
    format_version: Literal[1] = 1
    numerics_version: int
    state_id: str
    curve_id: str
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    attempt: int = Field(gt=0)
    spec: RunSpec
    files: tuple[FileEntry, ...] = Field(min_length=1)
    final: FinalLoss | None = None


def save_state(
    folder: Path,
    engine: Engine,
    peers: Peers,
    *,
    spec: RunSpec,
    step: int,
    attempt: int,
    final: FinalLoss | None = None,
) -> StateRef:
    """Commit the engine's state at `step` as `folder`; each rank writes one shard. Collective.

    Raises CheckpointError on every rank if any of them cannot write; nothing is then visible as `folder`.
    """
    building = unfinished(folder)
    shard = building / f"shard-{peers.rank:05d}-of-{peers.world_size:05d}.safetensors"
    with peers.together(OSError, CheckpointError):
        if peers.is_first:
            building.mkdir(parents=True)
    # Every rank takes part in gathering each tensor, and keeps those of its own shard.
    own: dict[str, Any] = {}
    for index, name in enumerate(engine.parameter_names):
        state = engine.read_state(name)
        if index % peers.world_size == peers.rank:
            own.update({f"{kind}.{name}": getattr(state, kind).contiguous() for kind in KINDS})
    with peers.together(OSError, CheckpointError):
        entry = _write_shard(shard, own)
    entries = peers.gather(entry)
    digest = ""
    with peers.together(OSError, CheckpointError):
        if peers.is_first:
            manifest = Manifest(
                numerics_version=NUMERICS_VERSION,
                state_id=state_fingerprint(spec, step),
                curve_id=curve_fingerprint(spec, step),
                step=step,
                tokens=step * spec.batch_tokens,
                attempt=attempt,
                spec=spec,
                files=tuple(entries),
                final=final,
            )
            digest = _commit_manifest(building, folder, manifest)
    return StateRef(path=str(folder), manifest_digest=peers.gather(digest)[0], step=step)


def _write_shard(path: Path, tensors: dict[str, Any]) -> FileEntry:
    from safetensors.torch import save

    content: bytes = save(tensors)
    path.write_bytes(content)
    sync_file(path)
    return FileEntry(name=path.name, size_bytes=len(content), sha256=sha256_of_bytes(content))


def _commit_manifest(building: Path, folder: Path, manifest: Manifest) -> str:
    content = manifest.model_dump_json(indent=1).encode()
    path = building / MANIFEST
    path.write_bytes(content)
    sync_file(path)
    sync_folder(building)
    commit(building, folder)
    return sha256_of_bytes(content)


def verify_state(folder: Path, manifest_digest: str | None = None) -> Manifest:
    """Read the manifest of a state and check every file against it. Needs no torch.

    Raises CheckpointError with the file, what was expected and what was found.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: expected the manifest of a training state, found none ({error})") from error
    found = sha256_of_bytes(content)
    if manifest_digest is not None and found != manifest_digest:
        raise CheckpointError(f"{path}: expected sha256 {manifest_digest}, found {found}")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: expected a manifest of format version 1, found {error}") from error
    for entry in manifest.files:
        _verify_file(folder / entry.name, entry)
    return manifest


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise CheckpointError(f"{path}: expected {entry.size_bytes} bytes, found {size_bytes}")
        found = sha256_of_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: expected {entry.size_bytes} bytes, found no readable file ({error})") from error
    if found != entry.sha256:
        raise CheckpointError(f"{path}: expected sha256 {entry.sha256}, found {found}")


def load_state(reference: StateRef, engine: Engine, peers: Peers, *, spec: RunSpec) -> Manifest:
    """Verify a state on every rank and take it over into the engine. Collective.

    `spec` is the run that goes on from it. Raises CheckpointError on every rank if any of them finds it damaged, or
    if it is the state of another run or step; the message then names the fields that differ.
    """
    folder = Path(reference.path)
    with peers.together(CheckpointError, CheckpointError):
        manifest = verify_state(folder, reference.manifest_digest)
        _check_identity(folder, manifest, spec, reference.step)
        places = _tensor_places(folder, manifest)
        _check_names(folder, places, engine.parameter_names)
    engine.write_states(_read_tensors(places), manifest.step)
    return manifest


def _check_identity(folder: Path, manifest: Manifest, spec: RunSpec, step: int) -> None:
    expected = state_fingerprint(spec, step)
    if (manifest.state_id, manifest.step) == (expected, step):
        return
    # The numerics version is not a field of the spec, so it is compared by itself.
    found_identity = {**state_identity(manifest.spec, manifest.step), "numerics_version": manifest.numerics_version}
    differences = differing_fields(state_identity(spec, step), found_identity)
    raise CheckpointError(
        f"{folder}: expected the state {expected} at step {step}, found {manifest.state_id} at step {manifest.step}; "
        f"expected != found: {'; '.join(differences)}"
    )


def _tensor_places(folder: Path, manifest: Manifest) -> dict[str, Path]:
    """The shard of each tensor."""
    from safetensors import SafetensorError, safe_open

    places: dict[str, Path] = {}
    for entry in manifest.files:
        path = folder / entry.name
        try:
            with safe_open(path, framework="pt") as shard:
                places.update(dict.fromkeys(shard.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: expected a safetensors file, found {error}") from error
    return places


def _check_names(folder: Path, places: dict[str, Path], parameter_names: tuple[str, ...]) -> None:
    expected = {f"{kind}.{name}" for name in parameter_names for kind in KINDS}
    if places.keys() != expected:
        missing, foreign = sorted(expected - places.keys()), sorted(places.keys() - expected)
        raise CheckpointError(f"{folder}: tensors missing: {missing}; tensors of no use: {foreign}")


def _read_tensors(places: dict[str, Path]) -> Iterator[tuple[str, TensorState]]:
    """Name and state of each tensor, one at a time: a state may be larger than what a rank can hold."""
    from safetensors import safe_open

    from jobs.engine import TensorState

    for key, path in places.items():
        kind, _, name = key.partition(".")
        if kind != "parameter":
            continue
        with safe_open(path, framework="pt") as shard:
            yield name, TensorState(**{kind: shard.get_tensor(f"{kind}.{name}") for kind in KINDS})


def drop_state(folder: Path) -> None:
    """Delete a state. It is renamed first, so that nobody finds half of it."""
    leaving = unfinished(folder)
    try:
        commit(folder, leaving)
    except FileNotFoundError:
        return
    shutil.rmtree(leaving)
