"""A study small enough to be trained for real in a test: its text, its plan, and the carrying out of it.

As a program it is the driver that tests kill:
`python -m tests.integration.tiny FOLDER inline|ray TOKENS RANKS tracked|untracked`.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from pathlib import Path

from cluster.resources import Launcher
from jobs.corpus import PreparedCorpus
from jobs.spec import EvaluationSpec
from jobs.storage import Home, StudyPaths
from orchestrator.controller import run_study
from orchestrator.corpora import check_corpus, prepare_corpus
from orchestrator.database import sqlite_url
from orchestrator.lease import Lease, LeaseKeeper
from orchestrator.ledger import Ledger
from orchestrator.loading import parse_study
from orchestrator.outcome import StudyOutcome
from orchestrator.plan import Plan, build_plan
from orchestrator.shipping import ShipperProcess, ShippingCard
from orchestrator.study import Study

STUDY = """\
name: tiny
design: {{kind: grid, sizes: [6k, 12k, 22k], tokens: {tokens}}}
model: {{base_width: 16, head_dim: 8, num_layers: 1, sequence_length: 32}}
corpus: {{source: files, path: {texts}, validation_fraction: 0.1}}
recipe: {{learning_rate: 0.01, batch_tokens: 256, warmup_steps: 8, decay_fraction: 0.25}}
evaluation: {{tokens: 4k}}
forecast: {{hold_out: largest_size}}
execution: {{launcher: ray, max_ranks: {ranks}}}
"""
CHECKPOINT_INTERVAL_S = 0.4


def write_texts(folder: Path, num_documents: int = 400) -> None:
    """Documents of random words of few letters: enough for a loss to fall on."""
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefgh", k=dice.randint(2, 6))) for _ in range(120)]
    folder.mkdir(parents=True)
    for number in range(num_documents):
        (folder / f"{number:03d}.txt").write_text(" ".join(dice.choices(words, k=180)))


class Tiny:
    """The study in a folder, with its corpus prepared."""

    def __init__(self, folder: Path, *, tokens: str = "[6k, 10k]", ranks: int = 1) -> None:
        texts = folder / "texts"
        if not texts.exists():
            write_texts(texts)
        self.home = Home(folder / "home")
        self.study: Study = parse_study(STUDY.format(texts=texts, tokens=tokens, ranks=ranks), "tiny.yaml")
        self.paths: StudyPaths = self.home.study(self.study.name)
        self.corpus: PreparedCorpus = prepare_corpus(self.study, self.home.corpora)
        self.plan: Plan = build_plan(self.study, self.corpus.digest, self.corpus.vocab_size)
        check_corpus(self.study, self.plan, self.corpus)

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(sqlite_url(self.paths.ledger), create=True, study_name=self.study.name)

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.home.mlflow_database}"

    def shipper(self) -> ShipperProcess:
        """The process that sends the ledger to MLflow."""
        self.home.root.mkdir(parents=True, exist_ok=True)
        card = ShippingCard(
            study=self.study.name,
            ledger_url=sqlite_url(self.paths.ledger),
            report_dir=str(self.paths.report),
            tracking_uri=self.tracking_uri,
            artifact_root=str(self.home.mlflow_artifacts),
            note="a tiny study",
            params={},
            dataset=None,
        )
        return ShipperProcess(card.save(self.paths.root / "shipping.json"))

    def losses(self) -> dict[str, float]:
        return {row.name: row.loss for row in self.ledger.observations()}

    def run(self, launcher: Launcher) -> StudyOutcome:
        """What `scaling run` does between its plan and its report."""
        ledger = self.ledger
        with LeaseKeeper(Lease.take(ledger, time.time()), ledger, time.time):
            ledger.register_plan(self.plan, time.time())
            return run_study(
                self.plan,
                ledger,
                launcher,
                self.paths,
                self.corpus.folder,
                EvaluationSpec(tokens=self.study.evaluation.tokens),
                freeze,
                checkpoint_interval_s=CHECKPOINT_INTERVAL_S,
            )


def freeze(ledger: Ledger, plan: Plan) -> None:
    """Some forecast: what it says is no matter here."""
    targets = [run.name for run in plan.runs if run.role == "target"]
    ledger.freeze_forecast({"targets": targets}, targets, time.time())


def main() -> None:
    folder, launcher_kind, tokens, ranks, tracking = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    tiny = Tiny(Path(folder), tokens=tokens, ranks=int(ranks))
    if launcher_kind == "ray":
        from cluster.launchers.ray import RayLauncher

        launcher: Launcher = RayLauncher()
    else:
        from cluster.launchers.inline import InlineLauncher

        launcher = InlineLauncher()
    tiny.ledger.register_plan(tiny.plan, time.time())
    shipper = tiny.shipper() if tracking == "tracked" else None
    try:
        outcome = tiny.run(launcher)
    finally:
        launcher.close()
    assert len(outcome.finished) == len(tiny.plan.runs), outcome
    assert shipper is None or shipper.finish(timeout_s=60.0)


if __name__ == "__main__":
    main()
