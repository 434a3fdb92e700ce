"""What one model run costs, as lately measured.

The figure decides whether a call may start within its deadline, so it must be able to recover: if one slow
minute set it so high that nothing starts, nothing would be measured again. Figures older than the horizon are
dropped, and the last one is kept only until a newer one arrives.
"""

from __future__ import annotations

import threading
from collections import deque

from fairlead.clock import Clock

__all__ = ["CostWindow"]

_SAMPLES = 256
_HORIZON = 10.0
_REFRESH_EVERY = 16


class CostWindow:
    """Median and p99 in seconds over the last 256 runs of the last 10 seconds. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._unseen = 0
        self._measured_at = clock.now()
        self.median = 0.0
        self.p99 = 0.0

    def observe(self, seconds: float) -> None:
        now = self.clock.now()
        with self._lock:
            # After a pause the few figures there are count at once; in a steady stream sorting each time
            # would not pay.
            stale = now - self._measured_at > 1.0
            self._measured_at = now
            self._samples.append((now, seconds))
            self._unseen += 1
            if stale or self._unseen >= _REFRESH_EVERY or len(self._samples) <= _REFRESH_EVERY:
                self._refresh(now)

    def age(self) -> float:
        """Seconds since the last run was measured."""
        return self.clock.now() - self._measured_at

    def _refresh(self, now: float) -> None:
        self._unseen = 0
        while len(self._samples) > 1 and self._samples[0][0] < now - _HORIZON:
            self._samples.popleft()
        ordered = sorted(seconds for _, seconds in self._samples)
        self.median = ordered[len(ordered) // 2]
        self.p99 = ordered[int(0.99 * (len(ordered) - 1))]
