"""A second `scaling run` of a study that is already driven: it shows the first one's events and ends with its verdict."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from orchestrator.console import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, tell
from orchestrator.lease import current_holder

if TYPE_CHECKING:
    from orchestrator.reading import LedgerReader

logger = logging.getLogger(__name__)

POLL_S = 0.5


def attach(ledger: LedgerReader) -> int:
    """Follow until the driving process is gone; returns the exit code that the study's runs stand for.

    Ctrl-C leaves the view; the study goes on in the process that drives it.
    """
    sequence = max((event.sequence for event in ledger.events_after(0, 1_000_000)), default=0)
    while current_holder(ledger, time.time()) is not None:
        for event in ledger.events_after(sequence):
            sequence = event.sequence
            logger.info("%s", event.content.get("text", event.kind))
        time.sleep(POLL_S)
    statuses = [run.status for run in ledger.runs()]
    if any(status == "waiting" for status in statuses):
        tell("the driving process ended before the study did; run the same command to go on")
        return EXIT_INTERRUPTED
    return EXIT_DONE if all(status == "finished" for status in statuses) else EXIT_FAILED
