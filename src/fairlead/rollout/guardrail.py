"""Is treatment doing harm? One guardrail, at one look.

    beside control   FAIL   treatment is shown to be worse, and the best estimate lies beyond `worse_by`
                     PASS   treatment is shown not to be worse by `worse_by`
    absolute         FAIL   beyond the limit at every look for `for_seconds`; at the first and last by more than chance
                     PASS   within the limit now

Anything else is INCONCLUSIVE, with the reason. "Shown" is anytime-valid: by an e-value that holds however often one
looks (`fairlead.statistics`). Of alpha, each guardrail has an equal part; its stake is divided among the stages in
which arms are compared, so that good days at 1 % do not have to be paid back at 25 %.

That a quantile is worse is shown by counts: treatment has more than its share of the units that lie beyond control's
quantile of the moment before (`exceedances`). What is estimated and bounded is the difference of the quantiles.

A treatment no worse than control is thus rolled back with a chance of alpha at most, over all guardrails, stages and
looks. One that is worse, but by less than `worse_by`, may be: its estimate strays beyond the limit now and then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from fairlead.errors import NotEstimable
from fairlead.rollout.exceedances import tail
from fairlead.rollout.plan import Guardrail, RolloutPlan
from fairlead.rollout.tally import ArmSeen

if TYPE_CHECKING:  # an evaluation of an absolute limit costs no numpy
    from fairlead.statistics import Effect, Hypothesis, Moments

__all__ = ["Evaluation", "Reason", "Verdict", "evaluate_beside_control", "evaluate_limit"]

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Reason = Literal[
    "",
    "harm",
    "beyond_limit",
    "waiting",
    "no_control",
    "no_data",
    "stale",
    "sample_ratio",
    "control_unhealthy",
    "query_error",
]
"""waiting: there is data, and not enough to tell. no_control: this stage compares nothing."""

_ENOUGH = 5
"""Events that an absolute limit allows, from which on its figure is taken as it stands."""
_BY_CHANCE = 0.01
_FEWEST_BAD = 100
_FEWEST_VALUES = 2_000
"""What evaluations are tuned for where the plan names no rate: it costs little to be off by a factor of ten."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail at one look: all that its verdict stood on."""

    guardrail: str
    """Name of the guardrail."""
    verdict: Verdict
    reason: Reason = ""
    """Why, where it is no PASS."""
    detail: str = ""
    """For a person."""
    control: float | None = None
    """Control's figure, in the metric's unit."""
    treatment: float | None = None
    """Treatment's figure, in the metric's unit."""
    n_control: int = 0
    """Units behind it; of an absolute limit, events."""
    n_treatment: int = 0
    effect: float | None = None
    """How much worse treatment is: a share of control's figure, or in the metric's unit; below 0 is better."""
    bound: float | None = None
    """Beside control: treatment is worse by no more than this, at any look (1 − alpha). Absolute: the limit."""
    log_e_value: float = 0.0
    """Of this stage, against "treatment is no worse than control"; of a quantile, in how many units lie beyond it."""
    log_wealth: float = 0.0
    """Of the rollout so far; FAIL needs `log_needed`."""
    log_needed: float = 0.0
    beyond_control: int = 0
    """Of a quantile: units of control whose value lay beyond control's quantile of the moment before."""
    beyond_treatment: int = 0
    """The same of treatment: these two are what the e-value counts."""
    beyond_seconds: float = 0.0
    """Absolute: for how long it has been beyond the limit."""
    query: str = ""
    """What was asked, word by word."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a comparison says, in the direction of harm."""

    control: float | None
    treatment: float | None
    effect: float | None
    bound: float | None
    log_e: float


def evaluate_beside_control(
    plan: RolloutPlan,
    guardrail: Guardrail,
    control: ArmSeen,
    treatment: ArmSeen,
    *,
    share: float,
    past: Sequence[float],
    tuned_for: int | None = None,
) -> Evaluation:
    """Compares the arms of this stage. share: treatment's of the units, above 0 and below 1.

    past: this guardrail's log e-values of the comparing stages before this one, in their order. tuned_for: units of
    both arms at which it shall be most sensitive; None: a guess that costs little.
    """
    stages = max(1, len(plan.comparing))
    kind = guardrail.metric.kind
    alpha = plan.alpha_each
    needed = -math.log(alpha)
    undecided = Evaluation(
        guardrail=guardrail.name,
        verdict="INCONCLUSIVE",
        reason="waiting",
        n_control=control.units,
        n_treatment=treatment.units,
        log_needed=needed,
        beyond_control=control.bad if kind == "quantile" else 0,
        beyond_treatment=treatment.bad if kind == "quantile" else 0,
        query=_question(guardrail, plan, share),
    )
    arms = ((plan.control, control), (plan.treatment, treatment))
    if silent := [arm for arm, seen in arms if not seen.units]:
        return replace(undecided, reason="no_data", detail=f"no units of {' and '.join(silent)} yet")
    try:
        found = _compared(guardrail, control, treatment, share, 1 - alpha, tuned_for)
    except NotEstimable as why:
        return replace(undecided, detail=str(why))
    wealth = log_wealth([*past, found.log_e], stages, carry=kind == "proportion")
    assert guardrail.worse_by is not None  # noqa: S101 - it is a guardrail beside control
    judged = replace(
        undecided,
        control=found.control,
        treatment=found.treatment,
        effect=_finite(found.effect),
        bound=_finite(found.bound),
        log_e_value=found.log_e,
        log_wealth=wealth,
    )
    # Nothing is relative to a control of 0, or to what never came back; that treatment is shown to be worse is beyond
    # any share of it.
    beyond = found.log_e > 0 if found.effect is None else found.effect > guardrail.worse_by
    if wealth >= needed and beyond:
        return replace(judged, verdict="FAIL", reason="harm")
    if found.bound is not None and found.bound <= guardrail.worse_by:
        return replace(judged, verdict="PASS", reason="")
    return judged


def _finite(value: float | None) -> float | None:
    """A ratio to next to nothing is beyond what a float, or a journal, can hold: as one to nothing, it is not given."""
    return value if value is not None and math.isfinite(value) else None


def evaluate_limit(
    plan: RolloutPlan,
    guardrail: Guardrail,
    value: float | None,
    *,
    n: int = 0,
    control: float | None = None,
    n_control: int = 0,
    beyond_since: float | None,
    now: float,
    problem: Reason = "",
    detail: str = "",
    query: str = "",
) -> Evaluation:
    """Judges a figure of treatment by an absolute limit.

    beyond_since, now: monotonic seconds: since when it has been beyond the limit at every look, if it has; by more than
    chance at the first of them. problem: why there is no figure. control: control's figure, where it is known: beyond
    the limit too, it is named.
    """
    limit = guardrail.above if guardrail.above is not None else guardrail.below
    assert limit is not None  # noqa: S101 - it is an absolute guardrail
    undecided = Evaluation(
        guardrail=guardrail.name,
        verdict="INCONCLUSIVE",
        control=control,
        n_control=n_control,
        n_treatment=n,
        bound=limit,
        query=query,
    )
    if value is None or math.isnan(value) or value == -math.inf:
        return replace(undecided, reason=problem or "no_data", detail=detail or "no events")
    judged = replace(undecided, treatment=value)
    if not is_beyond(guardrail, value):
        return replace(judged, verdict="PASS")
    shown = is_beyond(guardrail, value, n)
    few = "" if shown else f"beyond the limit, but of {n} events by chance as well"
    if few and beyond_since is None:
        return replace(judged, reason="waiting", detail=few)
    beyond = 0.0 if beyond_since is None else max(0.0, now - beyond_since)
    both = control is not None and is_beyond(guardrail, control, n_control)
    said = f"{plan.control} is beyond the limit too" if both else few
    judged = replace(judged, beyond_seconds=beyond)
    if shown and beyond_since is not None and beyond >= guardrail.for_seconds:
        return replace(judged, verdict="FAIL", reason="beyond_limit", detail=said)
    return replace(
        judged,
        reason="control_unhealthy" if both else "beyond_limit",
        detail=said or f"beyond the limit for {beyond:.0f} of {guardrail.for_seconds:g} s",
    )


def is_beyond(guardrail: Guardrail, value: float, n: int = 0) -> bool:
    """Whether a figure of `n` events (0: not known) is beyond an absolute limit, and not by a few events' chance.

    Of 20 users one error is 5 %: where a limit allows fewer than five events, there must be so many that a service at
    the limit would have as many in one look of a hundred at most (binomial, exact).
    """
    if guardrail.above is not None:
        beyond, bad, allowed = value > guardrail.above, value, guardrail.above
    elif guardrail.below is not None:
        beyond, bad, allowed = value < guardrail.below, 1 - value, 1 - guardrail.below
    else:
        return False
    if guardrail.metric.kind != "proportion" or not n or not 0 <= bad <= 1 or not 0 <= allowed <= 1:
        return beyond
    return beyond and (n * allowed >= _ENOUGH or round(n * bad) >= _more_than_chance(n, allowed))


def _more_than_chance(n: int, rate: float) -> int:
    """The fewest bad events of `n` that chance brings about in one look of a hundred at most, at a rate below 1.

    A dozen steps, whatever n: fewer than five are allowed. Each term comes from the one before, as the combinations of
    a thousand events are no floats.

    >>> _more_than_chance(49, 0.02)
    5
    """
    bad, fewer, term = 0, 0.0, math.exp(n * math.log1p(-rate))
    while 1.0 - fewer > _BY_CHANCE:
        fewer += term
        term *= (n - bad) / (bad + 1) * rate / (1 - rate)
        bad += 1
    return bad


def log_wealth(log_e: Sequence[float], stages: int, *, carry: bool) -> float:
    """What a stake of 1, divided equally among the stages, has become; log.

    carry: the winnings of a stage are bet again in the next ones (e-values of stages multiply); else each stage's part
    is bet in that stage only, and the parts are judged one by one, which holds even where stages share their units.

    >>> round(math.exp(log_wealth([math.log(6)], 3, carry=True)), 3)         # 6/3, and 2/3 not yet bet
    2.667
    >>> round(math.exp(log_wealth([math.log(6), math.log(3)], 3, carry=True)), 3)   # 18/3 + 3/3 + 1/3
    7.333
    >>> round(math.exp(log_wealth([math.log(6), math.log(3)], 3, carry=False)), 3)  # 3/3
    1.0
    """
    part = -math.log(stages)
    if not carry:
        return part + log_e[-1]
    total = -math.inf
    running = 0.0
    for each in reversed(log_e):
        running += each
        total = _log_add(total, part + running)
    left = stages - len(log_e)
    return _log_add(total, math.log(left / stages)) if left > 0 else total


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def evidence_of_harm(
    guardrail: Guardrail, control: ArmSeen, treatment: ArmSeen, *, share: float, tuned_for: int | None
) -> float:
    """Log e-value of this stage against "treatment is no worse than control"; a tenth of an evaluation's work.

    Raises NotEstimable where there is too little.
    """
    from fairlead.statistics.sequential_counts import log_e_value, tuned_strength

    kind = guardrail.metric.kind
    side: Literal["greater", "less"] = "greater" if guardrail.metric.better == "lower" else "less"
    if kind in ("proportion", "quantile"):
        strength = tuned_strength(_tuned_events(guardrail, tuned_for))
        # Beyond a quantile is the worse side, whichever that is.
        more = "greater" if kind == "quantile" else side
        return log_e_value(treatment.bad, control.bad + treatment.bad, share, strength, more)
    from fairlead.statistics import Hypothesis, mean_effect, sequential_effect

    harmed = mean_effect(
        _moments(control), _moments(treatment), "value", hypothesis=Hypothesis(alternative=side)
    )
    return sequential_effect(harmed, tuned_for=2 * _tuned_values(tuned_for)).log_e_value


def _tuned_events(guardrail: Guardrail, units: int | None) -> int:
    """Bad units of both arms at which a test that counts them shall be most sensitive."""
    metric = guardrail.metric
    rate = tail(metric) if metric.kind == "quantile" else metric.baseline
    return max(1, round(units * rate)) if units and rate else _FEWEST_BAD


def _tuned_values(units: int | None) -> int:
    """Values of one arm at which the test of a quantile or mean shall be most sensitive."""
    return max(2, round((units or 2 * _FEWEST_VALUES) / 2))


def _compared(
    guardrail: Guardrail,
    control: ArmSeen,
    treatment: ArmSeen,
    share: float,
    confidence: float,
    tuned_for: int | None,
) -> _Found:
    kind = guardrail.metric.kind
    if kind == "proportion":
        return _compared_counts(guardrail, control, treatment, share, confidence, tuned_for)
    from fairlead.statistics import Hypothesis

    higher = guardrail.metric.better == "lower"
    better = Hypothesis(alternative="less" if higher else "greater")
    if kind == "quantile":
        effect_found, log_e = _compared_quantiles(
            guardrail, control, treatment, share, better, confidence, tuned_for
        )
        if effect_found is None:
            return _Found(control=None, treatment=None, effect=None, bound=None, log_e=log_e)
        found = effect_found
    else:
        from fairlead.statistics import mean_effect, sequential_effect

        moments = _moments(control), _moments(treatment)
        spared = mean_effect(*moments, "value", hypothesis=better, confidence=confidence)
        found = sequential_effect(spared, tuned_for=2 * _tuned_values(tuned_for)).effect
        log_e = evidence_of_harm(guardrail, control, treatment, share=share, tuned_for=tuned_for)
    sign = 1.0 if higher else -1.0
    end = "high" if higher else "low"
    prefix = "relative_" if guardrail.relative else ""
    effect = getattr(found, f"{prefix}effect")
    bound = getattr(found, f"{prefix}{end}")
    return _Found(
        control=found.control,
        treatment=found.treatment,
        effect=None if effect is None else sign * effect,
        bound=None if bound is None else sign * bound,
        log_e=log_e,
    )


def _compared_quantiles(
    guardrail: Guardrail,
    control: ArmSeen,
    treatment: ArmSeen,
    share: float,
    better: Hypothesis,
    confidence: float,
    tuned_for: int | None,
) -> tuple[Effect | None, float]:
    """The effect with its bound, if there is one; and the evidence of harm."""
    from fairlead.statistics import sequential_quantile_effect

    q = guardrail.metric.q
    assert q is not None  # noqa: S101 - a quantile has its q
    size = _tuned_values(tuned_for)
    arms = control.counts(), treatment.counts()
    harm = evidence_of_harm(guardrail, control, treatment, share=share, tuned_for=tuned_for)
    try:
        found = sequential_quantile_effect(*arms, q, tuned_for=size, hypothesis=better, confidence=confidence)
    except NotEstimable:
        # Worse than any figure: the quantile lies among the requests of treatment that never came back, and of
        # treatment alone.
        if harm <= 0 or math.isinf(arms[0].quantile(q)):
            raise
        return None, harm
    return found.effect, harm


def _compared_counts(
    guardrail: Guardrail,
    control: ArmSeen,
    treatment: ArmSeen,
    share: float,
    confidence: float,
    tuned_for: int | None,
) -> _Found:
    from fairlead.statistics import Hypothesis, sequential_counts, sequential_difference_bound

    higher = guardrail.metric.better == "lower"
    sign = 1.0 if higher else -1.0
    rates = control.bad / control.units, treatment.bad / treatment.units
    size = _tuned_events(guardrail, tuned_for)
    log_e = evidence_of_harm(guardrail, control, treatment, share=share, tuned_for=tuned_for)
    effect: float | None
    bound: float | None
    if guardrail.relative:
        effect = (rates[1] / rates[0] - 1) if rates[0] else None
        better = sequential_counts(
            control.bad,
            treatment.bad,
            treatment_share=share,
            tuned_for=size,
            hypothesis=Hypothesis(alternative="less" if higher else "greater"),
            confidence=confidence,
        )
        end = better.high if higher else better.low
        bound = None if end is None else sign * (end - 1)
    else:
        effect = rates[1] - rates[0]
        arms = (control.bad, control.units), (treatment.bad, treatment.units)
        bound = sequential_difference_bound(
            *(arms if higher else arms[::-1]),
            tuned_for=max(1, round((tuned_for or 2 * _FEWEST_VALUES) / 2)),
            confidence=confidence,
        )
    return _Found(
        control=rates[0],
        treatment=rates[1],
        effect=None if effect is None else sign * effect,
        bound=bound,
        log_e=log_e,
    )


def _moments(arm: ArmSeen) -> Moments:
    import numpy as np

    from fairlead.statistics import Moments

    values = np.array([value for value in arm.values if math.isfinite(value)], dtype=np.float64)
    counts = np.array([arm.values[value] for value in values.tolist()], dtype=np.float64)
    n = int(counts.sum())
    mean = float((values * counts).sum() / n) if n else 0.0
    square = float((counts * (values - mean) ** 2).sum())
    return Moments(columns=("value",), n=n, means=(mean,), products=((square,),))


def _question(guardrail: Guardrail, plan: RolloutPlan, share: float) -> str:
    what = {
        "proportion": "units whose first bad event of the rollout fell into this stage",
        "quantile": "the first value of each unit of this stage, and how many lie beyond control's quantile of the "
        "moment before",
        "mean": "the first value of each unit of this stage",
    }[guardrail.metric.kind]
    return (
        f"{guardrail.metric.definition()}; {what}; {plan.treatment} has {share:.10g} of the units, "
        f"{plan.control} the rest"
    )
