"""Which stretch of a rollout `experiment analyze` looks at: from the rollout's journal, or as somebody says.

The experiment knows stages and nothing of rollouts; the journal knows what was served when and nothing of experiments.
They meet here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fairlead.change.rollout import rollout_plan
from fairlead.change.sections import ChangeFile
from fairlead.errors import InvalidInput
from fairlead.experiment import ExperimentPlan, Stage
from fairlead.rollout import Journal, SteadyPeriod, steady_periods
from fairlead.store import Database

__all__ = ["Looked", "looked_by_hand", "looked_by_journal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What an analysis looks at."""

    plan: ExperimentPlan
    """With the stages of the rollout, or the shares of the one period."""
    since: float | None = None
    """Seconds since 1970, UTC; None: from the first event on."""
    until: float | None = None
    caveats: tuple[str, ...] = ()
    """What a reader must know of it."""


def looked_by_hand(
    plan: ExperimentPlan, since: str | None, until: str | None, shares: Mapping[str, float]
) -> Looked:
    """One period, and the shares in it where they are not the plan's. Raises InvalidInput."""
    start, end = _seconds(since, "--since"), _seconds(until, "--until")
    if start is not None and end is not None and not start < end:
        raise InvalidInput(f"--until {until}: it is not after --since {since}; give the end of a period")
    if shares:
        plan = replace(plan, shares=dict(shares), treatment_share=None)
    caveats = () if start is None and end is None else (
        "a period that was chosen by hand: what units were served before it is not asked, so those of treatment may "
        "have had it for longer than the period",
    )  # fmt: skip
    return Looked(plan=plan, since=start, until=end, caveats=caveats)


def looked_by_journal(plan: ExperimentPlan, file: ChangeFile, database: Database) -> Looked:
    """The stages of the change's rollouts as their journals have them; everything where none was started.

    Raises what a Database raises. Blocks.
    """
    journals = Journal.all(database, plan.name)
    if file.rollout is None or not journals:
        return Looked(plan=plan)
    rollout = rollout_plan(file)
    periods = [period for period in steady_periods(journals) if period.share > 0]
    kept = [period for period in periods if _length(period) > rollout.settle]
    caveats = []
    if short := len(periods) - len(kept):
        caveats.append(
            f"{short} of {len(periods)} stages were served for less than the {rollout.settle:g} s that traffic has to "
            "settle, and are left out"
        )
    if lost := sum(period.cut_seconds for period in periods):
        caveats.append(
            f"a controller's clock was moved back: {lost:,.0f} s of the journal belong to two stages, and are left out"
        )
    comparing = [period for period in kept if period.share < 1]
    if not comparing:
        return Looked(plan=plan, caveats=tuple(caveats))

    def shares(period: SteadyPeriod) -> dict[str, float]:
        control = {rollout.control: 1 - period.share} if period.share < 1 else {}
        return {**control, rollout.treatment: period.share}

    if comparing == kept[:1]:
        one = comparing[0]
        return Looked(
            plan=replace(plan, shares=shares(one), treatment_share=None),
            since=one.began_utc_seconds + rollout.settle,
            until=one.ended_utc_seconds,
            caveats=tuple(caveats),
        )
    stages = tuple(
        Stage(
            start=period.began_utc_seconds,
            end=period.ended_utc_seconds,
            settle=rollout.settle,
            shares=shares(period),
        )
        for period in kept
    )
    return Looked(plan=replace(plan, stages=stages, treatment_share=None), caveats=tuple(caveats))


def _length(period: SteadyPeriod) -> float:
    end = float("inf") if period.ended_utc_seconds is None else period.ended_utc_seconds
    return end - period.began_utc_seconds


def _seconds(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{option} {text[:40]!r}: write a time such as 2026-11-27T14:00+01:00; without a zone it is UTC"
        ) from error
