"""A second `scaling run` of a study that is driven already: shows the first one's events and ends as that one does."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from orchestrator.console import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE, EXIT_USAGE, say, tell
from orchestrator.finish import summary_path
from orchestrator.lease import current_holder

if TYPE_CHECKING:
    from jobs.storage import StudyPaths
    from orchestrator.reading import EventRow, LedgerReader

logger = logging.getLogger(__name__)

POLL_S = 0.5

# The event with which a driving process ends, and what its exit code says.
ENDED = "study.ended"
VERDICTS = {
    EXIT_DONE: "done",
    EXIT_FAILED: "ended with failed runs or without a valid law",
    EXIT_USAGE: "could not be carried out",
    EXIT_UNREACHABLE: "done, but the tracking store lacks something",
    EXIT_INTERRUPTED: "interrupted",
}


def attach(ledger: LedgerReader, paths: StudyPaths) -> int:
    """Follow until the driving process is gone; returns the exit code with which it ended.

    Ctrl-C leaves the view alone: the study goes on in the process that drives it.
    """
    sequence = max((event.sequence for event in _events_after(ledger, 0)), default=0)
    verdict: int | None = None
    driven = True
    try:
        while driven:
            # Asked before the events are read, so that none of its last ones is missed.
            driven = current_holder(ledger, time.time()) is not None
            for event in _events_after(ledger, sequence):
                sequence = event.sequence
                logger.info("%s", event.content.get("text", event.kind))
                if event.kind == ENDED:
                    verdict = int(event.content["exit_code"])
            if driven:
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        tell("left the view; the study goes on (`scaling stop` ends it)")
        return EXIT_INTERRUPTED
    if verdict is None:
        tell("the driving process was lost before the study ended; run the same command to go on")
        return EXIT_INTERRUPTED
    if verdict in (EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE) and summary_path(paths).exists():
        say(summary_path(paths).read_text(encoding="utf-8"), end="")
    return verdict


def _events_after(ledger: LedgerReader, sequence: int) -> list[EventRow]:
    events: list[EventRow] = []
    while more := ledger.events_after(sequence):
        events += more
        sequence = more[-1].sequence
    return events
