"""Starts the MLflow UI on a study's store, on this machine only, and knows the link that opens the study.

The server answers on loopback and to loopback names alone; it serves what lies in the store, so it needs no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from jobs.tracking import redacted
from orchestrator.shared_view import VIEW_KEY

HOST = "127.0.0.1"
DEFAULT_PORT = 5000
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 3.0

# No calls home, and no workers for language-model evaluations, which this store has none of.
SERVER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

# MLflow's front end otherwise opens on its pages for language-model traces.
MODEL_TRAINING = "workflowType=machine_learning"

# One worker serves one person, and starts in half the time of the default four.
WORKERS = 1


class UiError(RuntimeError):
    """The UI did not start."""


@dataclass(frozen=True)
class UiServer:
    """A running UI."""

    process: subprocess.Popen[bytes]
    url: str

    def wait(self) -> int:
        """Block until the server ends. Its exit code."""
        return self.process.wait()

    def stop(self) -> None:
        """End the server and its workers, which share its process group."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)


def is_remote(tracking_uri: str) -> bool:
    """Whether the store is a server that has its own UI."""
    return tracking_uri.startswith(("http://", "https://"))


def study_link(base_url: str, experiment_id: str, parent_run: str | None = None) -> str:
    """Address of a study's runs, laid out as orchestrator.shared_view says, or of its parent run's report."""
    experiment = f"{base_url.rstrip('/')}/#/experiments/{experiment_id}"
    if parent_run is None:
        return f"{experiment}/runs?viewStateShareKey={VIEW_KEY}&{MODEL_TRAINING}"
    return f"{experiment}/runs/{parent_run}/artifacts/report.html?{MODEL_TRAINING}"


def free_port(preferred: int = DEFAULT_PORT) -> int:
    """The preferred port if it is free on loopback, else any that is."""
    for port in (preferred, 0):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise OSError(f"no port is free on {HOST}")


def start_ui(
    tracking_uri: str,
    artifact_root: Path,
    log_path: Path,
    port: int | None = None,
    *,
    timeout_s: float = START_TIMEOUT_S,
) -> UiServer:
    """Start the UI, its output going to a file, and wait until it answers.

    Raises ValueError for a store that is a server, and UiError if ours ends early or does not answer in time.
    """
    if is_remote(tracking_uri):
        raise ValueError(f"{redacted(tracking_uri)} is a server with its own UI: open it in a browser")
    port = free_port() if port is None else port
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(artifact_root, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The address of a database may hold a password, and command lines are public.
            env={**os.environ, **SERVER_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": tracking_uri},
            # A group of its own, so that the server's workers can be ended with it.
            start_new_session=True,
        )
    server = UiServer(process, f"http://{HOST}:{port}")
    deadline = time.monotonic() + timeout_s
    while not _answers(server.url):
        if process.poll() is not None or time.monotonic() > deadline:
            why = (
                f"ended with code {process.returncode}" if process.returncode is not None else "did not answer in time"
            )
            server.stop()
            raise UiError(f"the MLflow UI on {server.url} {why}; {log_path} ends with: {_tail(log_path)}")
        time.sleep(0.2)
    return server


def _command(artifact_root: Path, port: int) -> list[str]:
    options = {
        "--artifacts-destination": artifact_root.absolute().as_uri(),
        "--host": HOST,
        "--port": str(port),
        "--workers": str(WORKERS),
        "--allowed-hosts": f"localhost:{port},{HOST}:{port}",
    }
    return [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _tail(log_path: Path, lines: int = 3) -> str:
    return " | ".join(log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:])
