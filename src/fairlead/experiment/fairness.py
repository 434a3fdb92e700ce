"""Does the change treat groups alike? A mean over everybody hides that one group pays for the others.

For each group the figure is treatment / control. The guardrail is about the largest of them over the smallest, with an
interval that holds for all pairs of groups together: picking the two most unlike groups and then testing those would
find a difference in pure noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.errors import NotEstimable
from fairlead.experiment.comparison import Arms, plain_effect
from fairlead.experiment.plan import Fairness
from fairlead.experiment.result import FairnessResult
from fairlead.statistics import Effect, mean_effect
from fairlead.statistics.tails import critical_value

__all__ = ["judge_fairness"]

MOST_GROUPS = 50
"""Groups that are looked at, the largest; each more widens the interval of all pairs."""
FEWEST = 50
"""Units an arm and group, below which a group is left out."""

_LARGEST = 700.0
"""Logarithm of the largest float, nearly."""


@dataclass(frozen=True, slots=True)
class _LogRatio:
    value: float
    variance: float


def judge_fairness(
    fairness: Fairness, variant: str, groups: Mapping[str, Arms], *, alpha: float
) -> FairnessResult:
    """The largest ratio between two groups' treatment/control, and whether it is within the limit.

    groups: by group, the arms of the metric. Ratios are compared by their logarithms, with the delta method, and
    Bonferroni's adjustment over the pairs. `exceeded`: a pair is surely beyond the limit; `within`: all pairs surely
    are within it; else `inconclusive`.
    """
    left_out: dict[str, list[str]] = {}
    ratios: dict[str, _LogRatio] = {}
    for name, arms in groups.items():
        try:
            ratios[name] = _log_ratio(arms)
        except NotEstimable as error:
            left_out.setdefault(str(error), []).append(name or "(none)")
    caveats = [
        f"{fairness.group} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''} left out: "
        f"{reason}"
        for reason, names in left_out.items()
    ]

    def result(**fields: object) -> FairnessResult:
        whole: dict[str, object] = {
            "largest_ratio": None, "ci": None, "between": (), "verdict": "not_estimable", **fields,
        }  # fmt: skip
        return FairnessResult(
            metric=fairness.metric, group=fairness.group, variant=variant, limit=fairness.limit,
            caveats=tuple(caveats), **whole,  # type: ignore[arg-type]  # of the fields above
        )  # fmt: skip

    if len(ratios) < 2:
        caveats.append(
            f"{len(ratios)} group(s) with {FEWEST} units an arm and a figure above zero; two needed"
        )
        return result()
    pairs = list(itertools.combinations(sorted(ratios, key=lambda name: -ratios[name].value), 2))
    critical = critical_value(alpha / 2 / len(pairs), None)
    limit = math.log(fairness.limit)
    bounds = {}
    for high, low in pairs:
        gap = ratios[high].value - ratios[low].value
        half = critical * math.sqrt(ratios[high].variance + ratios[low].variance)
        bounds[high, low] = (gap - half, gap + half)
    (most, least) = max(pairs, key=lambda pair: ratios[pair[0]].value - ratios[pair[1]].value)
    gap = ratios[most].value - ratios[least].value
    if any(ends[0] > limit for ends in bounds.values()):
        verdict = "exceeded"
    elif all(ends[1] < limit and ends[0] > -limit for ends in bounds.values()):
        verdict = "within"
    else:
        verdict = "inconclusive"
    ends = bounds[most, least]
    return result(
        largest_ratio=_exp(gap),
        # A ratio of the larger to the smaller is not below 1, whatever the interval of their difference.
        ci=(_exp(max(0.0, ends[0])), _exp(ends[1])),
        between=(most, least),
        verdict=verdict,
    )


def _exp(value: float) -> float | None:
    """None where floats end: a figure that is not told apart from zero has no ratio to speak of."""
    return math.exp(value) if value < _LARGEST else None


def _log_ratio(arms: Arms) -> _LogRatio:
    if arms.control is None or arms.treatment is None:
        raise NotEstimable("an arm has no unit of it")
    if min(arms.control.n, arms.treatment.n) < FEWEST:
        raise NotEstimable(f"fewer than {FEWEST} units in an arm")
    found = plain_effect(arms)
    if found.arm_errors is None:
        found = _as_mean(arms)
    if found.control <= 0 or found.treatment <= 0 or found.arm_errors is None:
        raise NotEstimable("a figure that is not above zero has no ratio")
    errors = found.arm_errors
    return _LogRatio(
        math.log(found.treatment / found.control),
        (errors[0] / found.control) ** 2 + (errors[1] / found.treatment) ** 2,
    )


def _as_mean(arms: Arms) -> Effect:
    assert arms.control is not None and arms.treatment is not None  # noqa: S101,PT018 - asked before
    return mean_effect(arms.control, arms.treatment, arms.columns[0])
