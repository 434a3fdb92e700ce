"""What happened, as typed facts.

A log line is written for a person and guessed at by a program; every later figure then rests on a regular
expression. Here each kind of fact is a frozen struct. It travels as one JSON object whose field `event` names
the kind (`request_finished`, `exposure`, …). Every field says how much harm it can do when seen, and every
kind says what it is for, when it tells of a failure and whether it may be sampled (`EventSchema`); an
`EventRegistry` reads lines back by them.

Fields carry their unit. `at_utc_seconds` is the wall clock, comparable between machines as far as their
clocks are; spans (`latency_seconds`) come from the monotonic clock. Do not put NaN into a field: JSON has no
NaN, so it is written as null and the line is reported as malformed when it is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec

from fairlead.telemetry.classification import Internal, Personal, Public

__all__ = [
    "Condition",
    "Event",
    "EventRole",
    "EventSchema",
    "Exposure",
    "ItemsShown",
    "LoadSample",
    "LoadWindow",
    "MirrorOutcome",
    "PageMeasured",
    "PolicyActed",
    "PolicyAction",
    "RequestEnding",
    "RequestFinished",
    "RequestRecorded",
    "ScriptFailed",
    "ShadowCompared",
    "StateChanged",
    "Tracked",
    "encode_event",
]

RequestEnding = Literal["ok", "degraded", "timeout", "error", "refused"]
"""How a request ended for the one who asked. `degraded` is an answer, only a lesser one: not an error."""

PolicyAction = Literal["retried", "hedged", "refused", "fell_back"]
"""What a policy did about a call: sent it again after a failure, sent a second copy beside a slow first, turned it
away before it began, or answered in its place.
"""

MirrorOutcome = Literal["same", "different", "failed", "timeout", "cut", "unreadable"]
"""What came of asking the candidate too. `failed`, `timeout`: it gave no answer, where control did or failed otherwise.
`cut`: the answers are too large or too deep to be compared whole. `unreadable`: they cannot be compared at all."""


def _tag(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


EventRole = Literal["exposure", "outcome", "operational"]
"""What a kind of event is for. exposure: a unit met a variant; outcome: what a change is judged by; operational: how
the service itself fared. Only the last may be sampled.
"""


Comparison = Literal["=", "!=", "<", "<=", ">", ">="]


class Condition(msgspec.Struct, frozen=True):
    """One comparison of a field with a value: `Condition("status", ">=", 500)`."""

    field: str
    op: Comparison
    value: bool | int | float | str

    def holds(self, event: Event) -> bool:
        """Whether it is true of `event`. A field that is None satisfies `!=` and nothing else."""
        found = getattr(event, self.field)
        if self.op == "=":
            return bool(found == self.value)
        if self.op == "!=":
            return bool(found != self.value)
        if found is None:
            return False
        if self.op == "<":
            return bool(found < self.value)
        if self.op == "<=":
            return bool(found <= self.value)
        return bool(found > self.value if self.op == ">" else found >= self.value)

    def __str__(self) -> str:
        return f"{self.field} {self.op} {self.value!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EventSchema:
    """What a kind of event means, beside its fields. Checked when the kind is registered."""

    role: EventRole = "operational"
    """What it is for."""
    failure: tuple[Condition, ...] = ()
    """It tells of a failure when any of these holds. Empty: it has no such meaning, or none of it fails."""
    sampling: float = 1.0
    """Share of the requests whose events of this kind are kept, above 0 and at most 1. Failures are kept all, and so
    is what belongs to no request. Below 1 only for an operational kind."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag=_tag):
    """What every fact carries.

    A kind of your own derives from it, gives each field a classification and is registered:

        @EVENTS.register
        class OrderPlaced(Event, frozen=True, kw_only=True):
            order_id: Internal[str]
            buyer: Personal[str]
            schema: ClassVar[EventSchema] = EventSchema(role="outcome")
    """

    # gc=False: events hold no cycles, and a buffer full of them should not slow the collector down.

    schema: ClassVar[EventSchema] = EventSchema()

    at_utc_seconds: Internal[float]
    """When it happened: seconds since the Unix epoch, from `Clock.utc()`."""
    request_id: Internal[str] = ""
    """The request it belongs to; empty outside a request."""
    schema_version: Internal[int] = 1
    """Version of the kind's fields. A kind overrides the default when a field changes its meaning or goes away; a new
    field with a default is no new version."""
    inclusion_probability: Internal[float] = 1.0
    """Probability with which an event like this one was kept, above 0 and at most 1. It counts for 1 / this."""

    def failed(self) -> bool:
        """Whether it tells of a failure, as its kind's schema says."""
        return any(condition.holds(self) for condition in self.schema.failure)


class RequestFinished(Event, frozen=True, kw_only=True, gc=False):
    """A request was answered, well or badly. One per request, on the server's side."""

    schema: ClassVar[EventSchema] = EventSchema(
        failure=(Condition("status", "<", 100), Condition("status", ">=", 500), Condition("error", "!=", ""))
    )

    service: Public[str]
    route: Public[str]
    """The route's pattern (`/feed/{user}`), not the path: paths are unbounded."""
    status: Public[int]
    """HTTP status; 0 when no answer was sent."""
    latency_seconds: Internal[float]
    """From the request's arrival to its last byte."""
    first_byte_seconds: Internal[float | None] = None
    """From the request's arrival to the first byte of its answer; None where nobody measured it, or none came."""
    degraded: Internal[bool] = False
    """A fallback answered in place of the real thing."""
    stale: Internal[bool] = False
    """Some part of the answer was past its time to live."""
    staleness_seconds: Internal[float] = 0.0
    """How far the stalest part was past its time to live; 0 when fresh."""
    age_seconds: Internal[float] = 0.0
    """Age of the oldest part of the answer; 0 when nothing came from a cache."""
    error: Internal[str] = ""
    """Class name of the error that ended it; empty when none did."""
    variant: Internal[str] = ""
    """The variant that served it; empty when no flag was asked."""
    targeting_key: Personal[str] = ""
    """The unit that the variant was drawn for (user, device, shop): what a guardrail counts. Empty: none."""
    attributes: Internal[dict[str, str]] = {}
    """A few more dimensions, for grouping. Keep them small, they are written with every request, and impersonal."""


class RequestRecorded(Event, frozen=True, kw_only=True, gc=False):
    """A request as it came in, redacted, for sending it again. `at_utc_seconds` is its arrival."""

    method: Public[str]
    route: Public[str]
    """The route's pattern; `_unrouted` when none matched."""
    target: Internal[str]
    """Path and query, percent-encoded; personal values in it are tokens."""
    headers: Internal[dict[str, str]] = {}
    """Those that were asked for, by lower-case name."""
    body: Internal[str] = ""
    """The JSON body, redacted; empty when there was none, or it was not kept."""
    body_bytes: Internal[int] = 0
    """Size of the body as it came, kept or not."""
    user: Personal[str] = ""
    """Who asked, as a token; empty when unknown."""
    priority: Internal[int] = 1
    """As of `Priority`."""
    status: Public[int] = 0
    """HTTP status of the answer; 0 when none was sent."""
    latency_seconds: Internal[float] = 0.0
    """From arrival until the application was done with it."""


class PageMeasured(Event, frozen=True, kw_only=True, gc=False):
    """What a person in front of a page had to wait for; one a page view, measured until the page was first hidden.

    Reported by the browser, so it may come twice: count views, by `view_id`, not events. None is what this browser does
    not measure, or what did not happen: a page that nobody touched has no interaction.
    """

    schema: ClassVar[EventSchema] = EventSchema(role="outcome")

    page: Public[str]
    """The page's pattern, as the page names itself (`/feed/{user}`)."""
    view_id: Internal[str]
    """Which page view: 16 hexadecimal digits."""
    navigation: Internal[str] = ""
    """As the Navigation Timing specification calls it: navigate, reload, back_forward, prerender."""
    largest_contentful_paint_seconds: Internal[float | None] = None
    """LCP: from the start of the navigation (its activation, for a prerendered page) until the largest element of the
    first view was painted (W3C, Largest Contentful Paint)."""
    first_byte_seconds: Internal[float | None] = None
    """TTFB: from the start of the navigation to the first byte of the answer (W3C, Navigation Timing)."""
    cumulative_layout_shift: Internal[float | None] = None
    """CLS: the largest sum of unexpected layout shifts in a session window: gaps up to 1 s, 5 s in all (WICG, Layout
    Instability; the window as web.dev/articles/evolving-cls defines it). A score without unit."""
    interaction_to_next_paint_seconds: Internal[float | None] = None
    """INP: the slowest interaction from input to the next frame, leaving out one in fifty (W3C, Event Timing; the
    rule as web.dev/articles/inp defines it)."""
    scroll_latency_seconds: Internal[float | None] = None
    """From a wheel or touch input to the end of the frame in which the page's own thread has scrolled; the slowest,
    leaving out one in fifty. What the compositor shows before that is not seen."""
    targeting_key: Personal[str] = ""
    """The unit of randomisation, if the page says."""
    variant: Internal[str] = ""
    """The variant that the page was served in, if it says."""


class ScriptFailed(Event, frozen=True, kw_only=True, gc=False):
    """A script of a page raised and nobody caught it. Reported by the browser, so it may come twice: see `number`."""

    schema: ClassVar[EventSchema] = EventSchema(failure=(Condition("kind", "!=", ""),))

    page: Public[str]
    view_id: Internal[str]
    """Which page view: 16 hexadecimal digits."""
    number: Internal[int]
    """Of this report within the view; view and number name it."""
    kind: Internal[Literal["error", "rejection"]]
    """An exception, or a promise that was rejected."""
    error: Internal[str] = ""
    """Class of the error."""
    message: Internal[str] = ""
    """Up to 500 characters; may name people, so redact it before it leaves."""
    where: Internal[str] = ""
    """File, without its query, and line."""
    targeting_key: Personal[str] = ""
    variant: Internal[str] = ""


class Exposure(Event, frozen=True, kw_only=True, gc=False):
    """A unit was given a variant by a flag. Never sampled: an experiment counts them."""

    schema: ClassVar[EventSchema] = EventSchema(role="exposure")

    flag: Internal[str]
    variant: Internal[str]
    targeting_key: Personal[str]
    """The unit of randomisation (user, device, shop)."""
    reason: Internal[str]
    """Why this variant: OpenFeature's word (SPLIT, TARGETING_MATCH, DEFAULT, …)."""


class ItemsShown(Event, frozen=True, kw_only=True, gc=False):
    """A page of items was handed to a reader: what clicks are later counted against. Never sampled."""

    schema: ClassVar[EventSchema] = EventSchema(role="outcome")

    surface: Public[str]
    """Where: `home_feed`, `search`."""
    targeting_key: Personal[str]
    """Who was shown them: the unit of randomisation."""
    items: Internal[list[str]]
    """Ids in the order shown."""
    first_position: Internal[int] = 1
    """Place of the first of them in what was shown altogether, from 1; the others follow it."""
    model: Internal[str] = ""
    """Version of the model, or of the heuristic, that put them in order."""
    degraded: Internal[bool] = False
    """A fallback chose or ranked them: such a page says little about the model."""
    variant: Internal[str] = ""
    """The variant that served it; empty when no flag was asked."""


class Tracked(Event, frozen=True, kw_only=True, gc=False):
    """An application said that a unit did something: what OpenFeature calls tracking. Never sampled."""

    schema: ClassVar[EventSchema] = EventSchema(role="outcome")

    name: Public[str]
    """What was done: `checkout`, `video_watched`."""
    targeting_key: Personal[str]
    """Who did it: the unit of randomisation; empty when the caller did not say."""
    value: Internal[float | None] = None
    """How much of it, in a unit that its name implies; None when there is nothing to measure."""
    attributes: Personal[dict[str, str]] = {}
    """What else the caller said; as nobody has classified it, it counts as personal."""


class StateChanged(Event, frozen=True, kw_only=True, gc=False):
    """A part of the service changed state: a breaker opened, a limit moved."""

    component: Internal[str]
    """The kind of part: `circuit_breaker`, `concurrency_limit`, …"""
    name: Internal[str]
    """Which one."""
    previous: Internal[str]
    current: Internal[str]
    reason: Internal[str] = ""


class PolicyActed(Event, frozen=True, kw_only=True, gc=False):
    """A policy did something about a call that did not go straight."""

    schema: ClassVar[EventSchema] = EventSchema(failure=(Condition("action", "=", "refused"),))

    policy: Internal[str]
    """The policy's name."""
    action: Internal[PolicyAction]
    reason: Internal[str]
    """Class name of the failure that was retried, fallen back from or raised as the refusal; `slow` for a hedge."""
    attempt: Internal[int] = 1
    """The attempt that it happened to, from 1."""


class ShadowCompared(Event, frozen=True, kw_only=True, gc=False):
    """A candidate was asked what control had answered already. One per comparison; its caller saw nothing of it."""

    schema: ClassVar[EventSchema] = EventSchema(
        failure=(Condition("outcome", "=", "failed"), Condition("outcome", "=", "timeout"))
    )

    mirror: Internal[str]
    """The mirror's name."""
    outcome: Internal[MirrorOutcome]
    differing: Internal[list[str]] = []
    """Fields in which the candidate differs from control; `error` where it gave no answer."""
    again: Internal[bool] = False
    """Whether control was asked once more, beside the candidate: the noise that the candidate is judged by."""
    differing_again: Internal[list[str]] = []
    """Fields in which control differs from itself."""
    unnamed: Internal[int] = 0
    """Further fields in which either differs; the first hundred of both together are named."""
    control_seconds: Internal[float] = 0.0
    """Control's own time for the answer that its caller got."""
    candidate_seconds: Internal[float | None] = None
    """From the moment it was asked: waiting for a place is not in it. None: no answer."""
    again_seconds: Internal[float | None] = None
    """Of control's second answer, counted likewise. None: not asked, or no answer."""
    error: Internal[str] = ""
    """Class name of the error that the candidate ended in; empty when it answered."""


class LoadSample(Event, frozen=True, kw_only=True, gc=False):
    """One request of a load run, seen by the one who sent it."""

    schema: ClassVar[EventSchema] = EventSchema(
        role="outcome",
        failure=tuple(Condition("ending", "=", ending) for ending in ("timeout", "error", "refused")),
    )

    phase: Internal[str]
    arm: Internal[str]
    """The variant under test: `control` or `treatment`."""
    cycle: Internal[int]
    """Arms take turns, cycle by cycle; the number of this one, from 0."""
    key: Personal[str]
    intended_seconds: Internal[float]
    """When it should have been sent, in seconds since this turn's load began. Latency counts from here."""
    send_lag_seconds: Internal[float]
    """How much later than intended it was really sent."""
    latency_seconds: Internal[float]
    """From the intended send time to the last byte, or to giving up."""
    status: Public[int]
    """HTTP status; 0 when no answer came."""
    degraded: Internal[bool]
    staleness_seconds: Internal[float | None]
    """As the answer reports it; None when it does not say."""
    age_seconds: Internal[float | None]
    """Age of the answer's oldest part, as it reports it; None when it does not say."""
    ending: Internal[RequestEnding]


class LoadWindow(Event, frozen=True, kw_only=True, gc=False):
    """What a system counted of one arm in one phase of a load run, beside the requests."""

    schema: ClassVar[EventSchema] = EventSchema(role="outcome")

    phase: Internal[str]
    arm: Internal[str]
    cycle: Internal[int]
    values: Internal[dict[str, float]]
    """Counters over the phase, and gauges at its end, by name."""


_encoder = msgspec.json.Encoder()


def encode_event(event: Event) -> bytes:
    """The event as one line of JSON, without its end. Raises TypeError for a field that JSON cannot hold."""
    return _encoder.encode(event)
