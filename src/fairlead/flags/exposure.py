"""One exposure per unit and variant, not one per request.

An experiment needs to know who saw which variant and when first; a service that reports it at each
evaluation writes more exposures than answers. So each process remembers the last `capacity` of what was reported (flag,
variant, targeting key, reason) and reports what is not among them. The reason counts: who was served the default
before a rollout and is drawn for the same variant after it enters the experiment only with the draw. The memory is
bounded, so what was evicted is reported again, and so does each process: readers take the first of each unit.
"""

from __future__ import annotations

from collections import OrderedDict

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import InvalidInput
from fairlead.flags.evaluate import Evaluation
from fairlead.telemetry import EventSink, Exposure

__all__ = ["ExposureLog"]


class ExposureLog:
    """Reports exposures to a sink, each (flag, variant, targeting key, reason) once while it is remembered."""

    __slots__ = ("_capacity", "_clock", "_seen", "_sink")

    def __init__(self, sink: EventSink, *, capacity: int = 65_536, clock: Clock = SYSTEM_CLOCK) -> None:
        if type(capacity) is not int or not 1 <= capacity <= 10_000_000:
            raise InvalidInput(f"exposure capacity {capacity!r} is not a whole number from 1 to 10,000,000")
        self._sink = sink
        self._capacity = capacity
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str, str, str], None] = OrderedDict()

    def record(self, flag: str, targeting_key: str, evaluation: Evaluation) -> None:
        """Emits unless remembered, or without a key (there is no unit) or a variant (nothing was shown)."""
        variant = evaluation.variant
        if not targeting_key or variant is None:
            return
        if targeting_key.__class__ is not str:
            # Bucketing draws for a number as for its digits. Written as a number it would be an exposure that
            # no reader takes.
            targeting_key = str(targeting_key)
        report = (flag, variant, targeting_key, evaluation.reason)
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
