"""One exposure per unit and draw, not one per request.

An experiment needs to know who saw which variant and when first; a service that reports it at each
evaluation writes more exposures than answers. So each process remembers the last `capacity` of what was reported (flag,
variant, targeting key, reason) and reports what is not among them. The reason counts: who was served the default
before a rollout and is drawn for the same variant after it enters the experiment only with the draw. The memory is
bounded, so what was evicted is reported again, and so does each process: readers take the first of each unit.

Another document draws everybody anew, those too whom it leaves where they were. Were these not reported again, a stage
of a rollout would know of everybody who has come to treatment, and of few who have stayed in control. While processes
read the document one after the other, a stage counts nobody; so all are reported once more when that is over.
"""

from __future__ import annotations

from collections import OrderedDict

from fairlead.calls.bounds import check_number
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import InvalidInput
from fairlead.flags.evaluate import Evaluation
from fairlead.telemetry import EventSink, Exposure

__all__ = ["ExposureLog"]


class ExposureLog:
    """Reports exposures to a sink, each (flag, variant, targeting key, reason) once while it is remembered."""

    __slots__ = ("_capacity", "_clock", "_draw", "_seen", "_settle", "_settled", "_sink")

    def __init__(
        self,
        sink: EventSink,
        *,
        capacity: int = 65_536,
        settle: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """settle: seconds from a document until all that was reported since is reported once more; not below
        `RolloutPlan.settle`, within which every process has read it. Raises InvalidInput.
        """
        if type(capacity) is not int or not 1 <= capacity <= 10_000_000:
            raise InvalidInput(f"exposure capacity {capacity!r} is not a whole number from 1 to 10,000,000")
        check_number("exposure settle", settle, low=0.0, high=86_400.0)
        self._sink = sink
        self._capacity = capacity
        self._settle = settle
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str, str, str, int], None] = OrderedDict()
        self._draw = 0
        self.draw_anew()

    def draw_anew(self) -> None:
        """Another document answers from now on: whoever is asked about is reported again."""
        self._draw += 1
        self._settled: float | None = self._clock.now() + self._settle

    def record(self, flag: str, targeting_key: str, evaluation: Evaluation) -> None:
        """Emits unless remembered, or without a key (there is no unit) or a variant (nothing was shown)."""
        variant = evaluation.variant
        if not targeting_key or variant is None:
            return
        if targeting_key.__class__ is not str:
            # Bucketing draws for a number as for its digits. Written as a number it would be an exposure that
            # no reader takes.
            targeting_key = str(targeting_key)
        if self._settled is not None and self._clock.now() >= self._settled:
            self._settled = None
            self._draw += 1
        report = (flag, variant, targeting_key, evaluation.reason, self._draw)
        seen = self._seen
        try:
            seen.move_to_end(report)
        except KeyError:
            seen[report] = None
            if len(seen) > self._capacity:
                seen.popitem(last=False)
            self._sink.emit(
                Exposure(
                    at_utc_seconds=self._clock.utc(),
                    request_id=current().request_id,
                    flag=flag,
                    variant=variant,
                    targeting_key=targeting_key,
                    reason=evaluation.reason,
                )
            )
