"""A promise about a metric, and whether two figures keep it.

"Timeouts down by 0.5 %" can mean 0.5 percent or half a percentage point, which at 1 % of timeouts is the
difference between nothing and half. A target names its relation, and its outcome is worded in it. Where a
relation has no value (a change relative to zero, a figure that is missing) the outcome is "not judged",
with the reason: neither met nor missed.

    relation          observed                              limit, for example
    relative_change   (treatment − control) / control       −0.4: at least 40 % lower
    ratio             treatment / control                   2.8: at least 2.8 times
    difference        treatment − control, in the unit      0.001: at most 0.1 percentage points more
    absolute          treatment, in the unit                0.25: at most 250 ms

Met means observed <= limit where lower is better, observed >= limit where higher is; a strict target is missed
at the limit itself.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from fairlead.charts import format_value
from fairlead.errors import InvalidInput
from fairlead.metrics.metric import Metric

__all__ = ["Relation", "Target", "TargetOutcome"]

_BOUNDS = {
    ("lower", False): "at most",
    ("lower", True): "below",
    ("higher", False): "at least",
    ("higher", True): "above",
}
Relation = Literal["relative_change", "ratio", "difference", "absolute"]
"""What a target compares with its limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetOutcome:
    """What became of a target."""

    met: bool | None
    """None: not judged; the wording says why."""
    observed: float | None
    """The relation's value; None when it has none."""
    wording: str
    """One line for a table: the figures, the change, what was needed, the outcome."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A promise about a metric."""

    metric: Metric
    statement: str
    """The promise in a person's words."""
    relation: Relation
    """What is compared with the limit."""
    limit: float
    """Finite; a ratio for `relative_change` and `ratio`, in the metric's unit otherwise."""
    source: str
    """Where the promise comes from: a published account, a contract, a decision."""
    strict: bool = False
    """Whether the limit itself misses: "ahead of control" is not kept by a tie."""

    def __post_init__(self) -> None:
        name = self.metric.name
        for field in ("statement", "source"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 500:
                raise InvalidInput(
                    f"target of {name}: {field} is missing or not one line of up to 500 characters"
                )
        if self.relation not in get_args(Relation):
            choices = ", ".join(get_args(Relation))
            raise InvalidInput(
                f"target of {name}: relation is {str(self.relation)[:40]!r}; choose one of {choices}"
            )
        limit = self.limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
            raise InvalidInput(f"target of {name}: limit is {limit!r}, not a finite number")
        if self.relation == "relative_change" and limit < -1:
            raise InvalidInput(
                f"target of {name}: a relative change of {limit:g} is below −1; −0.4 means 40 % lower"
            )
        if self.relation == "ratio" and limit < 0:
            raise InvalidInput(f"target of {name}: a ratio of {limit:g} is negative; 2.8 means 2.8 times")

    def judge(self, control: float | None, treatment: float | None) -> TargetOutcome:
        """Whether the figures of the two arms keep the promise. Infinite: no answer came. Never raises."""
        why_not = self._why_not(control, treatment)
        if why_not or treatment is None:
            wording = f"{self._figures(control, treatment)}: not judged, {why_not}"
            return TargetOutcome(met=None, observed=None, wording=wording)
        observed = self._observe(control or 0.0, treatment)
        beyond = self.limit - observed if self.metric.better == "lower" else observed - self.limit
        if math.isfinite(beyond) and abs(beyond) <= self._rounding(control or 0.0, treatment):
            beyond = 0.0
        met = beyond > 0 or (beyond == 0 and not self.strict)
        bound = _BOUNDS[self.metric.better, self.strict]
        return TargetOutcome(
            met=met,
            observed=observed,
            wording=(
                f"{self._figures(control, treatment)}: {self._in_words(observed)}, "
                f"needs {bound} {self._in_words(self.limit)}: {'met' if met else 'missed'}"
            ),
        )

    def _why_not(self, control: float | None, treatment: float | None) -> str:
        if treatment is None or math.isnan(treatment):
            return "the treatment has no figure"
        if self.relation == "absolute":
            return ""
        if control is None or math.isnan(control):
            return "the control has no figure"
        if math.isinf(control):
            return "the control never came back, so nothing can be compared with it"
        if self.relation != "difference" and control <= 0:
            return (
                "the control is 0, and nothing is relative to 0"
                if control == 0
                else "the control is negative"
            )
        return ""

    def _observe(self, control: float, treatment: float) -> float:
        if self.relation == "absolute":
            return treatment
        if self.relation == "difference":
            return treatment - control
        return treatment / control if self.relation == "ratio" else (treatment - control) / control

    def _rounding(self, control: float, treatment: float) -> float:
        """How far from the truth arithmetic in binary takes a value of the relation: 0.06 − 0.05 is not quite 0.01."""
        if self.relation == "absolute":
            return 0.0
        scale = abs(control) + abs(treatment)
        return 4 * sys.float_info.epsilon * (scale if self.relation == "difference" else scale / control)

    def _figures(self, control: float | None, treatment: float | None) -> str:
        return f"{self._level(control)} → {self._level(treatment)}"

    def _level(self, value: float | None) -> str:
        if value is None or math.isnan(value):
            return "no figure"
        if math.isinf(value):
            return "no answer"
        if self.metric.unit == "ratio":
            return f"{value * 100:.4g} %"
        return (
            format_value(value, "seconds")
            if self.metric.unit == "seconds"
            else f"{value:.4g} {self.metric.unit}"
        )

    def _in_words(self, value: float) -> str:
        """A value of the relation: percent and percentage points are different units and are worded so."""
        if math.isinf(value):
            return "no answer"
        if self.relation == "relative_change":
            return f"{_signed(value * 100, 1)} %"
        if self.relation == "ratio":
            return f"{value:.4g}×"
        if self.relation == "absolute":
            return self._level(value)
        if self.metric.unit == "ratio":
            return f"{_signed(value * 100, 3)} percentage points"
        return f"{_signed(value, 4)} {self.metric.unit}"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else f"{0:.{digits}f}"
