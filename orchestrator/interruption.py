"""What Ctrl-C and SIGTERM (`scaling stop`, a scheduler) mean at each moment of a launch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.console import tell


class Interruption:
    """Outside training nothing has to be saved, and a signal raises KeyboardInterrupt; in training it asks for a stop.

    What was asked is remembered: an exception that is raised while the interpreter runs a weak reference's callback is
    dropped there, and would leave the study running. `check` raises it where it is seen.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._is_deferred = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came."""
        if self.asked.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Signals of this process come here until the block ends."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[threading.Event]:
        """Within the block the first signal sets the event, for a clean stop; a second one raises all the same."""
        self.check()
        self._is_deferred = True
        try:
            yield self.asked
        finally:
            self._is_deferred = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        if not (first and self._is_deferred):
            raise KeyboardInterrupt
        tell("stopping: gangs checkpoint and leave (press Ctrl-C again to end at once; nothing recorded is lost)")
