"""What Ctrl-C and SIGTERM (`scaling stop`, a scheduler) mean at each moment of a launch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from orchestrator.console import tell

# Long enough for the callback in which it was dropped to be over.
RAISED_AGAIN_S = 0.05


class Interruption:
    """Outside training nothing has to be saved, and a signal raises KeyboardInterrupt; in training it asks for a stop.

    An exception that is raised while the interpreter runs a weak reference's callback (imports do so all the time) is
    dropped there, and would leave the study running: it is raised again a moment later, and what was asked is
    remembered for `check`.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._is_deferred = False
        self._is_handling = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came."""
        if self.asked.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Signals of this process come here until the block ends."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        self._is_handling = True
        try:
            yield
        finally:
            self._is_handling = False
            sys.unraisablehook = hook
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

    def _dropped(self, dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(dropped)
            return
        again = threading.Timer(RAISED_AGAIN_S, self._raise_again)
        again.daemon = True
        again.start()

    def _raise_again(self) -> None:
        if self._is_handling:
            os.kill(os.getpid(), signal.SIGINT)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        if not (first and self._is_deferred):
            raise KeyboardInterrupt
        tell("stopping: gangs checkpoint and leave (press Ctrl-C again to end at once; nothing recorded is lost)")
