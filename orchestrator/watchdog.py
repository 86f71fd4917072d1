"""Tells a hang from slow work: no progress for far longer than this attempt's own steps take."""

from __future__ import annotations

from collections import deque
from statistics import median

# A step may wait for a page of the corpus or for a busy machine; nothing honest takes this long.
SHORTEST_LIMIT_S = 60.0
STEPS_PER_LIMIT = 20
# Until the first step: joining, building the engine, reading a large state from shared storage (guess).
START_LIMIT_S = 600.0
REMEMBERED_SAMPLES = 31


class ProgressWatch:
    """Learns how long a step takes from heartbeats."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._step_s: deque[float] = deque(maxlen=REMEMBERED_SAMPLES)

    def see(self, step: int, now_s: float) -> None:
        """A heartbeat was read: so many steps are done at this monotonic time."""
        if step == 0 or (self._last is not None and step <= self._last[0]):
            return
        if self._last is not None:
            steps, seconds = step - self._last[0], now_s - self._last[1]
            self._step_s.append(seconds / steps)
        self._last = (step, now_s)

    @property
    def limit_s(self) -> float:
        """Without progress for this long the attempt hangs: the larger of 60 s and 20 median steps."""
        if not self._step_s:
            return START_LIMIT_S
        return max(SHORTEST_LIMIT_S, STEPS_PER_LIMIT * median(self._step_s))
