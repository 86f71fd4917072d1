"""The door to MLflow: names of metrics, and writes that may be repeated without effect.

Everything here is idempotent: experiments and runs are found by their stable names before they are made, a metric point
carries the timestamp of its journal line (MLflow's primary key), params accept only the value that they have. So a
writer that died in the middle simply starts over. The client's own patience (four minutes for a server that is down)
is cut to seconds: the caller has the data on disk and comes back later.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Names of metrics as journals and MLflow have them. MLflow's `step` is tokens seen.
TRAIN_LOSS = "train/loss"
VALIDATION_LOSS = "val/loss"
VALIDATION_LOSS_SE = "val/loss_se"
VALIDATION_BITS_PER_BYTE = "val/bits_per_byte"
OPTIMIZER_STEP = "optimizer_step"
TRAIN_FLOPS = "train_flops"
PARAMETERS_N = "N"
TOKENS_D = "D"
COMPUTE_C = "C"

# Names of tags. The first two find what was made before; the others are for readers.
RUN_ID_TAG = "scaling.run_id"
STUDY_TAG = "scaling.study"
ROLE_TAG = "scaling.role"
OBSERVATION_TAG = "scaling.observation"
NON_FINITE_TAG = "scaling.non_finite"
NOTE_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"
EXPERIMENT_KIND_TAG = "mlflow.experimentKind"

# Opens the experiment on its runs and charts, without asking whether it is about language-model traces.
EXPERIMENT_KIND = "custom_model_development"

# MLflow's limits on one request (mlflow.utils.validation, 3.17): a batch counts metrics, params and tags together.
BATCH_ENTITIES = 1000
BATCH_PARAMS = 100
PARAM_CHARS = 6000
TAG_CHARS = 8000
DATASET_DIGEST_CHARS = 36
PAGE_RUNS = 1000

# A server that is down must cost seconds. The user's own settings win.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

RunStatus = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]
ENDED: tuple[RunStatus, ...] = ("FINISHED", "FAILED", "KILLED")


class TrackingError(RuntimeError):
    """The tracking store refuses: wrong credentials, another schema, something deleted there."""


class TrackingUnreachable(TrackingError):
    """The tracking store does not answer at its address, or not in time. Worth trying again later."""


class TrackingConflict(TrackingError):
    """A param of a run has another value there: two identities under one stable id."""


@dataclass(frozen=True)
class Point:
    """One value of a curve. `step` is tokens seen, `time_ms` the time of its journal line."""

    key: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class TrackedRun:
    """A run as the store has it."""

    mlflow_id: str
    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """The corpus as MLflow shows it."""

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any] = field(default_factory=dict)


def redacted(uri: str) -> str:
    """The address without user and password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


class Tracker:
    """One tracking store (SQLite file, database or server). Not for threads: one writer, one process."""

    def __init__(self, uri: str, artifact_root: Path | None = None) -> None:
        """Open the store; a SQLite file is made and migrated here, under a lock, if it is new.

        `artifact_root` is where experiments made here keep their artifacts; None leaves that to the server.
        Raises TrackingUnreachable, TrackingError.
        """
        self.uri = uri
        self.artifact_root = artifact_root
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        with self._guarded(), _alone_at_first_touch(uri):
            self._client = MlflowClient(tracking_uri=uri)
            self._client.search_experiments(max_results=1)

    def ensure_experiment(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Id of the experiment of a study, made if it is not there; its tags brought up to date."""
        with self._guarded():
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment {name!r} lies in the bin of {redacted(self.uri)}: restore it there "
                    f"(mlflow experiments restore --experiment-id {found.experiment_id}) or rename the study"
                )
            if found is None:
                location = None if self.artifact_root is None else (self.artifact_root.absolute() / name).as_uri()
                experiment_id = str(self._client.create_experiment(name, artifact_location=location))
                present: Mapping[str, str] = {}
            else:
                experiment_id, present = str(found.experiment_id), found.tags
            for key, value in {EXPERIMENT_KIND_TAG: EXPERIMENT_KIND, **(tags or {})}.items():
                if present.get(key) != value:
                    self._client.set_experiment_tag(experiment_id, key, value)
        return experiment_id

    def experiment_of(self, name: str) -> str | None:
        """Id of the experiment of a study, if there is one."""
        with self._guarded():
            found = self._client.get_experiment_by_name(name)
        return None if found is None or found.lifecycle_stage == "deleted" else str(found.experiment_id)

    def runs(self, experiment_id: str, run_filter: str = "") -> dict[str, TrackedRun]:
        """All runs of an experiment that have a stable id, by that id. The oldest wins where one has been doubled."""
        found: dict[str, TrackedRun] = {}
        token: str | None = None
        while True:
            with self._guarded():
                page = self._client.search_runs(
                    [experiment_id],
                    filter_string=run_filter,
                    max_results=PAGE_RUNS,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            for run in page:
                stable_id = run.data.tags.get(RUN_ID_TAG)
                if stable_id is not None and stable_id not in found:
                    found[stable_id] = TrackedRun(
                        mlflow_id=run.info.run_id,
                        name=run.info.run_name,
                        status=run.info.status,
                        params=dict(run.data.params),
                        tags=dict(run.data.tags),
                        metrics=dict(run.data.metrics),
                    )
            token = page.token
            if not token:
                return found

    def ensure_run(
        self,
        experiment_id: str,
        run_id: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        start_ms: int | None = None,
    ) -> TrackedRun:
        """The run of this stable id, made if it is not there. `parent` is the MLflow id of the run it nests under."""
        # Stable ids are made of names and digests; a quote in one would end the filter's string.
        if "'" in run_id:
            raise ValueError(f"a run id may not contain a quote: {run_id!r}")
        found = self.runs(experiment_id, f"tags.`{RUN_ID_TAG}` = '{run_id}'").get(run_id)
        if found is not None:
            return found
        all_tags = {**(tags or {}), RUN_ID_TAG: run_id}
        if parent is not None:
            all_tags[PARENT_TAG] = parent
        with self._guarded():
            made = self._client.create_run(experiment_id, start_time=start_ms, tags=all_tags, run_name=name)
        return TrackedRun(made.info.run_id, name, made.info.status, params={}, tags=all_tags)

    def log_params(self, mlflow_id: str, params: Mapping[str, Any]) -> None:
        """Write identity. Equal values are accepted again; others raise TrackingConflict."""
        from mlflow.entities import Param

        entries = [Param(key, shown(value)[:PARAM_CHARS]) for key, value in params.items()]
        for chunk in _chunks(entries, BATCH_PARAMS):
            with self._guarded():
                self._client.log_batch(mlflow_id, params=chunk)

    def set_tags(self, mlflow_id: str, tags: Mapping[str, Any]) -> None:
        """Write what may change: execution, role, status."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, shown(value)[:TAG_CHARS]) for key, value in tags.items()]
        for chunk in _chunks(entries, BATCH_PARAMS):
            with self._guarded():
                self._client.log_batch(mlflow_id, tags=chunk)

    def log_points(self, mlflow_id: str, points: Iterable[Point], tags: Mapping[str, str] | None = None) -> set[str]:
        """Write points in batches, then `tags`: a mark among them never runs ahead of what it marks.

        A value that is not finite would come back from the store as 1.8e308 and ruin its chart: it is left out, and
        its key is returned, for the caller to say so in a tag.
        """
        from mlflow.entities import Metric, RunTag

        non_finite = set()
        entries = []
        for point in points:
            if math.isfinite(point.value):
                entries.append(Metric(point.key, point.value, point.time_ms, point.step))
            else:
                non_finite.add(point.key)
        last_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        for chunk in _chunks(entries, BATCH_ENTITIES):
            with self._guarded():
                self._client.log_batch(mlflow_id, metrics=chunk)
        if last_tags:
            with self._guarded():
                self._client.log_batch(mlflow_id, tags=last_tags)
        return non_finite

    def log_dataset(self, mlflow_id: str, dataset: Dataset, context: str = "training") -> None:
        """Show the corpus among the run's datasets."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        entity = Entity(
            name=dataset.name,
            digest=dataset.digest[:DATASET_DIGEST_CHARS],
            source_type="scaling",
            source=json.dumps({"source": dataset.source}),
            profile=json.dumps(dict(dataset.profile)),
        )
        with self._guarded():
            self._client.log_inputs(mlflow_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def log_artifact(self, mlflow_id: str, path: Path, folder: str = "") -> None:
        """Store a file; one of the same name is replaced."""
        with self._guarded():
            self._client.log_artifact(mlflow_id, str(path), folder or None)

    def log_text(self, mlflow_id: str, text: str, name: str) -> None:
        """Store a text under a name like `study.yaml`; one of the same name is replaced."""
        with self._guarded():
            self._client.log_text(mlflow_id, text, name)

    def set_status(self, mlflow_id: str, status: RunStatus, end_ms: int | None = None) -> None:
        """Move a run to a status, also back to one before it ended."""
        with self._guarded():
            if status in ENDED:
                self._client.set_terminated(mlflow_id, status, end_ms)
            else:
                self._client.update_run(mlflow_id, status=status)

    def history(self, mlflow_id: str, key: str) -> list[Point]:
        """All points of a curve as the store has them, by step."""
        with self._guarded():
            metrics = self._client.get_metric_history(mlflow_id, key)
        return sorted(
            (Point(metric.key, metric.value, metric.step, metric.timestamp) for metric in metrics),
            key=lambda point: (point.step, point.time_ms),
        )

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Name MLflow's many exceptions by what a caller can do about them."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        where = redacted(self.uri)
        try:
            yield
        except TrackingError:
            raise
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            text = _first_line(error)
            if "Changing param values" in text:
                raise TrackingConflict(f"a run on {where} has another value of an immutable param: {text}") from error
            if isinstance(error, OperationalError) or _is_passing(error):
                raise TrackingUnreachable(f"MLflow at {where} does not answer: {text}") from error
            raise TrackingError(f"MLflow at {where} refuses: {text}") from error


def read_observations(tracker: Tracker, study: str) -> list[dict[str, Any]]:
    """Rows of a fit from MLflow alone, sorted by name: what the writer stored with each ended run, to the last digit.

    Raises TrackingError if the store has no such study.
    """
    experiment_id = tracker.experiment_of(study)
    if experiment_id is None:
        raise TrackingError(
            f"{redacted(tracker.uri)} has no experiment {study!r}; `scaling run` makes it, and MLFLOW_TRACKING_URI "
            "chooses the store"
        )
    runs = tracker.runs(experiment_id).values()
    rows = [json.loads(run.tags[OBSERVATION_TAG]) for run in runs if OBSERVATION_TAG in run.tags]
    return sorted(rows, key=lambda row: str(row.get("name", "")))


def _is_passing(error: BaseException) -> bool:
    """Whether a failure may be gone the next time: no connection, an overloaded or locked store, a server error."""
    code = str(getattr(error, "error_code", ""))
    text = str(error)
    return (
        code == "TEMPORARILY_UNAVAILABLE"
        or ("API request to" in text and "failed with" in text)
        or re.search(r"\b50[0234]\b", text[:400]) is not None
        or isinstance(error, ConnectionError | TimeoutError)
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return redacted(lines[0])[:400] if lines else type(error).__name__


def shown(value: Any) -> str:
    """Text of a value that reads back to the same number."""
    return value if isinstance(value, str) else repr(value)


def _chunks(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), size):
        yield list(entries[start : start + size])


@contextlib.contextmanager
def _alone_at_first_touch(uri: str) -> Iterator[None]:
    """Hold a lock beside a SQLite file: two first touches at once migrate it twice, and one fails."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    import fcntl

    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
