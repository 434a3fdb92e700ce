"""What happened, as typed facts.

A log line is written for a person and guessed at by a program; every later figure then rests on a regular
expression. Here each kind of fact is a frozen struct. It travels as one JSON object whose field `event` names
the kind (`request_finished`, `exposure`, …), and is read back against the same struct: a line that names no
known kind, or breaks its kind's fields, is an error that says so, never a row with holes. Fields unknown to
this version are ignored, so an older reader can read a newer writer.

Fields carry their unit. `at_utc_seconds` is the wall clock, comparable between machines as far as their
clocks are; spans (`latency_seconds`) come from the monotonic clock. Do not put NaN into a field: JSON has no
NaN, so it is written as null and the line is reported as malformed when it is read.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from fairlead.errors import BrokenDocument

__all__ = [
    "Event",
    "Exposure",
    "LoadSample",
    "LoadWindow",
    "PolicyActed",
    "PolicyAction",
    "RequestEnding",
    "RequestFinished",
    "StateChanged",
    "UnknownEvent",
    "decode_event",
    "encode_event",
]

RequestEnding = Literal["ok", "degraded", "timeout", "error", "refused"]
"""How a request ended for the one who asked. `degraded` is an answer, only a lesser one: not an error."""

PolicyAction = Literal["retried", "hedged", "refused", "fell_back"]
"""What a policy did about a call: sent it again after a failure, sent a second copy beside a slow first, turned it
away before it began, or answered in its place.
"""


def _tag(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag=_tag):
    """What every fact carries."""

    # gc=False: events hold no cycles, and a buffer full of them should not slow the collector down.

    at_utc_seconds: float
    """When it happened: seconds since the Unix epoch, from `Clock.utc()`."""
    request_id: str = ""
    """The request it belongs to; empty outside a request."""


class RequestFinished(Event, frozen=True, kw_only=True, gc=False):
    """A request was answered, well or badly. One per request, on the server's side."""

    service: str
    route: str
    """The route's pattern (`/feed/{user}`), not the path: paths are unbounded."""
    status: int
    """HTTP status; 0 when no answer was sent."""
    latency_seconds: float
    """From the request's arrival to its last byte."""
    degraded: bool = False
    """A fallback answered in place of the real thing."""
    stale: bool = False
    """Some part of the answer was past its time to live."""
    staleness_seconds: float = 0.0
    """How far the stalest part was past its time to live; 0 when fresh."""
    age_seconds: float = 0.0
    """Age of the oldest part of the answer; 0 when nothing came from a cache."""
    error: str = ""
    """Class name of the error that ended it; empty when none did."""
    variant: str = ""
    """The variant that served it; empty when no flag was asked."""
    attributes: dict[str, str] = {}
    """A few more dimensions, for grouping. Keep them small: they are written with every request."""


class Exposure(Event, frozen=True, kw_only=True, gc=False):
    """A unit was given a variant by a flag. Never sampled: an experiment counts them."""

    flag: str
    variant: str
    targeting_key: str
    """The unit of randomisation (user, device, shop)."""
    reason: str
    """Why this variant: OpenFeature's word (SPLIT, TARGETING_MATCH, DEFAULT, …)."""


class StateChanged(Event, frozen=True, kw_only=True, gc=False):
    """A part of the service changed state: a breaker opened, a limit moved."""

    component: str
    """The kind of part: `circuit_breaker`, `concurrency_limit`, …"""
    name: str
    """Which one."""
    previous: str
    current: str
    reason: str = ""


class PolicyActed(Event, frozen=True, kw_only=True, gc=False):
    """A policy did something about a call that did not go straight."""

    policy: str
    """The policy's name."""
    action: PolicyAction
    reason: str
    """Class name of the failure that was retried, fallen back from or raised as the refusal; `slow` for a hedge."""
    attempt: int = 1
    """The attempt that it happened to, from 1."""


class LoadSample(Event, frozen=True, kw_only=True, gc=False):
    """One request of a load run, seen by the one who sent it."""

    phase: str
    arm: str
    """The variant under test: `control` or `treatment`."""
    cycle: int
    """Arms take turns, cycle by cycle; the number of this one, from 0."""
    key: str
    intended_seconds: float
    """When it should have been sent, in seconds since this turn's load began. Latency counts from here."""
    send_lag_seconds: float
    """How much later than intended it was really sent."""
    latency_seconds: float
    """From the intended send time to the last byte, or to giving up."""
    status: int
    """HTTP status; 0 when no answer came."""
    degraded: bool
    staleness_seconds: float | None
    """As the answer reports it; None when it does not say."""
    age_seconds: float | None
    """Age of the answer's oldest part, as it reports it; None when it does not say."""
    ending: RequestEnding


class LoadWindow(Event, frozen=True, kw_only=True, gc=False):
    """What a system counted of one arm in one phase of a load run, beside the requests."""

    phase: str
    arm: str
    cycle: int
    values: dict[str, float]
    """Counters over the phase, and gauges at its end, by name."""


_encoder = msgspec.json.Encoder()
_AnyEvent = RequestFinished | Exposure | StateChanged | PolicyActed | LoadSample | LoadWindow
_decoder: msgspec.json.Decoder[_AnyEvent] = msgspec.json.Decoder(_AnyEvent)


# Bytes that are not UTF-8 leave the decoder as Python's own error, not as one of msgspec's.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class UnknownEvent(BrokenDocument):
    """A well-formed event of a kind that this version does not know."""


class _AnyKind(msgspec.Struct):
    event: str


_KNOWN = frozenset(_tag(kind.__name__) for kind in get_args(_AnyEvent))


def encode_event(event: Event) -> bytes:
    """The event as one line of JSON, without its end. Raises TypeError for a field that JSON cannot hold."""
    return _encoder.encode(event)


def decode_event(line: bytes) -> Event:
    """The event in one JSON object.

    Raises UnknownEvent for a kind that this version does not know, BrokenDocument for anything else that is
    not an event.

    >>> shown = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")
    >>> decode_event(encode_event(shown)) == shown
    True
    """
    try:
        return _decoder.decode(line)
    except _UNREADABLE as error:
        kind = _kind(line)
        if kind is not None and kind not in _KNOWN:
            raise UnknownEvent(f"event {kind[:64]!r} is not one of {', '.join(sorted(_KNOWN))}") from error
        raise BrokenDocument(f"not an event: {error}") from error


def _kind(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line, type=_AnyKind).event
    except _UNREADABLE:
        return None
