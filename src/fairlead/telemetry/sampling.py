"""Fewer events, and still the right totals.

A coin thrown for each event keeps half a request, and forgets how often it kept: every count is then wrong by
a factor that nobody knows. Here one number, computed from the request's id, decides for all events of the
request and in every process alike; what is kept carries the probability it had (`inclusion_probability`), so
that each counts for 1 / p (the Horvitz–Thompson estimator, which is unbiased). A request kept at
1 % is among those kept at 10 %.

Exposures, outcomes, failures and events of no request are never sampled.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.errors import InvalidInput
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.event import Event
from fairlead.telemetry.schema import event_name
from fairlead.telemetry.sink import EventSink

__all__ = ["SamplingSink", "sampled"]

_SPAN = 2**64
_SEED = 0x5A3B  # ours alone: the flags' buckets of the same id must not decide what is recorded


def sampled(request_id: str, share: float) -> bool:
    """Whether the request belongs to the `share` (0–1) of all that is kept. The same answer everywhere, for ever."""
    return xxh3_64_intdigest(request_id.encode("utf-8", "surrogatepass"), _SEED) < share * _SPAN


class SamplingSink:
    """An EventSink that passes on a share of the requests, by the policy of each kind's schema."""

    def __init__(self, sink: EventSink, shares: Mapping[type[Event], float] | None = None) -> None:
        """sink: takes what is kept; not closed here.

        shares: by kind, in place of its schema's `sampling`: above 0, at most 1. Raises InvalidInput for another
            number, or for an exposure or outcome.
        """
        self._sink = sink
        self._shares = dict(shares or {})
        self.sampled_out = 0
        """Events not passed on, in this process."""
        for kind, share in self._shares.items():
            check_number(f"share of {event_name(kind)}", share, above=0.0, high=1.0)
            if share < 1 and kind.schema.role != "operational":
                raise InvalidInput(
                    f"{event_name(kind)} is an {kind.schema.role}: it cannot be sampled, experiments count every one"
                )

    def emit(self, event: Event) -> None:
        kind = type(event)
        share = self._shares.get(kind)
        if share is None:
            share = kind.schema.sampling
        try:
            always = share >= 1 or kind.schema.role != "operational" or not event.request_id or event.failed()
            kept = always or sampled(event.request_id, share)
        except (
            Exception
        ):  # a field of another type than declared: for the sink behind to put aside, not for the request
            always = kept = True
        if always:
            self._sink.emit(event)
        elif kept:
            # Of two samplers in a row the smaller share counts: the same number decides in both.
            self._sink.emit(
                msgspec.structs.replace(event, inclusion_probability=min(event.inclusion_probability, share))
            )
        else:
            self.sampled_out += 1
