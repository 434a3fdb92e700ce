"""What has happened to the units of both arms since the stage began: the only thing guardrails beside control look at.

Units are what was randomised, so units are what is counted; a thousand errors of one broken phone are one unit:

    proportion       units whose first bad event *of the rollout* fell into this stage, of those without one before
    quantile, mean   one value a unit and stage: that of its first event; of a quantile, also whether it lay beyond
                     control's of the moment before (`exceedances`)

A unit that failed once is not counted again in a later stage, in either arm. That is what lets the evidence of stages
multiply: who has failed already, failed where the draw had put it, and the draw of all others is still unseen. Who was
let in as an audience was not drawn at all, and is not counted either.

Beside it, for limits that hold alone, the last minutes of treatment, event by event, each with its weight (1 / the
probability with which it was kept).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fairlead.metrics import Metric
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.plan import Guardrail, RolloutPlan

if TYPE_CHECKING:
    from fairlead.statistics import CumulativeCounts

__all__ = ["ArmSeen", "Recent", "Tally"]

_DIGITS = 3
"""Significant digits that values are counted with: some 900 different ones a decade, and 0.5 % at most."""
_MOST_SLICES = 4 * 3600
_AHEAD = 3600
"""Seconds that an event's clock may be ahead; what is further ahead is no figure of the last minutes."""
_NONE_IS_ZERO = ("rate", "count")
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


@dataclass(frozen=True, slots=True)
class Recent:
    """A figure of one arm over the last seconds, every event alike."""

    value: float | None
    """None without events; a rate or count is 0 then, where the arm told anything at all."""
    n: int
    """Events. Of a share of events that were not all kept alike: as many as, all alike, would say as much."""


@dataclass(slots=True)
class _Slice:
    n: int = 0
    """Events."""
    weight: float = 0.0
    squares: float = 0.0
    """Of the weights."""
    bad: float = 0.0
    bad_squares: float = 0.0
    total: float = 0.0
    values: dict[float, float] = field(default_factory=dict)


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
    recent: dict[str, dict[int, _Slice]] = field(default_factory=dict)
    """By arm and second."""


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
                recent={arm: {} for arm in self._arms},
                exceedances=self._no_exceedances(guardrail.metric) if guardrail.is_relative else None,
            )
            for guardrail in plan.guardrails
        }
        self._kinds = {guardrail.metric.event for guardrail in plan.guardrails}
        self._reported: dict[str, dict[int, None]] | None = None
        """By arm, seconds of which it told anything; where somebody counts what may not happen at all."""
        if any(not each.beside and each.metric.kind in _NONE_IS_ZERO for each in self._watched.values()):
            self._reported = {arm: {} for arm in self._arms}
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
        each = self._watched[guardrail.name]
        seconds = each.recent[arm]
        _leave_out_ahead(seconds, until)
        wanted = range(math.ceil(until - window), math.ceil(until))
        slices = [one for second in wanted if (one := seconds.get(second)) is not None]
        n = sum(one.n for one in slices)
        kind = each.metric.kind
        if not n and kind in _NONE_IS_ZERO and self._reported is not None:
            _leave_out_ahead(self._reported[arm], until)
            return Recent(0.0 if any(second in self._reported[arm] for second in wanted) else None, 0)
        if not n:
            return Recent(None, 0)
        weight = math.fsum(one.weight for one in slices)
        if kind == "proportion":
            return _share(slices, weight, n)
        if kind in ("rate", "count"):
            return Recent(weight / window if kind == "rate" else weight, n)
        if kind == "mean":
            return Recent(sum(one.total for one in slices) / weight, n)
        if kind not in ("quantile", "maximum"):
            return Recent(None, 0)  # a ratio or a total is no figure of single events; it takes a reading
        values: dict[float, float] = {}
        for one in slices:
            for value, count in one.values.items():
                values[value] = values.get(value, 0.0) + count
        rank = weight if each.metric.q is None else weight * each.metric.q * (1 - 1e-15)
        ordered = sorted(values)
        if kind == "quantile":
            for value in ordered:
                rank -= values[value]
                if rank <= weight * 1e-12:
                    return Recent(value, n)
        return Recent(ordered[-1], n)

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
            if self._reported is not None:
                self._reported[arm][math.floor(at)] = None
                _make_room(self._reported[arm])
        found = each.read(event)
        if found is None:
            return
        success, value = found
        if not each.beside:
            self._keep(each, arm, event, at, success, value)
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

    def _keep(
        self,
        each: _Watched,
        arm: str,
        event: Mapping[str, object],
        at: float,
        success: bool,
        value: float,
    ) -> None:
        kept = event.get("inclusion_probability", 1.0)
        weight = 1 / kept if isinstance(kept, int | float) and 1e-9 <= kept <= 1 else 1.0
        slices = each.recent[arm]
        one = slices.get(second := math.floor(at))
        if one is None:
            one = slices[second] = _Slice()
            _make_room(slices)
        one.n += 1
        one.weight += weight
        one.squares += weight * weight
        if success:
            one.bad += weight
            one.bad_squares += weight * weight
        if math.isfinite(value):
            one.total += weight * value
        if each.metric.kind in ("quantile", "maximum"):
            near = rounded(value)
            one.values[near] = one.values.get(near, 0.0) + weight


def _make_room(seconds: dict[int, Any]) -> None:
    if len(seconds) > _MOST_SLICES:
        for old in sorted(seconds)[: _MOST_SLICES // 4]:
            del seconds[old]


def _leave_out_ahead(seconds: dict[int, Any], until: float) -> None:
    """A clock that is wrong, or was until now, would keep the right seconds out."""
    if seconds and max(seconds) >= until + _AHEAD:
        for second in [second for second in seconds if second >= until + _AHEAD]:
            del seconds[second]


def _share(slices: Sequence[_Slice], weight: float, n: int) -> Recent:
    """Failures are never sampled: twenty beside two hundred successes that stand for 20,000 are twenty of 20,000.

    So `n` is p·(1 − p) over the variance of the weighted share, a ratio of two estimated totals (delta method).
    """
    share = math.fsum(one.bad for one in slices) / weight
    bad = math.fsum(one.bad_squares for one in slices)
    good = math.fsum(one.squares for one in slices) - bad
    variance = ((1 - share) ** 2 * bad + share**2 * good) / weight**2
    alike = share * (1 - share) / variance if variance > 0 else 0.0
    return Recent(share, round(alike) if alike >= 1 else n)


def rounded(value: float) -> float:
    """To three significant digits; +inf for what is no finite number."""
    return float(f"{value:.{_DIGITS - 1}e}") if math.isfinite(value) else math.inf


def reader_of(metric: Metric) -> Callable[[Mapping[str, object]], tuple[bool, float] | None]:
    """From an event to (success, value); None where it does not count."""
    where, success, name = metric.condition, metric.success, metric.field
    ordered = metric.kind in ("quantile", "maximum")

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
