"""`scaling run`: from a study to its finished runs, laws, scored forecast and report; what is done already is kept.

study -> corpus -> plan -> ledger -> controller (gangs) -> forecast -> targets -> score -> laws -> report
                               \\-> shipper process -> MLflow
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from jobs.storage import Home, StudyPaths
from orchestrator.console import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE, say, tell
from orchestrator.corpora import check_corpus, prepare_corpus
from orchestrator.database import sqlite_url
from orchestrator.finish import Finished, finish, freeze_forecast
from orchestrator.lease import Lease, LeaseHeld, LeaseKeeper
from orchestrator.ledger import Ledger
from orchestrator.measuring import record_speeds
from orchestrator.plan import Plan, build_plan
from orchestrator.shipping import ShipperProcess, ShippingCard
from orchestrator.throughput import load_throughput
from orchestrator.tracking_store import TrackingStore, tracking_store

if TYPE_CHECKING:
    from cluster.resources import Launcher
    from jobs.corpus import PreparedCorpus
    from orchestrator.outcome import StudyOutcome
    from orchestrator.study import Study

logger = logging.getLogger(__name__)

# Sending what is left after the last run: a local store takes seconds, a dead server must not hold the study's end.
SHIPPING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Place:
    """Where a study lives: its folders, ledger and tracking store."""

    home: Home
    paths: StudyPaths
    store: TrackingStore

    @classmethod
    def of(cls, study: Study) -> Place:
        home = Home.from_environment()
        return cls(home, home.study(study.name), tracking_store(study, home))

    @property
    def ledger_url(self) -> str:
        return sqlite_url(self.paths.ledger)

    def make_folders(self) -> None:
        """Raises ValueError with the way out where the home cannot be written."""
        try:
            for folder in (self.paths.root, self.paths.attempts, self.paths.report):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.paths.root / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"{self.paths.root} cannot be written ({error.strerror}): set SCALING_HOME to a folder that can be"
            ) from error


def run(study: Study, command: str, address: str | None = None) -> int:
    """Run a study to its end, or attach to the process that does. Returns the exit code.

    `command` is what a person types to go on after an interruption.
    """
    place = Place.of(study)
    place.make_folders()
    ledger = Ledger.open(place.ledger_url, create=True, study_name=study.name)
    try:
        lease = Lease.take(ledger, time.time())
    except LeaseHeld as held:
        from orchestrator.attach import attach

        tell(f"{held}; showing its view")
        return attach(ledger)
    with LeaseKeeper(lease, ledger, time.time):
        return _drive(study, place, ledger, command, address)


def _drive(study: Study, place: Place, ledger: Ledger, command: str, address: str | None) -> int:
    corpus = prepare_corpus(study, place.home.corpora)
    throughput = load_throughput(place.home.calibration)
    provisional = build_plan(study, corpus.digest, corpus.vocab_size, None, throughput)
    check_corpus(study, provisional, corpus)
    if not _is_unfinished(ledger, provisional):
        tell(
            f"all {len(provisional.runs)} runs of {study.name} have ended before (kept in {place.paths.root}): no training"
        )
        ledger.register_plan(provisional, time.time())
        shipper = _start_shipper(study, place, provisional, corpus)
        return _close(study, place, provisional, ledger, shipper)

    with _launcher(study, address) as launcher:
        plan = build_plan(study, corpus.digest, corpus.vocab_size, launcher.inventory(), throughput)
        ledger.register_plan(plan, time.time())
        shipper = _start_shipper(study, place, plan, corpus)
        points_before = max(ledger.heads().values(), default=0)
        with _stop_on_signals() as stop:
            outcome = _train(study, place, plan, ledger, launcher, corpus, stop)
        record_speeds(ledger, place.home.calibration, points_before)
    if outcome.interrupted:
        shipper.finish(SHIPPING_TIMEOUT_S)
        tell(f"interrupted after {len(outcome.finished)} of {len(plan.runs)} runs; go on with: {command}")
        return EXIT_INTERRUPTED
    return _close(study, place, plan, ledger, shipper)


def _is_unfinished(ledger: Ledger, plan: Plan) -> bool:
    statuses = {run.state_ids[-1]: run.status for run in ledger.runs()}
    return any(statuses.get(run.segments[-1], "waiting") == "waiting" for run in plan.runs)


def _close(study: Study, place: Place, plan: Plan, ledger: Ledger, shipper: ShipperProcess) -> int:
    """Score, fit and report what there is; send the rest to MLflow; say where everything lies."""
    try:
        finished: Finished = finish(study, place.paths, plan, ledger)
    finally:
        # The report is made first, so that the last shipment holds it.
        shipped = shipper.finish(SHIPPING_TIMEOUT_S)
    say(finished.text)
    say(f"MLflow UI: scaling ui {study.name}" if place.store.artifact_root else f"MLflow: {place.store.shown}")
    if not shipped:
        tell(
            f"MLflow at {place.store.shown} has not taken everything: nothing is lost, "
            "the same command sends the rest once it answers"
        )
    if not finished.valid:
        return EXIT_FAILED
    return EXIT_DONE if shipped else EXIT_UNREACHABLE


def _train(
    study: Study,
    place: Place,
    plan: Plan,
    ledger: Ledger,
    launcher: Launcher,
    corpus: PreparedCorpus,
    stop: threading.Event,
) -> StudyOutcome:
    from jobs.spec import EvaluationSpec
    from orchestrator.controller import run_study
    from orchestrator.progress import live_view

    with live_view(plan, ledger) as on_event:
        return run_study(
            plan,
            ledger,
            launcher,
            place.paths,
            corpus.folder,
            EvaluationSpec(tokens=study.evaluation.tokens),
            freeze=lambda ledger, plan: freeze_forecast(study, plan, ledger),
            on_event=on_event,
            stop=stop,
            checkpoint_interval_s=study.execution.checkpoint_interval_s,
        )


@contextmanager
def _launcher(study: Study, address: str | None) -> Iterator[Launcher]:
    """The study's launcher, closed at the end. Raises ClusterUnreachable."""
    launcher: Launcher
    if study.execution.launcher == "inline":
        if address:
            raise ValueError("--address names a Ray cluster, but execution.launcher is inline: set it to ray")
        from cluster.launchers.inline import InlineLauncher

        launcher = InlineLauncher()
    else:
        from cluster.launchers.ray import RayLauncher

        launcher = RayLauncher(address)
    try:
        yield launcher
    finally:
        launcher.close()


def _start_shipper(study: Study, place: Place, plan: Plan, corpus: PreparedCorpus) -> ShipperProcess:
    from orchestrator.study_card import card_of

    card: ShippingCard = card_of(study, place, plan, corpus)
    return ShipperProcess(card.save(place.paths.root / "shipping.json"))


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for a clean stop; a second Ctrl-C raises KeyboardInterrupt."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        tell("stopping: gangs checkpoint and leave (press Ctrl-C again to end at once; nothing recorded is lost)")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
