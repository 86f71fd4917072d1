"""The shipper as a process of its own: `python -m orchestrator.shipping CARD`, stopped by closing its standard input.

A controller that is killed closes that pipe too, so its shipper sends what is left and ends. A lock in the study's
folder keeps two of them from writing at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.storage import write_atomically
from orchestrator.console import EXIT_DONE, EXIT_UNREACHABLE, configure_logging

LOCK_FILE = "shipper.lock"
STDERR_DESCRIPTOR = 2


@dataclass(frozen=True)
class ShippingCard:
    """What the shipper of a study needs to know, as a file: where things are, and what the parent run says."""

    study: str
    ledger_url: str
    report_dir: str
    tracking_uri: str
    artifact_root: str | None
    note: str
    params: Mapping[str, Any]
    dataset: Mapping[str, Any] | None

    def save(self, path: Path) -> Path:
        """Write the card for this user alone: the tracking address may hold a password."""
        write_atomically(path, json.dumps(asdict(self), indent=1), mode=0o600)
        return path

    @classmethod
    def load(cls, path: Path) -> ShippingCard:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class ShipperProcess:
    """A running shipper. `finish` waits until it has sent everything, or has given up for now."""

    def __init__(self, card_path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.shipping", str(card_path)],
            stdin=subprocess.PIPE,
            # Whatever a library prints there is a remark: our standard output holds results alone.
            stdout=STDERR_DESCRIPTOR,
            # A Ctrl-C is the controller's to handle: the shipper is told to end when the rest has.
            start_new_session=True,
        )

    def finish(self, timeout_s: float) -> bool:
        """Ask it to send the rest and end. Whether everything has reached the store."""
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.close()
        try:
            return self._process.wait(timeout_s) == EXIT_DONE
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
            return False


def ship(card_path: Path, should_stop: threading.Event) -> bool:
    """Ship until told to stop; whether everything was sent."""
    from jobs.tracking import Dataset, Tracker
    from orchestrator.projection import LedgerSource
    from orchestrator.reading import LedgerReader
    from orchestrator.shipper import follow

    card = ShippingCard.load(card_path)
    artifact_root = Path(card.artifact_root) if card.artifact_root else None
    ledger = LedgerReader.open(card.ledger_url, study_name=card.study)
    dataset = Dataset(**card.dataset) if card.dataset else None
    source = LedgerSource(ledger, card.note, card.params, Path(card.report_dir), dataset)
    with (card_path.parent / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return follow(
                source,
                lambda: Tracker(card.tracking_uri, artifact_root),
                should_stop.is_set,
                _waiter(should_stop),
            )
        finally:
            ledger.close()


def _waiter(should_stop: threading.Event) -> Callable[[float], None]:
    def wait(seconds: float) -> None:
        should_stop.wait(seconds)

    return wait


def main(arguments: list[str]) -> int:
    """Entry of the process. Exit code 0: all sent; 3: the store could not take everything."""
    configure_logging()
    stop = threading.Event()

    def wait_for_end_of_input() -> None:
        # Not through sys.stdin, whose lock this thread would still hold if the process ended on an error.
        while os.read(0, 1024):
            pass
        stop.set()

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    return EXIT_DONE if ship(Path(arguments[0]), stop) else EXIT_UNREACHABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
