"""One metric, defined completely.

Two teams that both say "p99" mean different numbers when one measures at the server and the other at the
client, or one leaves the timeouts out. So a definition is whole or it is refused, and what its kind needs
(a quantile its q, a ratio its denominator) is checked when it is written, not when it is first computed.

    kind         needs                  yields
    quantile     field, q               the q-quantile of a field
    mean         field                  the mean of a field
    total        field, unit_field      the sum of a field over each unit's events, on average over the units
    maximum      field                  the largest value of a field
    proportion   field (a condition)    the share of events for which it holds, 0–1
    ratio        field, denominator     sum of one field over sum of another
    rate         —                      events per second
    count        —                      number of events
    formula      formula                published / (attempts − user_cancelled), of sums of fields

`where`, and the field of a proportion, are conditions (`fairlead.metrics.condition`); every source computes them
alike. Where one user has many events, `unit_field` names the user, and intervals are taken over users.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from fairlead.errors import InvalidInput
from fairlead.metrics.condition import Condition, parse_condition
from fairlead.metrics.duration import parse_duration
from fairlead.metrics.formula import Formula, parse_formula

__all__ = ["Better", "Design", "Kind", "Metric", "Role", "Side"]

Role = Literal["primary", "secondary", "guardrail"]
Kind = Literal["quantile", "proportion", "mean", "total", "maximum", "ratio", "rate", "count", "formula"]
"""The statistic of a metric."""
Side = Literal["server", "client", "unstated"]
"""Where a value is observed; "unstated" only for an ad-hoc metric."""
Better = Literal["lower", "higher"]
Design = Literal["controlled", "before_after", "load_test", "simulated"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NEEDS: dict[str, tuple[str, ...]] = {
    "quantile": ("field", "q"),
    "mean": ("field",),
    "total": ("field",),
    "maximum": ("field",),
    "proportion": ("field",),
    "ratio": ("field", "denominator"),
    "rate": (),
    "count": (),
    "formula": ("formula",),
}
_AD_HOC = "ad hoc: side, window and segment are not stated, so nobody else can compute this figure again"


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
    formula: str | None = None
    """For a formula: fields joined by + − * /, applied to their sums; a ratio of counts."""
    q: float | None = None
    """For a quantile: 0 < q < 1."""
    where: str = ""
    """A condition: which events count, when not all do; empty: all."""
    unit_field: str | None = None
    """The field whose values name the units of analysis: events with one value vary together. None: every event is a
    unit of its own."""
    measured: str = ""
    """How the value is taken, when the field's name does not say: "from the intended send time"."""
    baseline: float | None = None
    """The figure before the change, in `unit`."""
    target: float | None = None
    """The figure hoped for, in `unit`."""
    ad_hoc: bool = False
    """Made from a bare column by `from_column`: analysed with a caveat, and barred from a dossier."""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_kind()
        self._check_numbers()

    @classmethod
    def from_column(
        cls,
        name: str,
        kind: Kind,
        column: str | None = None,
        *,
        denominator: str | None = None,
        formula: str | None = None,
        q: float | None = None,
        better: Better = "higher",
        unit_field: str | None = None,
    ) -> Metric:
        """A metric of a bare column, for a look at a file. It carries `caveat`, and no dossier takes it.

        >>> Metric.from_column("revenue", "mean", "revenue").definition()
        'mean of revenue of the table, per row, as given; higher is better (ad hoc)'
        """
        return cls(
            name=name,
            title=name.replace("_", " "),
            role="secondary",
            kind=kind,
            event="table",
            field=column,
            denominator=denominator,
            formula=formula,
            q=q,
            unit="ratio" if kind == "proportion" else "rows per second" if kind == "rate" else "as given",
            unit_of_analysis=unit_field or "row",
            unit_field=unit_field,
            side="unstated",
            window="unstated",
            segment="unstated",
            better=better,
            design="controlled",
            ad_hoc=True,
        )

    @property
    def caveat(self) -> str:
        """What a reader must know of the definition itself; empty when it is whole."""
        return _AD_HOC if self.ad_hoc else ""

    @property
    def sha256(self) -> str:
        """Hash of every field: two metrics of one hash are one metric."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # 1 and 1.0 are one figure, however a file writes it.
        fields |= {
            name: float(fields[name]) for name in ("q", "baseline", "target") if fields[name] is not None
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def condition(self) -> Condition | None:
        """`where`, parsed; None: every event counts."""
        return parse_condition(self.where) if self.where else None

    @property
    def success(self) -> Condition | None:
        """For a proportion: `field`, parsed; None otherwise."""
        return parse_condition(self.field) if self.kind == "proportion" and self.field else None

    @property
    def parsed_formula(self) -> Formula | None:
        """For a formula: `formula`, parsed; None otherwise."""
        return parse_formula(self.formula) if self.formula else None

    def _check_words(self) -> None:
        if not is_metric_name(self.name):
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
        for field in ("field", "denominator", "q", "formula"):
            value = getattr(self, field)
            if field in needs and (value is None or value == ""):
                raise InvalidInput(f"metric {self.name}: a {self.kind} needs {field}")
            if field not in needs and value is not None:
                raise InvalidInput(
                    f"metric {self.name}: a {self.kind} has no {field}; remove it or change the kind"
                )
        for field in ("field", "denominator", "formula", "unit_field"):
            value = getattr(self, field)
            if value is not None and not (
                isinstance(value, str) and value.isprintable() and len(value) <= 200
            ):
                raise InvalidInput(
                    f"metric {self.name}: {field} is not one printable line of up to 200 characters"
                )
        try:
            _ = self.condition, self.success, self.parsed_formula
        except InvalidInput as error:
            raise InvalidInput(f"metric {self.name}: {error}") from error
        if (self.side == "unstated") != self.ad_hoc:
            raise InvalidInput(f"metric {self.name}: side is unstated; say server or client")
        if self.kind == "proportion" and self.unit != "ratio":
            raise InvalidInput(f'metric {self.name}: a proportion has unit "ratio" (0–1), not {self.unit!r}')
        if self.kind == "total" and not self.unit_field:
            raise InvalidInput(
                f"metric {self.name}: a total is of each unit's events: set unit_field, the field that names the unit"
            )
        if self.kind == "rate" and not self.unit.endswith("per second"):
            raise InvalidInput(f'metric {self.name}: a rate has a unit "… per second", not {self.unit!r}')

    def _check_numbers(self) -> None:
        for field in ("q", "baseline", "target"):
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
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
        if self.ad_hoc:
            return f"{self._statistic()}, per {self.unit_of_analysis}, as given; {self.better} is better (ad hoc)"
        span = f"over {self.window}" if _is_duration(self.window) else f"over the {self.window}"
        parts = [self._statistic(), place, f"per {self.unit_of_analysis}", f"for {self.segment}", span]
        unit = "as a ratio from 0 to 1" if self.kind == "proportion" else f"in {self.unit}"
        return f"{', '.join(parts)}, {unit}; {self.better} is better"

    def _statistic(self) -> str:
        events = "the table" if self.ad_hoc else f"{self.event} events"
        of = events + (f" where {self.where}" if self.where else "")
        if self.q is not None:
            return f"{percentile(self.q)} of {self.field} of {of}"
        if self.kind == "mean":
            return f"mean of {self.field} of {of}"
        if self.kind == "total":
            return f"sum of {self.field} of {of} of each {self.unit_field}, on average"
        if self.kind == "maximum":
            return f"largest {self.field} of {of}"
        if self.kind == "proportion":
            return f"share with {self.field} among {of}"
        if self.kind == "ratio":
            return f"sum of {self.field} divided by sum of {self.denominator} of {of}"
        if self.formula:
            return f"{self.formula} of the sums of {of}"
        return f"{of} per second" if self.kind == "rate" else f"number of {of}"


def is_metric_name(name: object) -> bool:
    """Whether files, columns and flags can bear this name: lower case letters, digits and _, up to 64."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _is_duration(window: str) -> bool:
    try:
        parse_duration(window)
    except InvalidInput:
        return False
    return True


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
