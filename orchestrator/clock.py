"""Time as the controller sees it: wall time for what is shown and stored, monotonic time for every deadline."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time that tests can replace."""

    def wall_s(self) -> float:
        """Seconds since 1970; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        ...

    def wait(self, wake: threading.Event, timeout_s: float) -> None:
        """Return after `timeout_s`, or as soon as `wake` is set."""
        ...


class SystemClock:
    """The clock of this machine."""

    def wall_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wait(self, wake: threading.Event, timeout_s: float) -> None:
        wake.wait(timeout_s)
