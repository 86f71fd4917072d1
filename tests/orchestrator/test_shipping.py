"""The shipper as a process: it follows the ledger, ends with its controller, and a dead store costs seconds."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.tracking import Tracker, read_observations
from orchestrator.shipping import ShipperProcess, ShippingCard
from tests.orchestrator.paper_study import PaperStudy


@pytest.fixture
def study(tmp_path: Path) -> PaperStudy:
    study = PaperStudy(tmp_path)
    return study.finish(study.runs()[:2])


def card(study: PaperStudy, uri: str) -> ShippingCard:
    return ShippingCard(
        study=study.study.name,
        ledger_url=f"sqlite:///{study.paths.ledger}",
        report_dir=str(study.paths.report),
        tracking_uri=uri,
        artifact_root=str(study.home.mlflow_artifacts),
        note="a note",
        params={"design.kind": "grid"},
        dataset={"name": "texts", "digest": "ab" * 16, "source": "files", "profile": {"train_tokens": 10}},
    )


def test_card_survives_its_file(study: PaperStudy, tmp_path: Path) -> None:
    written = card(study, "sqlite:///x.db")
    assert ShippingCard.load(written.save(tmp_path / "shipping.json")) == written
    assert json.loads((tmp_path / "shipping.json").read_text())["study"] == "small"
    # A tracking address may hold a password.
    assert (tmp_path / "shipping.json").stat().st_mode & 0o777 == 0o600


def test_two_shippers_send_everything_once(study: PaperStudy, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    path = card(study, uri).save(study.paths.root / "shipping.json")
    shippers = [ShipperProcess(path), ShipperProcess(path)]
    # Either may hold the lock first: both are told to end at the same time.
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(lambda shipper: shipper.finish(120.0), shippers)) == [True, True]
    tracker = Tracker(uri)
    assert [row["name"] for row in read_observations(tracker, "small")] == sorted(
        row.name for row in study.ledger.observations()
    )
    experiment_id = tracker.experiment_of("small")
    assert experiment_id is not None
    assert len(tracker.runs(experiment_id)) == 1 + 5 + 20


def test_store_that_is_down_is_told_in_bounded_time(study: PaperStudy, capfd: pytest.CaptureFixture[str]) -> None:
    path = card(study, "http://127.0.0.1:9").save(study.paths.root / "shipping.json")
    began = time.monotonic()
    assert not ShipperProcess(path).finish(60.0)
    assert time.monotonic() - began < 45.0
    captured = capfd.readouterr()
    assert "nothing is lost" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
