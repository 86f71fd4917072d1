import socket
from pathlib import Path

import pytest

from orchestrator import ui


def test_a_port_in_use_is_not_taken() -> None:
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert ui.free_port(taken) != taken


def test_links_open_the_laid_out_runs_and_the_report() -> None:
    runs = ui.study_link("http://127.0.0.1:5000/", "7")
    assert runs == "http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=study&workflowType=machine_learning"
    report = ui.study_link("http://127.0.0.1:5000", "7", "ab")
    assert report.startswith("http://127.0.0.1:5000/#/experiments/7/runs/ab/artifacts/report.html")


def test_a_server_has_its_own_ui(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"https://\*\*\*@tracking.example is a server with its own UI"):
        ui.start_ui("https://me:token@tracking.example", tmp_path, tmp_path / "ui.log")


def test_a_ui_that_cannot_start_says_the_servers_last_words(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(ui.UiError, match=r"ui\.log ends with: .*not a database"):
        ui.start_ui(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, tmp_path / "ui.log", timeout_s=60)
