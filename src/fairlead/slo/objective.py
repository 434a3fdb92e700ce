"""A service level objective: which events count, which of them are good, what share must be, over which period.

"99.9 %" is no objective: of what, seen by whom, over which time, and who is woken when it is missed? An `Objective`
answers all of it or is refused. Its target is an exact decimal, since 1 − 0.999 in floats is not 0.001, and rules
that are compared with what a person expects must not say 0.0010000000000000009.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fairlead.errors import InvalidInput
from fairlead.metrics import Metric, Window, parse_condition
from fairlead.metrics.metric import is_metric_name

__all__ = ["CalendarPeriod", "Counters", "LatencyBuckets", "Objective", "RollingPeriod"]

MOST_NINES = Decimal("0.9999999")
LEAST = Decimal("0.0001")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,63}", re.ASCII)
_OURS = ("slo", "owner", "severity", "long_window", "alertname")
_DAY = 86400.0
_LONGEST = 400 * _DAY
_SELECTOR = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^{}\n]{0,500}\})?", re.ASCII)
_BOUND = re.compile(r"\d{1,20}(\.\d{1,20})?([eE][+-]?\d{1,3})?", re.ASCII)

Unit = Literal["week", "month", "quarter", "year"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RollingPeriod:
    """The last so many seconds, at every moment."""

    seconds: float

    def __post_init__(self) -> None:
        if not 3600.0 <= self.seconds <= _LONGEST:
            raise InvalidInput(
                f"period of {self.seconds:g} s: a rolling period lasts an hour to 400 days; 30d is the usual one"
            )

    @property
    def nominal_seconds(self) -> float:
        """Its length."""
        return self.seconds

    def window(self, now: float) -> Window:
        """The span that counts at a moment, seconds since 1970."""
        return Window(start=now - self.seconds, end=now)

    def __str__(self) -> str:
        return f"{self.seconds / _DAY:g} days, rolling"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalendarPeriod:
    """The current week (from Monday), month, quarter or year; on its first day the budget is whole again."""

    unit: Unit
    time_zone: str = "UTC"
    """Where its days begin, such as "Europe/Vienna"."""

    def __post_init__(self) -> None:
        if self.unit not in ("week", "month", "quarter", "year"):
            raise InvalidInput(
                f"period {str(self.unit)[:40]!r}: week, month, quarter or year, or a duration such as 30d"
            )
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidInput(
                f"time zone {self.time_zone[:60]!r} is not known; write one such as Europe/Vienna"
            ) from error

    @property
    def nominal_seconds(self) -> float:
        """About how long it is: what alerts are scaled by."""
        return {"week": 7 * _DAY, "month": 30 * _DAY, "quarter": 91 * _DAY, "year": 365 * _DAY}[self.unit]

    def span(self, now: float) -> Window:
        """The whole period that a moment lies in. Days of 23 and 25 hours are as long as they are."""
        zone = ZoneInfo(self.time_zone)
        local = datetime.fromtimestamp(now, zone)
        # Days of the calendar, as that place writes them: a zone is added to both ends, never to their distance.
        if self.unit == "week":
            start = datetime.combine(local.date() - timedelta(days=local.weekday()), time(), zone)
            end = datetime.combine(start.date() + timedelta(days=7), time(), zone)
        else:
            months = {"month": 1, "quarter": 3, "year": 12}[self.unit]
            first = (local.month - 1) // months * months
            start = datetime(local.year, first + 1, 1, tzinfo=zone)
            after = first + months
            end = datetime(local.year + after // 12, after % 12 + 1, 1, tzinfo=zone)
        begin, finish = (moment.timestamp() for moment in (start, end))
        return Window(start=begin, end=finish)

    def window(self, now: float) -> Window:
        """The part of it until now."""
        span = self.span(now)
        return Window(start=span.start, end=max(now, span.start + 1e-6))

    def __str__(self) -> str:
        return f"calendar {self.unit}" + ("" if self.time_zone == "UTC" else f" in {self.time_zone}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """Two Prometheus counters, each by its selector: ``http_requests_total{status!~"5.."}``."""

    good: str
    valid: str

    def __post_init__(self) -> None:
        for name in ("good", "valid"):
            if not _SELECTOR.fullmatch(getattr(self, name)):
                raise InvalidInput(
                    f"{name} {getattr(self, name)[:80]!r}: write one selector such as "
                    f'http_requests_total{{status!~"5.."}}; '
                    "rate() and sum() are ours to add"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyBuckets:
    """A classic Prometheus histogram: good is what fell into the bucket `le` and those below it."""

    histogram: str
    """Its name without `_bucket`."""
    le: str
    """An edge that the histogram has, as its exposition writes it. Between two edges nobody knows what was good."""
    where: str = ""
    """Further labels: ``route="/feed"``."""

    def __post_init__(self) -> None:
        if not _SELECTOR.fullmatch(self.histogram) or "{" in self.histogram:
            raise InvalidInput(
                f"histogram {self.histogram[:80]!r}: write its name, such as http_request_duration_seconds"
            )
        if not _BOUND.fullmatch(self.le):
            raise InvalidInput(
                f"le {self.le[:40]!r}: write an edge of the histogram as its exposition does, such as 0.3"
            )
        if not re.fullmatch(r"[^{}\n]{0,500}", self.where):
            raise InvalidInput(
                f'where {self.where[:80]!r}: write labels such as route="/feed", without braces'
            )

    @property
    def good(self) -> str:
        """The selector of good events."""
        labels = ",".join(filter(None, [self.where, f'le="{self.le}"']))
        return f"{self.histogram}_bucket{{{labels}}}"

    @property
    def valid(self) -> str:
        """The selector of all events."""
        return f"{self.histogram}_count" + (f"{{{self.where}}}" if self.where else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One objective. Raises InvalidInput naming what is missing or wrong.

    >>> Objective(
    ...     name="feed", title="Feed answers", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * 86400.0),
    ...     event="request_finished", good="status < 500", owner="team feed", runbook="https://runbooks/feed",
    ... ).budget
    Decimal('0.001')
    """

    name: str
    """How rules and alerts refer to it: lower case letters, digits and _."""
    title: str
    """How a person calls it."""
    target: Decimal
    """The share of good events that must be, above 0 and below 1; exact."""
    period: RollingPeriod | CalendarPeriod
    owner: str
    """Who is woken."""
    runbook: str
    """What to read then: an address or a path."""
    event: str = ""
    """The kind of event, where events are the source."""
    good: str = ""
    """A condition: which of the valid events are good. For a latency: ``latency_seconds < 0.3``."""
    where: str = ""
    """A condition: which events are valid; empty: all."""
    cause: str = ""
    """The field that tells why an event was bad; the budget is broken down by it."""
    side: Literal["server", "client"] = "server"
    """Where events are observed. A server does not see what never reached it."""
    prometheus: Counters | LatencyBuckets | None = None
    """Where a Prometheus is the source, and for rules."""
    minimum_events: int = 0
    """Valid events in an alert's long window below which it stays silent: one failure of three at night is 33 %."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to its rules and alerts."""

    def __post_init__(self) -> None:
        if not is_metric_name(self.name):
            raise InvalidInput(
                f"objective {str(self.name)[:80]!r}: a name is lower case letters, digits and _, up to 64"
            )
        if not isinstance(self.target, Decimal) or not (
            self.target.is_finite() and LEAST <= self.target <= MOST_NINES and _places(self.target) <= 12
        ):
            raise InvalidInput(
                f"{self.name}: target {str(self.target)[:40]}: a ratio above 0, in up to 12 places, and up to "
                f"{MOST_NINES}; 1 leaves no budget, so every failure would be an alarm for ever"
            )
        if self.side not in ("server", "client"):
            raise InvalidInput(f"{self.name}: side {str(self.side)[:40]!r}: server or client")
        for name in ("title", "owner", "runbook"):
            value = getattr(self, name)
            if not value.strip() or len(value) > 300 or not value.isprintable():
                raise InvalidInput(
                    f"{self.name}: {name} is missing, or not one printable line of up to 300 characters"
                )
        if bool(self.event) != bool(self.good):
            raise InvalidInput(
                f"{self.name}: event and good go together: of which events, and which of them are good"
            )
        if not self.event and self.prometheus is None:
            raise InvalidInput(f"{self.name}: no source: give event and good, or counters of a Prometheus")
        for name in ("good", "where"):
            if text := getattr(self, name):
                try:
                    parse_condition(text)
                except InvalidInput as error:
                    raise InvalidInput(f"{self.name}: {name}: {error}") from error
        if isinstance(self.minimum_events, bool) or not 0 <= self.minimum_events <= 10**9:
            raise InvalidInput(
                f"{self.name}: minimum_events {self.minimum_events!r} is not a count from 0 to 10^9"
            )
        for key, text in self.labels.items():
            if not _LABEL.fullmatch(key) or key in _OURS or len(text) > 200 or not text.isprintable():
                raise InvalidInput(
                    f"{self.name}: label {key[:60]!r} is no label's name, is set by us or by Prometheus, or has no "
                    "printable text of up to 200 characters"
                )

    @property
    def budget(self) -> Decimal:
        """The share of events that may be bad; exact."""
        return 1 - self.target

    @property
    def budget_minutes(self) -> float:
        """Minutes of a full outage that the period's budget pays for: 43.2 for 99.9 % of 30 days."""
        return float(self.budget) * self.period.nominal_seconds / 60

    def metric(self) -> Metric:
        """The share of good events, as every source computes it. Raises InvalidInput without events."""
        if not self.event:
            raise InvalidInput(f"{self.name}: it has no events, only a Prometheus; give event and good")
        return Metric(
            name=self.name,
            title=self.title,
            role="guardrail",
            kind="proportion",
            event=self.event,
            field=self.good,
            where=self.where,
            unit="ratio",
            unit_of_analysis="request",
            side=self.side,
            window=str(self.period),
            segment=self.where or "all events",
            better="higher",
            design="before_after",
            target=float(self.target),
        )


def _places(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
