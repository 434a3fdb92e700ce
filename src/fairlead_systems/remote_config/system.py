"""Remote configuration as a system that `fairlead try` can play: its processes, load and faults."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import psutil

from fairlead.errors import InvalidInput, NoSpace, ProcessDied
from fairlead.lab import Schedule, Service, Topology, Usage, Zipf
from fairlead.trial import Arm, Phase, Plan, Settings
from fairlead_systems.remote_config.instrument import Window
from fairlead_systems.remote_config.mechanisms import MECHANISMS
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import ConfigTable, TableUnavailable
from fairlead_systems.remote_config.three_services import ROLES, make_databases
from fairlead_systems.remote_config.world import USERS, World

__all__ = [
    "KILLED",
    "PATIENCE",
    "PRIMARY",
    "RemoteConfigRunning",
    "front_of",
    "make_plan",
    "services_of",
    "start",
]

RATE = 100.0
ALPHA = 1.0
PATIENCE = 1.0
PRIMARY = "latency_p50"
"""A phase has some 900 requests: too few for the interval of a p99, and the promise is less work for each answer."""

LEAD_IN, NORMAL, HUNG, INNER_GONE, FRONT_GONE = "lead_in", "normal", "hung", "inner_gone", "front_gone"
BEFORE_HUNG, BEFORE_INNER, BEFORE_FRONT = "before_hung", "before_inner_gone", "before_front_gone"
"""As long as the client's patience and in no figure: a request due in the phase before a fault has ended, one way or
another, before the fault begins."""
KILLED = (INNER_GONE, FRONT_GONE)
"""Phases in which a process is killed, and its counters with it."""
HANG = 1.2
"""Seconds for which the databases hang: longer than the client's patience, so that who waits for them loses."""
GONE = 0.5
"""Seconds before a supervisor starts a crashed process again."""

_SECONDS = {
    LEAD_IN: 1.0,
    NORMAL: 3.0,
    BEFORE_HUNG: PATIENCE,
    HUNG: 2.0,
    BEFORE_INNER: PATIENCE,
    INNER_GONE: 2.5,
    BEFORE_FRONT: PATIENCE,
    FRONT_GONE: 2.5,
}
_QUICK_SECONDS = _SECONDS | {LEAD_IN: 0.5, NORMAL: 1.5, HUNG: 1.5, INNER_GONE: 2.0, FRONT_GONE: 2.0}
_TITLES = {
    LEAD_IN: "start",
    NORMAL: "normal",
    BEFORE_HUNG: "calm",
    HUNG: "database hangs",
    BEFORE_INNER: "calm",
    INNER_GONE: "an inner service crashes, where there is one",
    BEFORE_FRONT: "calm",
    FRONT_GONE: "the front service crashes",
}
_UNMEASURED = (LEAD_IN, BEFORE_HUNG, BEFORE_INNER, BEFORE_FRONT)


def make_plan(settings: Settings) -> Plan:
    known = [mechanism.name for mechanism in MECHANISMS]
    ablate = tuple(known) if "all" in settings.ablate else settings.ablate
    for name in ablate:
        if name not in known:
            raise InvalidInput(f"no mechanism {name[:64]!r} to ablate; there are: {', '.join(known)}, or all")
    if len(set(ablate)) != len(ablate):
        raise InvalidInput(f"ablate: {', '.join(ablate)} names a mechanism twice")
    if settings.redis is not None:
        raise InvalidInput("remote_config has no use for a Redis: leave --redis out")
    arms = [Arm(name="control", variant="three_services"), Arm(name="treatment", variant="one_table")]
    arms += [Arm(name=f"without-{name}", variant="one_table", without=(name,)) for name in ablate]
    rate = settings.rate or RATE
    seconds = _QUICK_SECONDS if settings.quick else _SECONDS
    return Plan(
        arms=tuple(arms),
        phases=tuple(
            Phase(name=name, title=_TITLES[name], seconds=seconds[name], measured=name not in _UNMEASURED)
            for name in seconds
        ),
        cycles=settings.cycles or (1 if settings.quick else 3),
        rate=rate,
        patience=PATIENCE,
        primary=PRIMARY,
        workload={
            "arrivals": f"Poisson, {rate:g}/s",
            "keys": f"{USERS:,} users by Zipf, alpha {ALPHA:g}; {len(PAGE.defaults)} settings a document",
            "faults": (
                f"all databases of the arm hang for {HANG:g} s; then its rules service is killed, where it has one; "
                f"then its front service; each is started again {GONE:g} s later"
            ),
        },
    )


def front_of(arm: Arm) -> str:
    """The process that answers the clients of this arm."""
    return services_of(arm)[-1]


def services_of(arm: Arm) -> tuple[str, ...]:
    """The processes of this arm; the front is the last."""
    if arm.variant == "three_services":
        return tuple(f"{role}-{arm.name}" for role in ROLES)
    return (f"config-{arm.name}",)


class _Events(msgspec.Struct):
    """What a front answers to /lab/events."""

    missing: int
    failure: str


class RemoteConfigRunning:
    """The started processes."""

    def __init__(
        self, plan: Plan, settings: Settings, topology: Topology, session: aiohttp.ClientSession
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._topology = topology
        self._session = session
        self._cpu: dict[str, float] = {}
        self._cpu_of_the_dead: dict[str, float] = {}
        self._outages: set[asyncio.Task[None]] = set()

    def schedule(self, cycle: int) -> Schedule:
        rng = np.random.default_rng([self._settings.seed, cycle])
        popularity = Zipf(USERS, ALPHA)
        return Schedule.concatenate(
            [
                Schedule.poisson(
                    rate=self._plan.rate, duration=phase.seconds, popularity=popularity, users=USERS, rng=rng
                )
                for phase in self._plan.phases
            ]
        )

    def url(self, arm: Arm) -> str:
        return self._topology[front_of(arm)].url

    def paths(self, schedule: Schedule) -> Sequence[str]:
        return [f"/config?user=u{key}" for key in schedule.keys.tolist()]

    async def enter(self, arm: Arm, phase: Phase) -> None:
        if phase.name == HUNG:
            for name in services_of(arm):
                await self._post(name, f"/lab/hang?seconds={HANG}")
        elif phase.name == FRONT_GONE:
            self._begin_outage(front_of(arm))
        elif phase.name == INNER_GONE and len(services_of(arm)) > 1:
            self._begin_outage(services_of(arm)[-2])

    async def observe(self, arm: Arm) -> Mapping[str, float]:
        await self.settle()
        names = services_of(arm)
        windows = [msgspec.json.decode(await self._post(name, "/lab/window"), type=Window) for name in names]
        kept = msgspec.json.decode(await self._post(front_of(arm), "/lab/events"), type=_Events)
        if kept.missing:
            raise NoSpace(
                f"{front_of(arm)} could not keep {kept.missing} events: {kept.failure or 'its buffer is full'}"
            )
        # In a thread: looking through /proc takes longer than the load engine may be late.
        usages, between = await asyncio.to_thread(self._look_at, names)
        cpu = sum(usage.cpu_seconds + self._cpu_of_the_dead.get(name, 0.0) for name, usage in usages.items())
        since, self._cpu[arm.name] = self._cpu.get(arm.name, 0.0), cpu
        return {
            "calls": sum(window.requests for window in windows),
            "queries": sum(window.queries for window in windows),
            "processes": len(names),
            "connections": sum(window.connections for window in windows) + between,
            "cpu_seconds": cpu - since,
            "memory_bytes": sum(usage.rss_bytes for usage in usages.values()),
        }

    async def failure(self) -> None:
        await self._topology.watch()

    async def settle(self) -> None:
        """Waits until every process that was killed is back. Raises ProcessDied for one that is not."""
        while self._outages:
            await asyncio.gather(*self._outages)

    async def close(self) -> None:
        for task in self._outages:
            task.cancel()
        await asyncio.gather(*self._outages, return_exceptions=True)

    def _begin_outage(self, name: str) -> None:
        outage = asyncio.create_task(self._outage(name))
        self._outages.add(outage)
        outage.add_done_callback(self._outages.discard)

    async def _outage(self, name: str) -> None:
        used = (await asyncio.to_thread(self._topology[name].usage)).cpu_seconds
        self._cpu_of_the_dead[name] = self._cpu_of_the_dead.get(name, 0.0) + used
        await self._topology.outage(name, GONE)

    def _look_at(self, names: Sequence[str]) -> tuple[dict[str, Usage], int]:
        """What the processes have used, and how many connections they have opened to one another."""
        ports = {self._topology[name].port for name in names}
        between = sum(
            bool(each.raddr) and each.raddr.port in ports and each.status == psutil.CONN_ESTABLISHED
            for name in names
            for each in psutil.Process(self._topology[name].pid).net_connections(kind="tcp4")
        )
        return {name: self._topology[name].usage() for name in names}, between

    async def _post(self, service: str, path: str) -> bytes:
        running = self._topology[service]
        try:
            async with self._session.post(running.url + path) as response:
                response.raise_for_status()
                return await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ProcessDied(
                f"{service} did not answer POST {path} ({error!r}); see {running.log}"
            ) from error


@asynccontextmanager
async def start(plan: Plan, settings: Settings, directory: Path) -> AsyncIterator[RemoteConfigRunning]:
    """Fills the databases and starts the processes of every arm, all from this Python."""
    data = directory / "data"
    databases = await asyncio.to_thread(_make_data, data, settings.seed)
    services = [
        service for arm in plan.arms for service in _services(arm, settings, databases, data, directory)
    ]
    timeout = aiohttp.ClientTimeout(total=10.0)
    async with (
        Topology(services, log_directory=directory / "logs") as topology,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        running = RemoteConfigRunning(plan, settings, topology, session)
        try:
            yield running
        finally:
            await running.close()


def _make_data(data: Path, seed: int) -> dict[str, str]:
    """The databases of both arms, filled with the same world; their URLs."""
    world = World(seed)
    url = f"sqlite:///{data / 'config'}.db"
    try:
        data.mkdir()
        table = ConfigTable(url, PAGE)
        table.create()
        table.fill(world.changes(), actor="trial")
        table.close()
        return {"config": url, **make_databases(data, world)}
    except (OSError, TableUnavailable) as error:
        raise NoSpace(f"{data}: {error}; make room, or choose another --out") from error


def _services(
    arm: Arm, settings: Settings, databases: Mapping[str, str], data: Path, directory: Path
) -> list[Service]:
    common = ["--lab", "--fd", "{fd}", "--seed", str(settings.seed)]
    front = [f"--instance={front_of(arm)}", f"--events={directory / 'events' / front_of(arm)}"]
    names = services_of(arm)
    if len(names) == 1:
        return [
            Service(
                name=names[0],
                grace=8.0,
                port=settings.port if arm.name == "treatment" else 0,
                argv=[
                    *_module("service"),
                    *common,
                    *front,
                    f"--database={databases['config']}",
                    f"--last-known-good={data / names[0]}.json",
                    *(f"--without={name}" for name in arm.without),
                ],
            )
        ]
    return [
        Service(
            name=name,
            grace=8.0,
            argv=[
                *_module("three_services"),
                role,
                *common,
                f"--database={databases[role]}",
                *([f"--behind={{{names[number - 1]}.url}}"] if number else []),
                *(front if name == names[-1] else []),
            ],
        )
        for number, (role, name) in enumerate(zip(ROLES, names, strict=True))
    ]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"fairlead_systems.remote_config.{name}"]
