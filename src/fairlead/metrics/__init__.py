"""What is measured, said so completely that a stranger would compute the same number.

"40 % better" is not a result: better in which statistic, of which events, seen from where, over which
window? A `Metric` answers all of it or is refused, and `definition()` prints it beside each figure. A
`Target` is a promise about a metric, judged from the control's and the treatment's figures: met, missed, or
not judged with the reason; never NaN.
"""

from __future__ import annotations

from fairlead.metrics.condition import Condition, parse_condition
from fairlead.metrics.duration import parse_duration
from fairlead.metrics.formula import Formula, parse_formula
from fairlead.metrics.metric import Kind, Metric
from fairlead.metrics.reading import Reading
from fairlead.metrics.source import Family, Group, Source, Window
from fairlead.metrics.target import Relation, Target, TargetOutcome

__all__ = [
    "Condition",
    "Family",
    "Formula",
    "Group",
    "Kind",
    "Metric",
    "Reading",
    "Relation",
    "Source",
    "Target",
    "TargetOutcome",
    "Window",
    "parse_condition",
    "parse_duration",
    "parse_formula",
]
