"""`scaling run`: from a study to its finished runs, laws, scored forecast and report; what is done already is kept.

study -> corpus -> plan -> ledger -> controller (gangs) -> forecast -> targets -> score -> laws -> report
                               \\-> shipper process -> MLflow
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

from orchestrator.attach import ENDED, VERDICTS, attach
from orchestrator.console import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    known_failure,
    program,
    say,
    tell,
)
from orchestrator.corpora import check_corpus, prepare_corpus
from orchestrator.database import LedgerError
from orchestrator.finish import Finished, finish, freeze_or_withhold
from orchestrator.forecast import unforecast_targets
from orchestrator.interruption import Interruption
from orchestrator.lease import Lease, LeaseHeld, LeaseKeeper
from orchestrator.ledger import Ledger
from orchestrator.measuring import record_speeds
from orchestrator.place import Place
from orchestrator.plan import Plan, build_plan
from orchestrator.shipping import ShipperProcess
from orchestrator.throughput import load_throughput

if TYPE_CHECKING:
    from cluster.resources import Launcher
    from jobs.corpus import PreparedCorpus
    from orchestrator.outcome import StudyOutcome
    from orchestrator.reading import RunRow
    from orchestrator.study import Study

# Sending what is left after the last run: a local store takes seconds, a dead server must not hold the study's end.
SHIPPING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Launch:
    """One `scaling run`: what was typed and where it goes."""

    study: Study
    place: Place
    arguments: tuple[str, ...]
    """Study file and overrides, as typed."""
    address: str | None

    @property
    def command(self) -> str:
        """What a person types to go on."""
        return shlex.join([program(), "run", *self.arguments, *(["--address", self.address] if self.address else [])])

    @property
    def ui_command(self) -> str:
        return shlex.join([program(), "ui", *self.arguments])


def run(study: Study, arguments: Sequence[str], address: str | None = None) -> int:
    """Run a study to its end, or attach to the process that does. Returns the exit code.

    `arguments` are the study file and overrides, for the commands that are suggested at the end.
    """
    if address and study.execution.launcher == "inline":
        raise ValueError("--address names a Ray cluster, but execution.launcher is inline: set it to ray")
    launch = Launch(study, Place.of(study), tuple(arguments), address)
    launch.place.make_folders()
    ledger = Ledger.open(launch.place.ledger_url, create=True, study_name=study.name)
    try:
        lease = Lease.take(ledger, time.time())
    except LeaseHeld as held:
        tell(f"{held}; showing its view")
        return attach(ledger, launch.place.paths)
    interruption = Interruption()
    with interruption.handled(), LeaseKeeper(lease, ledger, time.time), _verdict_recorded(ledger) as verdict:
        try:
            verdict.code = _drive(launch, ledger, interruption)
        except KeyboardInterrupt:
            tell(f"interrupted, nothing recorded is lost; go on with: {launch.command}")
            verdict.code = EXIT_INTERRUPTED
    return verdict.code


def _drive(launch: Launch, ledger: Ledger, interruption: Interruption) -> int:
    study, place = launch.study, launch.place
    corpus = prepare_corpus(study, place.home.corpora)
    interruption.check()
    throughput = load_throughput(place.home.calibration)
    plan = build_plan(study, corpus.digest, corpus.vocab_size, None, throughput)
    check_corpus(study, plan, corpus)
    ledger.register_plan(plan, time.time())
    if not _runs_left(ledger, plan, ("fit",)) and unforecast_targets(plan, ledger.forecasts()):
        # Tried before a cluster is asked for anything: without a forecast there is nothing to train.
        freeze_or_withhold(study, plan, ledger)
    frozen = {name for forecast in ledger.forecasts() for name in forecast.targets}
    if not any(run.role == "fit" or run.name in frozen for run in _runs_left(ledger, plan)):
        ended = len(plan.runs) - len(_runs_left(ledger, plan))
        tell(f"{ended} of {len(plan.runs)} runs of {study.name} have ended before ({place.paths.root}): no training")
        return _close(launch, plan, ledger, _start_shipper(launch, plan, corpus))

    with _launcher(study, launch.address) as launcher:
        # Registered above already: what the cluster looks like changes how segments are carried out, not what they are.
        plan = build_plan(study, corpus.digest, corpus.vocab_size, launcher.inventory(), throughput)
        shipper = _start_shipper(launch, plan, corpus)
        points_before = max(ledger.heads().values(), default=0)
        with interruption.deferred() as stop:
            outcome = _train(launch, plan, ledger, launcher, corpus, stop)
        record_speeds(ledger, place.home.calibration, points_before)
    if outcome.interrupted:
        shipper.finish(SHIPPING_TIMEOUT_S)
        tell(f"interrupted after {len(outcome.finished)} of {len(plan.runs)} runs; go on with: {launch.command}")
        return EXIT_INTERRUPTED
    return _close(launch, plan, ledger, shipper)


def _runs_left(ledger: Ledger, plan: Plan, roles: Sequence[str] = ("fit", "target")) -> list[RunRow]:
    """Runs of the plan that have not ended."""
    planned = {run.name for run in plan.runs}
    return [run for run in ledger.runs() if run.name in planned and run.status == "waiting" and run.role in roles]


def _close(launch: Launch, plan: Plan, ledger: Ledger, shipper: ShipperProcess) -> int:
    """Score, fit and report what there is; send the rest to MLflow; say where everything lies."""
    store = launch.place.store
    try:
        finished: Finished = finish(launch.study, launch.place.paths, plan, ledger)
    finally:
        # The report is made first, so that the last shipment holds it.
        shipped = shipper.finish(SHIPPING_TIMEOUT_S)
    say(finished.text)
    say(f"MLflow   {launch.ui_command}" if store.artifact_root else f"MLflow   {store.shown}")
    if not shipped:
        tell(
            f"MLflow at {store.shown} has not taken everything: nothing is lost, "
            f"the same command sends the rest once it answers: {launch.command}"
        )
    if not finished.valid:
        return EXIT_FAILED
    return EXIT_DONE if shipped else EXIT_UNREACHABLE


def _train(
    launch: Launch,
    plan: Plan,
    ledger: Ledger,
    launcher: Launcher,
    corpus: PreparedCorpus,
    stop: threading.Event,
) -> StudyOutcome:
    from jobs.spec import EvaluationSpec
    from orchestrator.controller import run_study
    from orchestrator.progress import live_view

    study = launch.study
    with live_view(plan, ledger) as on_event:
        return run_study(
            plan,
            ledger,
            launcher,
            launch.place.paths,
            corpus.folder,
            EvaluationSpec(tokens=study.evaluation.tokens),
            freeze=lambda ledger, plan: freeze_or_withhold(study, plan, ledger),
            on_event=on_event,
            stop=stop,
            checkpoint_interval_s=study.execution.checkpoint_interval_s,
        )


@contextmanager
def _launcher(study: Study, address: str | None) -> Iterator[Launcher]:
    """The study's launcher, closed at the end. Raises ClusterUnreachable."""
    launcher: Launcher
    if study.execution.launcher == "inline":
        from cluster.launchers.inline import InlineLauncher

        launcher = InlineLauncher()
    else:
        from cluster.launchers.ray import RayLauncher

        launcher = RayLauncher(address)
    try:
        yield launcher
    finally:
        launcher.close()


def _start_shipper(launch: Launch, plan: Plan, corpus: PreparedCorpus) -> ShipperProcess:
    from orchestrator.study_card import card_of

    card = card_of(launch.study, launch.place, plan, corpus)
    return ShipperProcess(card.save(launch.place.paths.root / "shipping.json"))


@dataclass
class Verdict:
    """The exit code of the study, once it is known."""

    code: int = EXIT_FAILED


@contextmanager
def _verdict_recorded(ledger: Ledger) -> Iterator[Verdict]:
    """Writes the exit code down as an event: it is also that of those who watch (orchestrator.attach)."""
    verdict = Verdict()
    reason = ""
    try:
        yield verdict
    except Exception as error:
        # Recorded for the others and raised again for this process.
        verdict.code, reason = known_failure(error) or (EXIT_FAILED, f"{type(error).__name__}: {error}")
        raise
    finally:
        text = f"study {ledger.study_name}: {reason or VERDICTS[verdict.code]}"
        # A ledger that was taken over, or is gone, keeps the verdict of whoever has it.
        with contextlib.suppress(LedgerError, OperationalError):
            ledger.append_event(ENDED, {"text": text, "exit_code": verdict.code}, time.time())
