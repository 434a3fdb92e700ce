"""What a plan would do with traffic that was recorded, before anybody is exposed.

    A/A        units of the recording are drawn anew, again and again, into arms that meet the same: whoever is rolled
               back, is so by mistake
    planted    the same, and treatment's events are made worse by a stated amount: how soon is it noticed, if it is

Only guardrails beside control are played, stage after stage, by the functions that the controller uses. A stage is
played with the recording from its beginning; where it bakes for longer than was recorded, the recording is gone through
again, its units as new ones. What it cannot tell: how units behave that meet treatment for longer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput, NotEstimable
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.guardrail import evaluate_beside_control, evidence_of_harm, log_wealth
from fairlead.rollout.plan import Guardrail, RolloutPlan, Stage
from fairlead.rollout.tally import ArmSeen, reader_of, rounded

__all__ = ["Harm", "Simulated", "simulate_rollout"]

_MOST_LOOKS = 40
"""Looks a stage: more would find harm a little sooner, and take as much longer."""
_MOST_PASSES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Harm:
    """What is planted in treatment. All 0: nothing, an A/A."""

    errors: float = 0.0
    """Share of units that fail in addition, 0–1: each that would not have, fails with this chance at each event."""
    slower: float = 0.0
    """Treatment's latencies are longer by this share; 0.5 is 50 %."""

    def __post_init__(self) -> None:
        check_number("errors", self.errors, low=0, high=1)
        check_number("slower", self.slower, low=0, high=1000)

    @property
    def name(self) -> str:
        """In words: "A/A", "errors +1 pp", "50 % slower"."""
        said = [f"errors +{self.errors * 100:.4g} pp"] if self.errors else []
        said += [f"{self.slower * 100:.4g} % slower"] if self.slower else []
        return ", ".join(said) or "A/A"


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """What became of the repeats."""

    harm: str
    repeats: int
    rolled_back: int
    by_stage: dict[str, int] = field(default_factory=dict)
    """Rolled back, by the stage in which it happened."""
    seconds: tuple[float, ...] = ()
    """From the first stage in which arms were compared until the rollback; one for each that was rolled back."""
    exposed: tuple[int, ...] = ()
    """Units that had met treatment by then."""
    caveats: tuple[str, ...] = ()


@dataclass(slots=True)
class _Recorded:
    """The events of one guardrail: when, whose, and what."""

    guardrail: Guardrail
    at: list[float] = field(default_factory=list)
    unit: list[int] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    value: list[float] = field(default_factory=list)


def simulate_rollout(
    plan: RolloutPlan,
    events: Iterable[tuple[str, Mapping[str, object]]],
    *,
    harm: Harm | None = None,
    repeats: int = 200,
    seed: int = 1,
) -> Simulated:
    """Plays the plan `repeats` times over recorded events, (kind, fields) each, in any order.

    Raises InvalidInput where the plan compares nothing, or the recording has no events for it.
    """
    check_whole("repeats", repeats, low=1, high=100_000)
    watched = [guardrail for guardrail in plan.guardrails if guardrail.is_relative]
    if not watched or not plan.comparing:
        raise InvalidInput(
            f"{plan.name}: nothing is compared with control: no stage with a share between 0 and 1, or no guardrail "
            "with worse_by"
        )
    recorded, units, span = _recorded(watched, events)
    harm = harm or Harm()
    rng = random.Random(seed)
    found = [_played(plan, recorded, units, span, harm, rng) for _ in range(repeats)]
    back = [each for each in found if each is not None]
    by_stage: dict[str, int] = {}
    for stage, _, _ in back:
        by_stage[stage] = by_stage.get(stage, 0) + 1
    longest = max(plan.stages[index].bake for index in plan.comparing)
    caveats = []
    if longest > span:
        caveats.append(
            f"the recording is {span:.0f} s long and a stage bakes {longest:.0f} s: it is gone through up to "
            f"{min(_MOST_PASSES, -(-longest // span)):.0f} times, its units as new ones"
        )
    if len(plan.guardrails) > len(watched):
        caveats.append("absolute limits are not played")
    return Simulated(
        harm=harm.name,
        repeats=repeats,
        rolled_back=len(back),
        by_stage=by_stage,
        seconds=tuple(seconds for _, seconds, _ in back),
        exposed=tuple(exposed for _, _, exposed in back),
        caveats=tuple(caveats),
    )


def _recorded(
    watched: list[Guardrail], events: Iterable[tuple[str, Mapping[str, object]]]
) -> tuple[list[_Recorded], int, float]:
    """The events by guardrail in order of time, from 0; how many units; and how many seconds."""
    found = [_Recorded(guardrail) for guardrail in watched]
    readers = [reader_of(guardrail.metric) for guardrail in watched]
    numbers: dict[str, int] = {}
    rows: list[tuple[float, int, int, bool, float]] = []
    for kind, event in events:
        at = event.get("at_utc_seconds")
        if not isinstance(at, int | float):
            continue
        for index, each in enumerate(found):
            metric = each.guardrail.metric
            if metric.event != kind:
                continue
            named = event.get(metric.unit_field or "targeting_key")
            read = readers[index](event)
            if named and read is not None:
                number = numbers.setdefault(str(named), len(numbers))
                rows.append((float(at), index, number, *read))
    if not rows:
        raise InvalidInput("the recording has no event that a guardrail beside control counts, with its unit")
    rows.sort(key=lambda row: row[0])
    start = rows[0][0]
    for at, index, number, success, value in rows:
        each = found[index]
        each.at.append(at - start)
        each.unit.append(number)
        each.success.append(success)
        each.value.append(value)
    return found, len(numbers), max(1.0, rows[-1][0] - start)


def _played(
    plan: RolloutPlan,
    recorded: list[_Recorded],
    units: int,
    span: float,
    harm: Harm,
    rng: random.Random,
) -> tuple[str, float, int] | None:
    """One rollout: where, when and after how many exposed units it was rolled back; None: it was not."""
    past: dict[str, list[float]] = {each.guardrail.name: [] for each in recorded}
    failed: list[set[int]] = [set() for _ in recorded]
    slots: list[float] = []
    elapsed = 0.0
    for index in plan.comparing:
        stage = plan.stages[index]
        passes = min(_MOST_PASSES, max(1, int(-(-stage.bake // span))))
        tallies = [_StageTally(plan, each, stage, harm, rng, failed[i]) for i, each in enumerate(recorded)]
        for number in range(passes):
            lasts = min(span, stage.bake - number * span)
            while len(slots) < (number + 1) * units:
                slots.append(rng.random())
            looks = max(1, min(_MOST_LOOKS // passes or 1, round(lasts / plan.look_every)))
            for look in range(1, looks + 1):
                until = lasts * look / looks
                for tally in tallies:
                    tally.advance(until, slots, number * units)
                if any(_fails(plan, tally, past) for tally in tallies):
                    exposed = max(tally.treatment.units for tally in tallies)
                    return stage.name, elapsed + number * span + until, exposed
            for tally in tallies:
                tally.rewind()
        for tally in tallies:
            past[tally.recorded.guardrail.name].append(tally.log_e)
        elapsed += stage.bake
    return None


class _StageTally:
    """The arms of one stage, event by event; units are numbers, so that a million events take a second."""

    def __init__(
        self,
        plan: RolloutPlan,
        recorded: _Recorded,
        stage: Stage,
        harm: Harm,
        rng: random.Random,
        failed: set[int],
    ) -> None:
        self.recorded = recorded
        self.stage = stage
        self.control, self.treatment = ArmSeen(), ArmSeen()
        self.log_e = 0.0
        self._harm, self._rng, self._failed = harm, rng, failed
        self._met: set[int] = set()
        self._next = 0
        metric = recorded.guardrail.metric
        self._exceedances = (
            Exceedances(metric, look_every=plan.look_every) if metric.kind == "quantile" else None
        )

    def rewind(self) -> None:
        """The recording is gone through again."""
        self._next = 0

    def advance(self, until: float, slots: list[float], offset: int) -> None:
        """Takes the events before `until`; units are those from `offset` on."""
        recorded, harm, share = self.recorded, self._harm, self.stage.share
        proportion = recorded.guardrail.metric.kind == "proportion"
        slower = 1.0 + harm.slower
        at, index = recorded.at, self._next
        while index < len(at) and at[index] <= until:
            unit = offset + recorded.unit[index]
            treated = slots[unit] < share
            arm = self.treatment if treated else self.control
            new = unit not in self._met
            if new:
                self._met.add(unit)
                arm.units += 1
            if proportion:
                bad = recorded.success[index]
                if treated and harm.errors and not bad:
                    bad = self._rng.random() < harm.errors
                if bad and unit not in self._failed:
                    self._failed.add(unit)
                    arm.bad += 1
            elif new:
                value = rounded(recorded.value[index] * (slower if treated else 1.0))
                arm.values[value] += 1
                if self._exceedances is not None:
                    self._exceedances.add(at[index], treated, value)
            index += 1
        self._next = index
        if self._exceedances is not None:
            self.control.bad, self.treatment.bad = self._exceedances.counts()


def _fails(plan: RolloutPlan, tally: _StageTally, past: Mapping[str, list[float]]) -> bool:
    guardrail = tally.recorded.guardrail
    behind = past[guardrail.name]
    if not tally.control.units or not tally.treatment.units:
        return False
    rate = plan.expected_rate
    tuned_for = None if rate is None else max(100, round(rate * tally.stage.bake))
    arms = tally.control, tally.treatment
    try:
        tally.log_e = evidence_of_harm(guardrail, *arms, share=tally.stage.share, tuned_for=tuned_for)
    except NotEstimable:
        return False
    wealth = log_wealth(
        [*behind, tally.log_e], len(plan.comparing), carry=guardrail.metric.kind == "proportion"
    )
    if wealth < -math.log(plan.alpha_each):
        return False
    found = evaluate_beside_control(
        plan, guardrail, *arms, share=tally.stage.share, past=behind, tuned_for=tuned_for
    )
    return found.verdict == "FAIL"
