"""One metric, defined completely.

Two teams that both say "p99" mean different numbers when one measures at the server and the other at the
client, or one leaves the timeouts out. So a definition is whole or it is refused, and what its kind needs
(a quantile its q, a ratio its denominator) is checked when it is written, not when it is first computed.

    kind         needs                  yields
    quantile     field, q               the q-quantile of a field
    mean         field                  the mean of a field
    maximum      field                  the largest value of a field
    proportion   field (a condition)    the share of events for which it holds, 0–1
    ratio        field, denominator     sum of one field over sum of another
    rate         —                      events per second
    count        —                      number of events
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from fairlead.errors import InvalidInput

__all__ = ["Better", "Design", "Kind", "Metric", "Role", "Side"]

Role = Literal["primary", "secondary", "guardrail"]
Kind = Literal["quantile", "proportion", "mean", "maximum", "ratio", "rate", "count"]
"""The statistic of a metric."""
Side = Literal["server", "client"]
Better = Literal["lower", "higher"]
Design = Literal["controlled", "before_after", "load_test", "simulated"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_DURATION = re.compile(r"\d{1,9}(ms|s|m|h|d)", re.ASCII)
_NEEDS: dict[str, tuple[str, ...]] = {
    "quantile": ("field", "q"),
    "mean": ("field",),
    "maximum": ("field",),
    "proportion": ("field",),
    "ratio": ("field", "denominator"),
    "rate": (),
    "count": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric and all that its number depends on. Raises InvalidInput naming what is missing or wrong.

    >>> Metric(
    ...     name="feed_p99", title="Feed p99", role="primary", kind="quantile", event="load_sample",
    ...     field="latency_seconds", q=0.99, unit="seconds", unit_of_analysis="request", side="client",
    ...     measured="from the intended send time", window="phase", segment="all requests", better="lower",
    ...     design="load_test",
    ... ).definition()[:77]
    '99th percentile of latency_seconds of load_sample events, measured at the cli'
    """

    name: str
    """How files and results refer to it: lower case, digits and _."""
    title: str
    """How a person calls it, in a table's heading."""
    role: Role
    """primary: what the change is judged by; guardrail: what must not get worse; secondary: the rest."""
    kind: Kind
    """The statistic."""
    event: str
    """The kind of event it is computed from, as telemetry names it."""
    unit: str
    """Unit of the number: "seconds", "ratio" (0–1) for a proportion, "… per second" for a rate."""
    unit_of_analysis: str
    """What one observation is: request, user, session, second."""
    side: Side
    """Where it is observed. A server does not see the queue in front of it."""
    window: str
    """The span that one figure covers: a duration such as "10m", or a name such as "phase"."""
    segment: str
    """Whom it covers; "all requests" is a segment that must be said too."""
    better: Better
    """Which way is good."""
    design: Design
    """What the figure can prove: only `controlled` shows a cause for users."""
    field: str | None = None
    """The field, or for a proportion the condition, as telemetry names it."""
    denominator: str | None = None
    """For a ratio: the field that is summed below the line."""
    q: float | None = None
    """For a quantile: 0 < q < 1."""
    where: str = ""
    """Which events count, when not all do; empty: all."""
    measured: str = ""
    """How the value is taken, when the field's name does not say: "from the intended send time"."""
    baseline: float | None = None
    """The figure before the change, in `unit`."""
    target: float | None = None
    """The figure hoped for, in `unit`."""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_kind()
        self._check_numbers()

    def _check_words(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"metric name {str(self.name)[:80]!r} is not lower case letters, digits and _, up to 64"
            )
        for field in ("title", "event", "unit", "unit_of_analysis", "window", "segment"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InvalidInput(
                    f"metric {self.name}: {field} is missing; without it the number has no meaning"
                )
        for field in ("title", "event", "unit", "unit_of_analysis", "window", "segment", "where", "measured"):
            value = getattr(self, field)
            if not isinstance(value, str) or not (value.isprintable() and len(value) <= 200):
                raise InvalidInput(
                    f"metric {self.name}: {field} is not one printable line of up to 200 characters"
                )
        for field, allowed in (
            ("role", Role),
            ("kind", Kind),
            ("side", Side),
            ("better", Better),
            ("design", Design),
        ):
            value = getattr(self, field)
            if value not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise InvalidInput(
                    f"metric {self.name}: {field} is {str(value)[:40]!r}; choose one of {choices}"
                )

    def _check_kind(self) -> None:
        needs = _NEEDS[self.kind]
        for field in ("field", "denominator", "q"):
            value = getattr(self, field)
            if field in needs and (value is None or value == ""):
                raise InvalidInput(f"metric {self.name}: a {self.kind} needs {field}")
            if field not in needs and value is not None:
                raise InvalidInput(
                    f"metric {self.name}: a {self.kind} has no {field}; remove it or change the kind"
                )
        for field in ("field", "denominator"):
            value = getattr(self, field)
            if value is not None and not (
                isinstance(value, str) and value.isprintable() and len(value) <= 200
            ):
                raise InvalidInput(
                    f"metric {self.name}: {field} is not one printable line of up to 200 characters"
                )
        if self.kind == "proportion" and self.unit != "ratio":
            raise InvalidInput(f'metric {self.name}: a proportion has unit "ratio" (0–1), not {self.unit!r}')
        if self.kind == "rate" and not self.unit.endswith("per second"):
            raise InvalidInput(f'metric {self.name}: a rate has a unit "… per second", not {self.unit!r}')

    def _check_numbers(self) -> None:
        for field in ("q", "baseline", "target"):
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInput(f"metric {self.name}: {field} is {value!r}, not a finite number")
            if field == "q" and not 0 < value < 1:
                raise InvalidInput(f"metric {self.name}: q is {value}, outside 0 to 1; p99 is 0.99")
            if field != "q" and self.kind == "proportion" and not 0 <= value <= 1:
                raise InvalidInput(
                    f"metric {self.name}: {field} is {value}, outside 0 to 1; write 0.002 for 0.2 %"
                )
        if self.baseline is not None and self.target is not None:
            worse = self.target > self.baseline if self.better == "lower" else self.target < self.baseline
            if worse:
                raise InvalidInput(
                    f"metric {self.name}: target {self.target:g} is worse than baseline {self.baseline:g}, "
                    f"as {self.better} is better; correct one of the three"
                )

    def definition(self) -> str:
        """One sentence that says all the number depends on."""
        place = " ".join(filter(None, [f"measured at the {self.side}", self.measured]))
        span = f"over {self.window}" if _DURATION.fullmatch(self.window) else f"over the {self.window}"
        parts = [self._statistic(), place, f"per {self.unit_of_analysis}", f"for {self.segment}", span]
        unit = "as a ratio from 0 to 1" if self.kind == "proportion" else f"in {self.unit}"
        return f"{', '.join(parts)}, {unit}; {self.better} is better"

    def _statistic(self) -> str:
        of = f"{self.event} events" + (f" where {self.where}" if self.where else "")
        if self.q is not None:
            return f"{percentile(self.q)} of {self.field} of {of}"
        if self.kind == "mean":
            return f"mean of {self.field} of {of}"
        if self.kind == "maximum":
            return f"largest {self.field} of {of}"
        if self.kind == "proportion":
            return f"share with {self.field} among {of}"
        if self.kind == "ratio":
            return f"sum of {self.field} divided by sum of {self.denominator} of {of}"
        return f"{of} per second" if self.kind == "rate" else f"number of {of}"


def percentile(q: float) -> str:
    """How a person names the q-quantile.

    >>> percentile(0.99), percentile(0.5), percentile(0.999), percentile(0.22)
    ('99th percentile', 'median', '99.9th percentile', '22nd percentile')
    """
    if q == 0.5:
        return "median"
    number = f"{q * 100:.10g}"
    last = number[-1]
    teen = number[-2:] in ("11", "12", "13")
    ending = "th" if "." in number or teen else {"1": "st", "2": "nd", "3": "rd"}.get(last, "th")
    return f"{number}{ending} percentile"
