"""The highest rate that each arm of the home feed carries: every downstream below 80 % busy, and its callers served.

A rate counts as carried when, over a stretch of Poisson load,

    no downstream's workers were busy for 80 % of their time or more, and
    at least 99 % of the requests were answered within the client's patience

The second is what a team would see first: an arm whose own process is out of processor has idle downstreams, and
carries nothing. How the rates are chosen: rate_search.py.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import Bar
from bench.rate_search import Search, search_in_turns
from fairlead.lab import Ending, Samples, Schedule, Zipf, drive
from fairlead.trial import Arm, Settings
from fairlead.trial.machine import this_machine
from fairlead.trial.walk import HEADERS
from fairlead_systems.home_feed.system import ALPHA, PATIENCE, HomeFeedRunning, make_plan, start
from fairlead_systems.home_feed.world import TOPICS, USERS

__all__ = ["bar", "drive_arm", "started", "table"]

BUSY = 0.8
ANSWERED = 0.99
TOLERANCE = 1.1
"""Ratio of the rates between which the answer lies when the search ends."""
LOWEST, HIGHEST = 20.0, 1_000.0
MAX_LAG = 0.010
"""Seconds; where the engine itself sends later than this, p99, a rate is not judged but counted as not carried."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    rate: float
    busiest: float
    answered: float
    lag: float

    @property
    def carried(self) -> bool:
        return self.busiest < BUSY and self.answered >= ANSWERED and self.lag <= MAX_LAG

    @property
    def limit(self) -> str:
        """What stood in the way."""
        if self.busiest >= BUSY:
            return f"a downstream {self.busiest:.0%} busy"
        if self.answered < ANSWERED:
            return f"{1 - self.answered:.1%} not answered in time"
        return f"the load engine {self.lag * 1000:.0f} ms late: no processor left"


async def search(*, quick: bool, seed: int = 1) -> dict[str, Search[Tried]]:
    """The searches of both arms, against the same started processes."""
    seconds = 3.0 if quick else 10.0
    with tempfile.TemporaryDirectory() as directory:
        async with started(Path(directory), seed) as (running, arms):
            by_name = {arm.name: arm for arm in arms}

            async def judge(name: str, rate: float, number: int) -> Tried:
                return await _try(running, by_name[name], rate, seconds, [seed, number])

            return await search_in_turns(by_name, judge, lowest=LOWEST, highest=HIGHEST, tolerance=TOLERANCE)


@asynccontextmanager
async def started(directory: Path, seed: int) -> AsyncIterator[tuple[HomeFeedRunning, tuple[Arm, ...]]]:
    settings = Settings(seed=seed)
    plan = make_plan(settings)
    async with start(plan, settings, directory) as running:
        yield running, plan.arms


async def _try(running: HomeFeedRunning, arm: Arm, rate: float, seconds: float, seed: list[int]) -> Tried:
    rng = np.random.default_rng(seed)
    schedule = Schedule.poisson(
        rate=rate, duration=seconds + 1.0, popularity=Zipf(TOPICS, ALPHA), users=USERS, rng=rng
    )
    warm, measured = schedule.slice(0.0, 1.0), schedule.slice(1.0, seconds + 1.0)
    await drive_arm(running, arm, warm)
    await running.observe(arm)
    samples = await drive_arm(running, arm, measured)
    seen = await running.observe(arm)
    await asyncio.sleep(PATIENCE)  # what a downstream still does for callers who left
    await running.observe(arm)
    return Tried(
        rate=rate,
        busiest=seen["busiest"],
        answered=samples.count(Ending.OK) / max(1, len(samples)),
        lag=samples.lag_p99,
    )


async def drive_arm(running: HomeFeedRunning, arm: Arm, schedule: Schedule) -> Samples:
    return await drive(
        schedule,
        running.paths(schedule).__getitem__,
        base_url=running.url(arm),
        timeout=PATIENCE,
        max_in_flight=5_000,
        read_headers=HEADERS,
    )


def table(*, quick: bool) -> str:
    """Both arms, what they carried and what stood in the way, and every rate that was tried."""
    import uvloop

    found = uvloop.run(search(quick=quick))
    lines = ["| arm | carries | not carried | because |", "|---|---|---|---|"]
    for name, each in found.items():
        lines.append(f"| {name} | {each.carried:.0f}/s | {each.refused:.0f}/s | {each.why} |")
    lines += [
        "",
        "| arm | rate | busiest downstream | answered in time | send lag p99 |",
        "|---|---|---|---|---|",
    ]
    for name, each in found.items():
        lines += [
            f"| {name} | {tried.rate:.0f}/s | {tried.busiest:.0%} | {tried.answered:.2%} | {tried.lag * 1000:.1f} ms |"
            for tried in sorted(each.tried, key=lambda tried: tried.rate)
        ]
    machine = this_machine()
    lines.append("")
    lines.append(
        f"seed 1, {3 if quick else 10} s a rate, between {LOWEST:g} and {HIGHEST:g}/s, tolerance {TOLERANCE:g}×; "
        f"{machine.cpu}, {machine.cores:g} cores, Python {machine.python}."
    )
    return "\n".join(lines)


def bar(*, quick: bool) -> Bar:
    """The rate that treatment carries over that of control."""
    import uvloop

    found = uvloop.run(search(quick=quick))
    control, treatment = found["control"], found["treatment"]
    return Bar(
        what="home feed, highest rate with downstreams below 80 % busy and 99 % answered, treatment over control",
        value=treatment.carried / control.carried,
        limit=2.8,
        at_most=False,
        unit="×",
        n=len(control.tried) + len(treatment.tried),
        note=f"control {control.carried:.0f}/s ({control.why}), treatment {treatment.carried:.0f}/s ({treatment.why}); "
        f"within {TOLERANCE:g}×; service, load and downstreams share the machine",
        figures={"control_per_second": control.carried, "treatment_per_second": treatment.carried},
    )
