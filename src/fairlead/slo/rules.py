"""Objectives as Prometheus rules: recording rules for every window, and the alerts over them.

Thresholds are written as exact decimals, since they are compared with what a person expects. A window without traffic
has no series, and so no alert; a counter of good events that nobody ever counted is zero, and everything was bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from fairlead.errors import InvalidInput
from fairlead.slo.burn_rate import BurnRateAlert, alerts_of
from fairlead.slo.objective import Counters, LatencyBuckets, Objective, RollingPeriod

__all__ = ["prometheus_rules"]

_OPENS = re.compile(r"\{(?=\{)")
ERROR_RATIO = "slo:error_ratio:rate"
"""Begins the name of a recorded error ratio; its window follows: ``slo:error_ratio:rate5m``."""


def prometheus_rules(objectives: Sequence[Objective]) -> str:
    """A rule file in YAML, one group per objective. Raises InvalidInput for one without counters."""
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) != len(names):
        raise InvalidInput("objectives: give at least one, and each name once")
    groups = [_group(objective) for objective in objectives]
    return "groups:\n" + "".join(groups)


def _group(objective: Objective) -> str:
    source = objective.prometheus
    if source is None:
        raise InvalidInput(
            f"{objective.name}: no counters; [objectives.{objective.name}.prometheus] says good and valid"
        )
    alerts = alerts_of(objective)
    windows = sorted({seconds for alert in alerts for seconds in (alert.long_seconds, alert.short_seconds)})
    labels = {"slo": objective.name, **objective.labels}
    lines = [f"  - name: {_text(f'slo_{objective.name}')}", "    rules:"]
    for seconds in windows:
        span = duration_text(seconds)
        lines += _record(f"{ERROR_RATIO}{span}", _error_ratio(source, span), labels)
    lines += _record("slo:error_budget:ratio", f"vector({decimal_text(objective.budget)})", labels)
    if isinstance(objective.period, RollingPeriod):
        span = duration_text(int(objective.period.seconds))
        remaining = f"1 - {_error_ratio(source, span)} / {decimal_text(objective.budget)}"
        lines += _record("slo:error_budget_remaining:ratio", remaining, labels)
    for alert in alerts:
        lines += _alert(objective, alert, source.valid, labels)
    return "\n".join(lines) + "\n"


def _error_ratio(source: Counters | LatencyBuckets, span: str) -> str:
    # Below the line only where there was traffic: 0/0 would be recorded as NaN.
    all_of = f"(sum(rate({source.valid}[{span}])) > 0)"
    good = f"sum(rate({source.good}[{span}]))"
    if isinstance(source, Counters):
        # A counter of good events that nobody ever counted does not exist. A bucket that does not is no edge of the
        # histogram: that is a slip of the pen, and no outage.
        good = f"({good} or vector(0))"
    return f"(1 - {good} / {all_of})"


def _record(name: str, expression: str, labels: dict[str, str]) -> list[str]:
    return [
        f"      - record: {name}",
        f"        expr: {_text(expression)}",
        "        labels:",
        *(f"          {key}: {_text(value)}" for key, value in labels.items()),
    ]


def _alert(objective: Objective, alert: BurnRateAlert, valid: str, labels: dict[str, str]) -> list[str]:
    threshold = decimal_text(exact_decimal(alert.burn_rate * Fraction(objective.budget)))
    long, short = duration_text(alert.long_seconds), duration_text(alert.short_seconds)
    chosen = f'{{slo="{objective.name}"}}'
    expression = f"{ERROR_RATIO}{long}{chosen} > {threshold} and {ERROR_RATIO}{short}{chosen} > {threshold}"
    if objective.minimum_events:
        expression += f" and on() sum(increase({valid}[{long}])) >= {objective.minimum_events}"
    said = {**labels, "severity": alert.severity, "owner": objective.owner, "long_window": long}
    rate = decimal_text(exact_decimal(alert.burn_rate))
    annotations = {
        "summary": f"{objective.title}: the error budget burns {rate} times too fast",
        "description": (
            f"More than {float(alert.budget_share):.0%} of the budget of {objective.period} went within "
            f"{long}, and it still "
            f"burns over {short}. Objective: {decimal_text(objective.target * 100)} % of events good."
        ),
        "runbook_url": objective.runbook,
    }
    return [
        "      - alert: ErrorBudgetBurn",
        f"        expr: {_text(expression)}",
        "        labels:",
        *(f"          {key}: {_text(value)}" for key, value in said.items()),
        "        annotations:",
        *(f"          {key}: {_text(value)}" for key, value in annotations.items()),
    ]


def duration_text(seconds: int) -> str:
    """A duration as Prometheus writes it, in the largest unit that is whole.

    >>> duration_text(300), duration_text(21600), duration_text(259200)
    ('5m', '6h', '3d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def exact_decimal(value: Fraction) -> Decimal:
    """A fraction as a decimal; to 12 digits where it has no end."""
    found = Decimal(value.numerator) / Decimal(value.denominator)
    return found if Fraction(found) == value else Decimal(f"{float(value):.12g}")


def decimal_text(value: Decimal) -> str:
    """Without exponent, and without zeros that say nothing.

    >>> decimal_text(Decimal("0.0144")), decimal_text(Decimal("99.90")), decimal_text(Decimal("1E+1"))
    ('0.0144', '99.9', '10')
    """
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(value: str) -> str:
    # A JSON string is a YAML string in double quotes, whatever is in it; Prometheus' own templates are kept out.
    return json.dumps(_OPENS.sub("{ ", value), ensure_ascii=False)
