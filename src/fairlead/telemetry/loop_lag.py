"""How late the event loop is.

One call that computes for 200 ms, or reads a file from a slow disk, holds up every request of the process, and the
metrics of that call show only itself. A timer that rings every 100 ms and measures how late it was sees it, whoever
did it. While the loop is held up the timer cannot ring, so the scrape, in its own thread, reads how long it has been
overdue: a loop that hangs for ever shows.

Per process, one loop.
"""

from __future__ import annotations

from types import TracebackType

from fairlead.clock import SYSTEM_CLOCK, Clock, Timer
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["LoopLag"]

_SLACK = 0.002  # loops count in milliseconds


class LoopLag:
    """`async with LoopLag(registry): …` measures the running loop while the block runs; put it into the lifespan.

    interval: seconds between two measurements, above 0 up to 60. 0.1: ten timers a second are free, and a pause of
        100 ms cannot fall between two.
    """

    def __init__(
        self, registry: MetricRegistry, *, interval: float = 0.1, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        check_number("LoopLag.interval", interval, above=0.0, high=60.0)
        self._interval = float(interval)
        self._clock = clock
        self._lag = registry.histogram(
            "event_loop_lag_seconds", "Time by which a timer of the event loop rang too late.", smallest=0.001
        )
        registry.gauge(
            "event_loop_stalled_seconds",
            "Time for which the event loop has run no timer that was due.",
            merge="max",
        ).track(self.stalled_for)
        self._due: float | None = None
        self._timer: Timer | None = None

    def stalled_for(self) -> float:
        """Seconds by which the present timer is overdue; 0 while it is not, or when nothing is measured."""
        due = self._due
        late = 0.0 if due is None else self._clock.now() - due
        return late if late > _SLACK else 0.0

    async def __aenter__(self) -> LoopLag:
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._due = self._clock.now() + self._interval
        self._timer = self._clock.call_at(self._due, self._ring)

    def _ring(self) -> None:
        due = self._due
        if due is None:
            return
        late = self._clock.now() - due
        self._lag.observe(late if late > 0.0 else 0.0)
        self._arm()
