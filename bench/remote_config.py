"""Remote configuration: a table of a million rows, the highest rate of each arm, and a user's first interaction.

    python -m bench remote_config            1,000,000 rows on SQLite and PostgreSQL, rates, 60 pages an arm (4 min)
    python -m bench remote_config --quick    50,000 rows, shorter stretches, 15 pages an arm (1 min)

Look-ups are the service's own: the current entries of one user, through its engine, from one process per core. The
users are drawn evenly, so nothing is kept warm by being popular, and a third of them are not in the table.

A rate counts as carried when p99 is at most 50 ms and every request was answered; the load engine runs on the same
cores, so on a machine of its own a service carries more.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bench.harness import Bar
from bench.rate_search import Search, search_in_turns
from fairlead.lab import Ending, Schedule, Zipf, drive
from fairlead.testing import PostgresServer
from fairlead.trial import Settings
from fairlead.trial.walk import HEADERS
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.system import ALPHA, PATIENCE, make_plan, start
from fairlead_systems.remote_config.table import ConfigTable
from fairlead_systems.remote_config.world import USERS, World

__all__ = ["bars"]

CORES = 2
ROWS, ROWS_QUICK, ROWS_FEW = 1_000_000, 50_000, 10_000
SLOW = 0.050
"""Seconds: p99 above which a rate is not carried."""
LOWEST, HIGHEST, TOLERANCE = 50.0, 6_000.0, 1.1
MAX_LAG = 0.010
CHROMIUM = "/usr/bin/chromium"


def bars(quick: bool) -> list[Bar]:
    return [*_look_ups(quick=quick), *_rates(quick=quick), *_first_interactions(quick=quick)]


def _look_ups(*, quick: bool) -> Iterator[Bar]:
    rows = ROWS_QUICK if quick else ROWS
    rounds, seconds = (3, 0.5) if quick else (7, 2.0)
    with tempfile.TemporaryDirectory() as folder, PostgresServer("-c", "shared_buffers=256MB") as server:
        for kind in ("sqlite", "postgres"):
            urls = {}
            for count in (ROWS_FEW, rows):
                if kind == "sqlite":
                    url = f"sqlite:///{folder}/{count}.db"
                else:
                    url = _new_database(server.url, f"rows_{count}")
                urls[count] = url, _fill(url, count)
            taken = _in_turns(urls, rounds=rounds, seconds=seconds)
            ratios = [many / few for many, few in zip(taken[rows], taken[ROWS_FEW], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            yield Bar(
                what=f"remote config, look-ups in {rows:,} rows over those in {ROWS_FEW:,}, {kind}",
                value=statistics.median(ratios),
                limit=0.7,
                at_most=False,
                unit="×",
                n=rounds,
                spread=(low, high),
                note=f"{statistics.median(taken[rows]):,.0f} look-ups/s from {CORES} processes",
                figures={
                    "look_ups_per_second": statistics.median(taken[rows]),
                    f"look_ups_per_second_in_{ROWS_FEW}": statistics.median(taken[ROWS_FEW]),
                },
            )


def _new_database(url: str, name: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # a name of ours
    return url.rsplit("/", 1)[0] + f"/{name}"


def _fill(url: str, rows: int) -> int:
    """Fills a new table; how many users there are."""
    users = 2 * rows  # two of three have an entry
    table = ConfigTable(url, PAGE)
    table.create()
    table.fill(islice(World(1, users=users).changes(), rows), actor="bench")
    with table.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
        last = connection.exec_driver_sql(
            "SELECT subject FROM remote_config WHERE version = (SELECT max(version) FROM remote_config)"
        ).scalar_one()
    table.close()
    return int(str(last).removeprefix("u"))


def _in_turns(urls: dict[int, tuple[str, int]], *, rounds: int, seconds: float) -> dict[int, list[float]]:
    """Look-ups a second of all processes together, per table and round."""
    taken: dict[int, list[float]] = {rows: [] for rows in urls}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=context) as pool:
        for number in range(1 + rounds):
            for rows, (url, users) in urls.items():
                works = [
                    pool.submit(_look_up, url, users, seconds, number * CORES + each) for each in range(CORES)
                ]
                total = sum(work.result() for work in works)
                if number:
                    taken[rows].append(total)
    return taken


_tables: dict[str, ConfigTable] = {}


def _look_up(url: str, users: int, seconds: float, seed: int) -> float:
    """Look-ups a second of this process."""
    table = _tables.setdefault(url, ConfigTable(url, PAGE, connections=1))
    subjects = [f"u{each}" for each in random.Random(seed).choices(range(users), k=20_000)]
    table.read("user", "nobody")
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        table.read("user", subjects[done % len(subjects)])
        done += 1
    return done / (now - began)


@dataclass(frozen=True, kw_only=True)
class Tried:
    rate: float
    p99: float
    answered: float
    lag: float

    @property
    def carried(self) -> bool:
        return self.p99 <= SLOW and self.answered == 1.0 and self.lag <= MAX_LAG

    @property
    def limit(self) -> str:
        if self.answered < 1.0:
            return f"{1 - self.answered:.1%} not answered"
        if self.p99 > SLOW:
            return f"p99 {self.p99 * 1000:.0f} ms"
        return f"the load engine {self.lag * 1000:.0f} ms late: no processor left"


def _rates(*, quick: bool) -> list[Bar]:
    import uvloop

    found = uvloop.run(_search(quick=quick))
    control, treatment = found["control"], found["treatment"]
    return [
        Bar(
            what="remote config, highest rate with p99 at most 50 ms and all answered, treatment over control",
            value=treatment.carried / control.carried,
            limit=2.0,
            at_most=False,
            unit="×",
            n=len(control.tried) + len(treatment.tried),
            note=f"control {control.carried:.0f}/s ({control.why}), treatment {treatment.carried:.0f}/s "
            f"({treatment.why}); within {TOLERANCE:g}×; services and load share {CORES} cores",
            figures={"control_per_second": control.carried, "treatment_per_second": treatment.carried},
        )
    ]


async def _search(*, quick: bool) -> dict[str, Search[Tried]]:
    settings, seconds = Settings(), 2.0 if quick else 8.0
    plan = make_plan(settings)
    arms = {arm.name: arm for arm in plan.arms}
    popularity = Zipf(USERS, ALPHA)
    with tempfile.TemporaryDirectory() as directory:
        async with start(plan, settings, Path(directory)) as running:

            async def judge(name: str, rate: float, number: int) -> Tried:
                schedule = Schedule.poisson(
                    rate=rate,
                    duration=seconds + 1.0,
                    popularity=popularity,
                    users=USERS,
                    rng=np.random.default_rng([1, number]),
                )
                for part in (schedule.slice(0.0, 1.0), schedule.slice(1.0, seconds + 1.0)):
                    samples = await drive(
                        part,
                        running.paths(part).__getitem__,
                        base_url=running.url(arms[name]),
                        timeout=PATIENCE,
                        max_in_flight=5_000,
                        read_headers=HEADERS,
                    )
                await asyncio.sleep(0.5)
                return Tried(
                    rate=rate,
                    p99=float(np.quantile(samples.latency, 0.99)),
                    answered=samples.count(Ending.OK) / max(1, len(samples)),
                    lag=samples.lag_p99,
                )

            return await search_in_turns(arms, judge, lowest=LOWEST, highest=HIGHEST, tolerance=TOLERANCE)


def _first_interactions(*, quick: bool) -> list[Bar]:
    pages = 15 if quick else 60
    ready, interaction = asyncio.run(_open_pages(pages))
    found = []
    for what, taken in (("ready to use", ready), ("first interaction", interaction)):
        control, treatment = taken["control"], taken["treatment"]
        found.append(
            Bar(
                what=f"remote config, {what} in Chromium, median of treatment over that of control",
                value=statistics.median(treatment) / statistics.median(control),
                limit=1.0,
                unit="×",
                n=pages,
                note="an empty browser each time, services idle otherwise; ms, median and p90: "
                + ", ".join(f"{name} {_median_and_p90(each)}" for name, each in taken.items()),
                figures={f"{name}_median_ms": statistics.median(each) for name, each in taken.items()},
            )
        )
    return found


def _median_and_p90(taken: list[float]) -> str:
    return f"{statistics.median(taken):.1f} and {statistics.quantiles(taken, n=10)[-1]:.1f}"


async def _open_pages(pages: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds until the page has its configuration, and from the first click to its answer, by arm."""
    from playwright.async_api import async_playwright

    settings = Settings()
    plan = make_plan(settings)
    rng = random.Random(1)
    ready: dict[str, list[float]] = {arm.name: [] for arm in plan.arms}
    interaction: dict[str, list[float]] = {arm.name: [] for arm in plan.arms}
    with tempfile.TemporaryDirectory() as directory:
        async with start(plan, settings, Path(directory)) as running, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for number in range(-1, pages):
                user = f"u{rng.randrange(USERS)}"
                for arm in rng.sample(plan.arms, len(plan.arms)):
                    context = await browser.new_context()
                    page = await context.new_page()
                    await page.goto(f"{running.url(arm)}/page?user={user}")
                    measured = await (await page.wait_for_function("window.measured")).json_value()
                    await context.close()
                    if number >= 0:  # the first page of each arm warms up the browser and the service
                        ready[arm.name].append(measured["ready_milliseconds"])
                        interaction[arm.name].append(measured["interaction_milliseconds"])
            await browser.close()
    return ready, interaction
