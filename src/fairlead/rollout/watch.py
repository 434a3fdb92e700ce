"""What one look at a stage sees: both arms' figures, each guardrail's verdict, who is silent, how long it was guarded.

    gather events, take readings → tally of the stage → evaluations, sample ratio, silence → Look

Whatever breaks here is a reason of INCONCLUSIVE and never an exception: the guard has to go on. Nothing is waited for
longer than the plan's `settle`. After a restart the tally is shown all events again; for how long a limit has been
broken, and a stage guarded, the state says.
"""

from __future__ import annotations

import asyncio
import math

from msgspec.structs import replace

from fairlead.clock import Clock
from fairlead.metrics import Reading
from fairlead.rollout.entry import one_line
from fairlead.rollout.facts import Facts
from fairlead.rollout.guardrail import Evaluation, evaluate_beside_control, evaluate_limit, is_beyond
from fairlead.rollout.judgement import SAMPLE_RATIO_ALPHA, Look
from fairlead.rollout.plan import Guardrail, RolloutPlan, Stage
from fairlead.rollout.state import RolloutState
from fairlead.rollout.tally import Tally

__all__ = ["Watch"]

_RECENT = 60.0
"""Seconds that a figure for an absolute limit covers, at most."""
_EXPECTED = 20.0
"""Events that treatment should have had since its last one before it counts as silent: e^-20 by chance."""
_UNITS = 10_000
"""Of a split whose size nobody knows beforehand: what its test is tuned for."""
_WARM_UP = 10.0
"""Seconds at most after a stage is first served in which it does not count: processes pick a flag up one by one."""
_JUMP = 1.0
"""Seconds that the wall clock may fall behind before it counts as moved back."""


class Watch:
    """Looks at the stages of one rollout, one look at a time."""

    def __init__(self, plan: RolloutPlan, facts: Facts, *, clock: Clock) -> None:
        self._plan = plan
        self._facts = facts
        self._clock = clock
        self._tally: Tally | None = None
        self._tally_stage = -1
        self._guarded_since = 0.0
        self._seen_at = 0.0
        self._utc_offset = 0.0
        self._beyond: dict[str, float] = {}
        self._last_event = (-1, 0.0)
        self._last_treated = (-1, 0.0, 0)

    async def look(self, state: RolloutState) -> Look:
        """What there is to see of the state's stage, which is served."""
        stage = self._plan.stages[state.stage]
        tally = self._tally_of(state)
        problem, readings = await asyncio.gather(self._gathered(tally), self._readings())
        now = self._clock.now()
        units = tally.units()
        ratio = self._sample_ratio(stage, units)
        evaluations = [
            found
            for guardrail in self._plan.guardrails
            if (found := self._evaluated(guardrail, state, tally, ratio, problem, readings)) is not None
        ]
        silent = self._silent(stage, tally, now)
        if not self._is_blind(evaluations):
            self._seen_at = now
        guarded = state.guarded_seconds
        # A pause bakes nothing, and so nothing runs out by the time that it ends.
        if self._seen_at == now and not silent and not state.paused:
            # A controller that was stopped for an hour has not guarded for an hour.
            most = max(3 * self._plan.look_every, self._plan.stale_after)
            guarded += min(max(0.0, now - self._guarded_since), most)
        self._guarded_since = now
        return Look(
            evaluations=tuple(evaluations),
            guarded_seconds=guarded,
            units=units if stage.compares else {},
            sample_ratio_p=ratio,
            silent=silent,
            blind_seconds=now - self._seen_at,
        )

    def _tally_of(self, state: RolloutState) -> Tally:
        """The tally of this stage. After a restart it is shown everything again, and keeps what belongs here."""
        offset = self._clock.utc() - self._clock.now()
        if self._tally is None:
            # Stamps that are yet to come were written before the clock was moved back.
            self._tally = Tally(
                self._plan, since_utc_seconds=min(state.started_utc_seconds, self._clock.utc())
            )
            self._utc_offset = offset
            for each in state.evaluations:  # what was beyond its limit when the one before stopped looking
                if each.reason in ("beyond_limit", "control_unhealthy"):
                    self._beyond[each.guardrail] = self._clock.now() - each.beyond_seconds
        elif self._tally_stage != state.stage:
            self._beyond.clear()
        if offset < self._utc_offset - _JUMP:
            self._tally.set_back(self._utc_offset - offset)
            self._utc_offset = offset
        self._utc_offset = max(self._utc_offset, offset)
        if self._tally_stage != state.stage:
            assert state.stage_began_utc_seconds is not None  # noqa: S101 - it is served
            warm_up = min(_WARM_UP, self._plan.look_every)
            self._tally.begin(min(state.stage_began_utc_seconds + warm_up, self._clock.utc() + warm_up))
            self._tally_stage = state.stage
            self._guarded_since = self._seen_at = self._clock.now()
            self._last_event, self._last_treated = (-1, 0.0), (-1, 0.0, 0)
        return self._tally

    async def _gathered(self, tally: Tally) -> str:
        """Shows the tally what is new; returns what went wrong, empty when nothing did."""
        try:
            async with asyncio.timeout(self._plan.settle):
                await self._facts.gather(tally)
        except TimeoutError:
            return f"events were not read to their end within {self._plan.settle:g} s"
        except Exception as error:  # a source that breaks is a reason, and must not end the guard
            return said(error)
        return ""

    async def _readings(self) -> dict[str, Reading | None]:
        """The live readings, by guardrail, all at once: the slowest is waited for, and no longer than `settle`."""
        limits = [each for each in self._plan.guardrails if not each.is_relative]
        found = await asyncio.gather(*(self._reading(each) for each in limits))
        return {each.name: reading for each, reading in zip(limits, found, strict=True)}

    async def _reading(self, guardrail: Guardrail) -> Reading | None:
        try:
            async with asyncio.timeout(self._plan.settle):
                return await self._facts.read(guardrail)
        except TimeoutError:
            detail = f"no answer within {self._plan.settle:g} s"
        except Exception as error:  # a source that breaks is a reason
            detail = said(error)
        return Reading(value=None, reason="query_error", detail=detail)

    def _is_blind(self, evaluations: list[Evaluation]) -> bool:
        """Whether no guardrail has a figure. Where events are counted, arms without any are told by their silence."""
        blind = {"query_error", "stale"} if self._facts.names_units else {"query_error", "stale", "no_data"}
        return bool(evaluations) and all(each.reason in blind for each in evaluations)

    def _evaluated(
        self,
        guardrail: Guardrail,
        state: RolloutState,
        tally: Tally,
        ratio: float | None,
        problem: str,
        readings: dict[str, Reading | None],
    ) -> Evaluation | None:
        try:
            if guardrail.is_relative:
                return self._beside_control(guardrail, state, tally, ratio, problem)
            stage = self._plan.stages[state.stage]
            return self._limit(guardrail, stage, tally, problem, readings[guardrail.name])
        except Exception as error:  # figures that cannot be judged are a reason, and must not end the guard
            return Evaluation(
                guardrail=guardrail.name, verdict="INCONCLUSIVE", reason="query_error", detail=said(error)
            )

    def _beside_control(
        self, guardrail: Guardrail, state: RolloutState, tally: Tally, ratio: float | None, problem: str
    ) -> Evaluation | None:
        stage = self._plan.stages[state.stage]
        if not stage.compares:
            return None
        if problem or not self._facts.names_units:
            detail = problem or "nothing counts by unit here; use an absolute limit"
            return Evaluation(
                guardrail=guardrail.name, verdict="INCONCLUSIVE", reason="query_error", detail=detail
            )
        control, treatment = tally.arms(guardrail)
        found = evaluate_beside_control(
            self._plan,
            guardrail,
            control,
            treatment,
            share=stage.share,
            past=state.log_e_values.get(guardrail.name, ()),
            tuned_for=self._expected_units(stage),
        )
        if ratio is not None and ratio < SAMPLE_RATIO_ALPHA and found.verdict != "INCONCLUSIVE":
            return replace(
                found, verdict="INCONCLUSIVE", reason="sample_ratio", detail="the split is not as planned"
            )
        return found

    def _limit(
        self, guardrail: Guardrail, stage: Stage, tally: Tally, problem: str, reading: Reading | None
    ) -> Evaluation | None:
        now = self._clock.now()
        value: float | None
        control: float | None = None
        n = n_control = 0
        query = f"{guardrail.metric.definition()}; {self._plan.treatment}"
        reason: object = "query_error" if problem else ""
        nobody = not stage.share and not stage.audience
        if nobody and (reading is None or reading.reason == "no_data"):
            return None  # is served treatment
        if reading is not None:
            value, query = reading.value, reading.query
            n = max(1, round(reading.n)) if reading.n and 0 < reading.n < math.inf else 0
            reason, problem = reading.reason or "", one_line(reading.detail)
        elif problem:
            value = None
        else:
            # The newest events are a little old: asked for up to now, the last second would always be half empty.
            window = max(self._plan.look_every, min(_RECENT, guardrail.for_seconds))
            until = math.floor(self._clock.utc()) + 1.0
            recent = tally.recent(guardrail, self._plan.treatment, until, window)
            beside = tally.recent(guardrail, self._plan.control, until, window)
            value, n, control, n_control = recent.value, recent.n, beside.value, beside.n
            query += f", the last {window:g} s"
            if value is None and tally.units()[self._plan.treatment]:
                # At 1 % of a quiet service a minute without an event says little; an arm that is silent is told apart.
                reason, problem = "waiting", f"no event in the last {window:g} s"
        if value is not None and (math.isnan(value) or value == -math.inf):
            value = None
        if value is not None and is_beyond(guardrail, value, n):
            self._beyond.setdefault(guardrail.name, now)
        elif value is not None and not is_beyond(guardrail, value):
            # What few events leave open neither begins nor ends it: else no quiet service would ever be beyond a limit.
            self._beyond.pop(guardrail.name, None)
        return evaluate_limit(
            self._plan,
            guardrail,
            value,
            n=n,
            control=control,
            n_control=n_control,
            beyond_since=self._beyond.get(guardrail.name),
            now=now,
            problem=reason,  # type: ignore[arg-type]  # a reading's reasons are among ours
            detail=problem,
            query=query,
        )

    def _sample_ratio(self, stage: Stage, units: dict[str, int]) -> float | None:
        if not stage.compares or not sum(units.values()):
            return None
        from fairlead.statistics import sequential_sample_ratio

        shares = {self._plan.control: 1 - stage.share, self._plan.treatment: stage.share}
        tuned_for = self._expected_units(stage) or _UNITS
        return sequential_sample_ratio([(units, shares)], tuned_for=tuned_for).p_value

    def _expected_units(self, stage: Stage) -> int | None:
        rate = self._plan.expected_rate
        return None if rate is None else max(100, round(rate * stage.bake))

    def _silent(self, stage: Stage, tally: Tally, now: float) -> dict[str, float]:
        """Both arms, if no event of either came for `stale_after`; treatment, if chance allows its silence no more.

        With the seconds since the last event.
        """
        if not self._facts.names_units or not stage.share:
            return {}
        control, treatment = self._plan.control, self._plan.treatment
        total = sum(tally.events.values())
        if total != self._last_event[0]:
            self._last_event = (total, now)
        if (quiet := now - self._last_event[1]) >= self._plan.stale_after:
            return {control: quiet, treatment: quiet}
        count, since, of_control = self._last_treated
        if tally.events[treatment] != count:
            since, of_control = now, tally.events[control]
            self._last_treated = (tally.events[treatment], since, of_control)
        # As many as control has had since, by the shares; at 100 % control has nobody, and all is in the total.
        expected = (tally.events[control] - of_control) * stage.share / max(1 - stage.share, 1e-9)
        if now - since >= self._plan.stale_after and expected >= _EXPECTED:
            return {treatment: now - since}
        return {}


def said(error: BaseException) -> str:
    """What an error says, in one line; its name, where it says nothing."""
    return one_line(str(error)) or type(error).__name__
