"""What one page of the home feed costs its own process: processor time, loads begun, calls to downstreams.

An arm that saves its downstreams work may spend more in its own process than it saves, and where that process is what
runs out, it carries less. So both arms get the same rate of Poisson load, far below what either carries, in turns; a
figure is the median over the turns of an arm, beside the least and the most of them.

Processor time is that of the feed's process with all its threads, as the kernel counts it, over the pages answered.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from bench.home_feed_capacity import drive_arm, started
from fairlead.lab import Ending, Schedule, Zipf
from fairlead.trial import Arm
from fairlead.trial.machine import this_machine
from fairlead_systems.home_feed.system import ALPHA, HomeFeedRunning
from fairlead_systems.home_feed.world import TOPICS, USERS

__all__ = ["table"]

RATE = 120.0
TURNS, SECONDS = 8, 6.0
_LOADS = 'fairlead_cache_total{cache="feed",what="loads"}'


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One arm's figures per answered page."""

    cpu_milliseconds: float
    loads: float
    calls: float


async def measure(*, rate: float = RATE, turns: int = TURNS, seed: int = 1) -> dict[str, list[Turn]]:
    """`turns` turns of each arm, which take turns, against the same started processes."""
    found: dict[str, list[Turn]] = {}
    with tempfile.TemporaryDirectory() as directory:
        async with started(Path(directory), seed) as (running, arms), aiohttp.ClientSession() as session:
            for number in range(turns):
                for arm in arms if number % 2 else arms[::-1]:
                    turn = await _turn(running, arm, rate, np.random.default_rng([seed, number]), session)
                    found.setdefault(arm.name, []).append(turn)
    return found


async def _turn(
    running: HomeFeedRunning,
    arm: Arm,
    rate: float,
    rng: np.random.Generator,
    session: aiohttp.ClientSession,
) -> Turn:
    schedule = Schedule.poisson(
        rate=rate, duration=SECONDS + 2.0, popularity=Zipf(TOPICS, ALPHA), users=USERS, rng=rng
    )
    await drive_arm(running, arm, schedule.slice(0.0, 2.0))  # what the other arm's turn has let expire
    await running.observe(arm)
    loads = await _loads(session, running.url(arm))
    samples = await drive_arm(running, arm, schedule.slice(2.0, SECONDS + 2.0))
    seen = await running.observe(arm)
    pages = max(1, samples.count(Ending.OK))
    return Turn(
        cpu_milliseconds=1000 * seen["cpu_seconds"] / pages,
        loads=(await _loads(session, running.url(arm)) - loads) / pages,
        calls=seen["origin_calls"] / pages,
    )


async def _loads(session: aiohttp.ClientSession, url: str) -> float:
    """Loads that the treatment's cache has begun since the start, one a key; control has no such cache."""
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(_LOADS))


def table(*, rate: float = RATE, turns: int = TURNS) -> str:
    """Both arms, each figure as its median and range over the turns."""
    import uvloop

    found = uvloop.run(measure(rate=rate, turns=turns))

    def shown(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = ["| arm | CPU ms a page | keys loaded a page | downstream calls a page |", "|---|---|---|---|"]
    for name, each in found.items():
        cpu, calls = (
            shown([getattr(turn, field) for turn in each]) for field in ("cpu_milliseconds", "calls")
        )
        loads = shown([turn.loads for turn in each]) if any(turn.loads for turn in each) else "–"
        lines.append(f"| {name} | {cpu} | {loads} | {calls} |")
    machine = this_machine()
    lines.append("")
    lines.append(
        f"seed 1, {rate:g}/s, {turns} turns of {SECONDS:g} s an arm, median (least to most); "
        f"{machine.cpu}, {machine.cores:g} cores, Python {machine.python}."
    )
    return "\n".join(lines)
