"""What has happened to the units of both arms since the stage began: the only thing guardrails beside control look at.

Units are what was randomised, so units are what is counted; a thousand errors of one broken phone are one unit:

    proportion       units whose first bad event *of the rollout* fell into this stage, of those without one before
    quantile, mean   one value a unit and stage: that of its first event; of a quantile, also whether it lay beyond
                     control's of the moment before (`exceedances`)

A unit that failed once is not counted again in a later stage, in either arm. That is what lets the evidence of stages
multiply: who has failed already, failed where the draw had put it, and the draw of all others is still unseen. Who was
let in as an audience was not drawn at all, and is not counted either.

Beside it, for limits that hold alone, the `last_minutes` of each arm, event by event.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead.metrics import Metric
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.last_minutes import LastMinutes, Recent
from fairlead.rollout.plan import Guardrail, RolloutPlan

if TYPE_CHECKING:
    from fairlead.statistics import CumulativeCounts

__all__ = ["ArmSeen", "Tally"]

_DIGITS = 3
"""Significant digits that values are counted with: some 900 different ones a decade, and 0.5 % at most."""
_ORDERED = ("quantile", "maximum")
_BY_AUDIENCE = "TARGETING_MATCH"
"""Reason of an exposure after which the unit's arm was not left to chance."""


@dataclass(slots=True)
class ArmSeen:
    """One arm in one stage, for one metric."""

    units: int = 0
    """Units with an event that counts."""
    bad: int = 0
    """Of a proportion: units whose first success (as the metric calls it) fell into this stage. Of a quantile: units
    whose value lay beyond control's quantile of the moment before."""
    values: Counter[float] = field(default_factory=Counter)
    """Of a quantile or mean: how often each value was a unit's first, to three digits; +inf for what never came."""

    def counts(self) -> CumulativeCounts:
        """The values as `statistics` takes them. They are exact: both arms are rounded alike."""
        import numpy as np

        from fairlead.statistics import CumulativeCounts

        edges = np.array(sorted(self.values), dtype=np.float64)
        counts = np.array([self.values[edge] for edge in edges.tolist()], dtype=np.int64)
        return CumulativeCounts(edges=edges, at_or_below=np.cumsum(counts), exact=True)


@dataclass(slots=True)
class _Watched:
    """One metric: how its events are read, and what was seen of it."""

    metric: Metric
    beside: bool
    """Whether it is compared with control; an absolute limit asks for the last minutes only."""
    read: Callable[[Mapping[str, object]], tuple[bool, float] | None]
    arms: dict[str, ArmSeen]
    failed: dict[str, bool] = field(default_factory=dict)
    """Units that had their bad event, in whichever arm, and whether it fell into this stage."""
    met: dict[str, str] = field(default_factory=dict)
    """Units that were counted in this stage, and in which arm."""
    first: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    """Of a quantile or mean: first values of units that the next look will count: when, what, and in
    which arm."""
    exceedances: Exceedances | None = None
    """Of a quantile beside control."""
    recent: dict[str, LastMinutes] = field(default_factory=dict)
    """By arm; of a limit that stands alone."""


class Tally:
    """Counts the events of one rollout. Not thread-safe.

    Memory: some 200 bytes for each unit that was seen in the stage, for each that ever failed, and for each that was
    exposed to the flag; and as much again, until the next look, for each whose first value of the stage came since.
    """

    def __init__(self, plan: RolloutPlan, *, since_utc_seconds: float = -math.inf) -> None:
        """since_utc_seconds: when the rollout began; what happened before it does not count at all."""
        self._plan = plan
        self._since = since_utc_seconds
        self._arms = (plan.control, plan.treatment)
        self._watched = {
            guardrail.name: _Watched(
                guardrail.metric,
                guardrail.is_relative,
                reader_of(guardrail.metric),
                {arm: ArmSeen() for arm in self._arms},
                recent={}
                if guardrail.is_relative
                else {arm: LastMinutes(guardrail.metric) for arm in self._arms},
                exceedances=self._no_exceedances(guardrail.metric) if guardrail.is_relative else None,
            )
            for guardrail in plan.guardrails
        }
        self._kinds = {guardrail.metric.event for guardrail in plan.guardrails}
        self._asking = [
            each.recent
            for each in self._watched.values()
            if any(one.asks_who_reports for one in each.recent.values())
        ]
        self._variant: dict[str, str] = {}
        self._audience: set[str] = set()
        self._units: dict[str, str] = {}
        self._began = -math.inf
        self.unattributed = 0
        """Events that named no unit, or a unit whose arm is not known."""
        self.crossed = 0
        """Units that met both arms within one stage: they stay where they were counted first."""
        self.events: Counter[str] = Counter()
        """By arm, events of any metric so far: whether an arm reports at all."""
        self.newest_utc_seconds = -math.inf
        """Of the newest event, as the services' clocks say."""

    def _no_exceedances(self, metric: Metric) -> Exceedances | None:
        return Exceedances(metric, look_every=self._plan.look_every) if metric.kind == "quantile" else None

    def begin(self, at_utc_seconds: float) -> None:
        """A new stage: of events before this moment only remains which units failed."""
        self._began = at_utc_seconds
        self._units = {}
        self.crossed = 0
        for each in self._watched.values():
            each.arms = {arm: ArmSeen() for arm in self._arms}
            each.met, each.first = {}, {}
            each.exceedances = self._no_exceedances(each.metric) if each.beside else None
            each.failed = dict.fromkeys(each.failed, False)

    def set_back(self, seconds: float) -> None:
        """The clock that gave the beginnings was moved back: events are stamped earlier from now on."""
        self._since -= seconds
        self._began -= seconds

    def see(self, kind: str, event: Mapping[str, object]) -> None:
        """Takes one event, in any order; `kind` as its line names it. What no guardrail asks for is passed over.

        The arm is the event's own `variant`; where it has none, that of the unit's last exposure, which therefore has
        to come first.
        """
        if kind == "exposure":
            if event.get("flag") == self._plan.flag and (unit := event.get("targeting_key")):
                self._expose(str(unit), event)
            return
        if kind not in self._kinds:
            return
        at = event.get("at_utc_seconds")
        if not isinstance(at, int | float) or not math.isfinite(at):
            self.unattributed += 1
            return
        if at < self._since:
            return
        first = True
        for each in self._watched.values():
            if each.metric.event == kind:
                self._count(each, event, float(at), first)
                first = False

    def _expose(self, unit: str, event: Mapping[str, object]) -> None:
        variant = event.get("variant")
        # The plan's own string: a copy a unit would be most of the memory.
        self._variant[unit] = next((arm for arm in self._arms if arm == variant), "")
        if event.get("reason") == _BY_AUDIENCE:
            self._audience.add(unit)
        else:
            self._audience.discard(unit)

    def arms(self, guardrail: Guardrail) -> tuple[ArmSeen, ArmSeen]:
        """Control and treatment in this stage, as of this look: what is told later, comes after it."""
        each = self._watched[guardrail.name]
        for unit, (at, value, arm) in each.first.items():
            each.met[unit] = arm
            self._add(each, arm, at, False, value)
        each.first = {}
        control, treatment = each.arms[self._plan.control], each.arms[self._plan.treatment]
        if each.exceedances is not None:
            control.bad, treatment.bad = each.exceedances.counts()
        return control, treatment

    def units(self) -> dict[str, int]:
        """Units by arm that had any event in this stage; what the sample ratio is tested on."""
        found = Counter(self._units.values())
        return {arm: found[arm] for arm in self._arms}

    def recent(self, guardrail: Guardrail, arm: str, until: float, window: float) -> Recent:
        """The metric over the last `window` seconds before `until`, every event of the arm alike."""
        return self._watched[guardrail.name].recent[arm].figure(until, window)

    def _count(self, each: _Watched, event: Mapping[str, object], at: float, first: bool) -> None:
        named = event.get(each.metric.unit_field or "targeting_key")
        unit = str(named) if named else ""
        arm = event.get("variant") or self._variant.get(unit)
        if not isinstance(arm, str) or arm not in each.arms:
            self.unattributed += first
            return
        if first:
            self.events[arm] += 1
            self.newest_utc_seconds = max(self.newest_utc_seconds, at)
            for recent in self._asking:
                recent[arm].reported(at)
        found = each.read(event)
        if found is None:
            return
        success, value = found
        if not each.beside:
            kept = event.get("inclusion_probability", 1.0)
            weight = 1 / kept if isinstance(kept, int | float) and 1e-9 <= kept <= 1 else 1.0
            near = rounded(value) if each.metric.kind in _ORDERED else value
            each.recent[arm].keep(at, success, near, weight)
        if unit in self._audience:
            return
        if not unit:
            # No unit is named: the event stands for itself.
            if at >= self._began:
                self._add(each, arm, at, success, value)
            return
        if at < self._began:
            if success and each.metric.kind == "proportion":
                self._failed_before(each, unit)
            return
        if self._units.setdefault(unit, arm) != arm:
            self.crossed += first
        if not each.beside:
            return
        if each.metric.kind != "proportion":
            if unit not in each.met:
                told = (at, value, arm)
                each.first[unit] = min(told, each.first.get(unit, told))
        elif unit not in each.failed:
            if unit not in each.met:
                each.met[unit] = arm
                each.arms[arm].units += 1
            if success:
                each.failed[unit] = True
                each.arms[each.met[unit]].bad += 1

    def _failed_before(self, each: _Watched, unit: str) -> None:
        """It failed before this stage, whenever that is told: so it is none of this stage's units."""
        arm = each.met.pop(unit, None)
        if arm is not None:
            each.arms[arm].units -= 1
            each.arms[arm].bad -= each.failed.get(unit, False)
        each.failed[unit] = False

    def _add(self, each: _Watched, arm: str, at: float, success: bool, value: float) -> None:
        seen = each.arms[arm]
        seen.units += 1
        if each.metric.kind == "proportion":
            seen.bad += success
            return
        near = rounded(value)
        seen.values[near] += 1
        if each.exceedances is not None:
            each.exceedances.add(at, arm == self._plan.treatment, near)


def rounded(value: float) -> float:
    """To three significant digits; +inf for what is no finite number."""
    return float(f"{value:.{_DIGITS - 1}e}") if math.isfinite(value) else math.inf


def reader_of(metric: Metric) -> Callable[[Mapping[str, object]], tuple[bool, float] | None]:
    """From an event to (success, value); None where it does not count."""
    where, success, name = metric.condition, metric.success, metric.field
    ordered = metric.kind in _ORDERED

    def read(event: Mapping[str, object]) -> tuple[bool, float] | None:
        if where is not None and where.holds(event) is not True:
            return None
        if success is not None:
            holds = success.holds(event)
            return None if holds is None else (holds, 1.0 if holds else 0.0)
        if name is None:
            return False, 1.0
        value = event.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            number = float(value)
        except OverflowError:
            number = math.inf if value > 0 else -math.inf
        # +inf is what never came, and among the slowest; the mean of it is no figure.
        if math.isnan(number) or number == -math.inf or (number == math.inf and not ordered):
            return None
        return False, number

    return read
