"""The home feed as a system that `fairlead try` can play: its processes, load, faults, figures and targets."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import numpy as np

from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import InvalidInput, NoSpace, ProcessDied
from fairlead.flags import ALGORITHM, SLOTS
from fairlead.lab import Schedule, Service, Surge, Topology, Zipf
from fairlead.telemetry import HistogramSnapshot
from fairlead.trial import Arm, LetOut, Phase, Plan, Settings
from fairlead_systems.home_feed.capacity import KeyWindow, Window
from fairlead_systems.home_feed.mechanisms import FLAG_PREFIX, MECHANISMS
from fairlead_systems.home_feed.one_service import ONE_SERVICE, PLANTED, OneFeed, feed_paths
from fairlead_systems.home_feed.paths import FLAG, REGRESSED
from fairlead_systems.home_feed.redis_proxy import check_redis_url
from fairlead_systems.home_feed.selection import PAGE, SOURCES, TOP
from fairlead_systems.home_feed.world import ITEMS, TOPICS, USERS

__all__ = [
    "DOWNSTREAM_URLS",
    "HOTTEST",
    "STALENESS_OF",
    "USERS_FLAG",
    "HomeFeedRunning",
    "flag_document",
    "make_plan",
    "start",
]

RATE = 80.0
ALPHA = 1.0
VIRAL_FACTOR = 2.5
VIRAL_TOPIC = 7
PATIENCE = 1.0

LEAD_IN, NORMAL, VIRAL, CLEARED, STALLED = "lead_in", "normal", "viral", "cleared", "stalled"
REDIS_HUNG, BEFORE_REDIS_GONE, REDIS_GONE = "redis_hung", "before_redis_gone", "redis_gone"
"""Only with a Redis. Behind the features' stall lies a calm second as well, before the first of them."""
BEFORE_REDIS_HUNG = "before_redis_hung"
BEFORE_CLEARED, BEFORE_STALLED = "before_cleared", "before_stalled"
"""As long as the client's patience and in no figure: a request due in the phase before a fault has ended, one way or
another, before the fault begins."""
STALENESS_OF = "staleness:"
"""Begins the name of a counter of answers by field and histogram bucket: `staleness:popularity:-40`."""
HOTTEST = {NORMAL: 0, VIRAL: VIRAL_TOPIC, CLEARED: 0, STALLED: 0, REDIS_HUNG: 0, REDIS_GONE: 0}
"""The most requested topic of each phase."""

USERS_FLAG = "feed_users"
"""The flag that divides made users, half and half."""

DOWNSTREAMS = (*(f"{source}_source" for source in SOURCES), "label_service", "feature_service")
DOWNSTREAM_URLS = (
    *(f"--{source.replace('_', '-')}={{{source}_source.url}}" for source in SOURCES),
    "--labels={label_service.url}",
    "--features={feature_service.url}",
)
"""What a feed is told of its downstreams, as `Topology` fills it in."""

STALL = 1.2
"""Seconds for which the feature service hangs: longer than the client's patience, so that who waits for it loses."""

_SECONDS = {
    LEAD_IN: 1.0,
    NORMAL: 3.0,
    VIRAL: 2.8,
    BEFORE_CLEARED: PATIENCE,
    CLEARED: 1.6,
    BEFORE_STALLED: PATIENCE,
    STALLED: 2.2,
}
_QUICK_SECONDS = {LEAD_IN: 0.5, NORMAL: 0.8, VIRAL: 0.8, BEFORE_STALLED: PATIENCE, STALLED: 1.5}
_REDIS_SECONDS = {BEFORE_REDIS_HUNG: PATIENCE, REDIS_HUNG: 2.0, BEFORE_REDIS_GONE: PATIENCE, REDIS_GONE: 2.0}
REDIS_FAULT = 1.5
"""Seconds for which the Redis hangs, and for which it is gone."""
_TITLES = {
    LEAD_IN: "start",
    NORMAL: "normal",
    VIRAL: "viral topic",
    BEFORE_CLEARED: "calm",
    CLEARED: "cache cleared",
    BEFORE_STALLED: "calm",
    STALLED: "features stalled",
    BEFORE_REDIS_HUNG: "calm",
    REDIS_HUNG: "Redis hung",
    BEFORE_REDIS_GONE: "calm",
    REDIS_GONE: "Redis gone",
}
_UNMEASURED = (LEAD_IN, BEFORE_CLEARED, BEFORE_STALLED, BEFORE_REDIS_HUNG, BEFORE_REDIS_GONE)


def make_plan(settings: Settings) -> Plan:
    known = {mechanism.name for mechanism in MECHANISMS}
    ablate = (
        tuple(mechanism.name for mechanism in MECHANISMS) if "all" in settings.ablate else settings.ablate
    )
    for name in ablate:
        if name not in known:
            raise InvalidInput(
                f"no mechanism {name[:64]!r} to ablate; there are: {', '.join(sorted(known))}, or all"
            )
    if len(set(ablate)) != len(ablate):
        raise InvalidInput(f"ablate: {', '.join(ablate)} names a mechanism twice")
    arms = [Arm(name="control", variant="control"), Arm(name="treatment", variant="treatment")]
    arms += [Arm(name=f"without-{name}", variant="treatment", without=(name,)) for name in ablate]
    rate = settings.rate or RATE
    seconds = _QUICK_SECONDS if settings.quick else _SECONDS
    if settings.redis is not None:
        check_redis_url(settings.redis)
        seconds = seconds | _REDIS_SECONDS
    cleared = "all caches emptied when the cache-cleared phase begins; " if CLEARED in seconds else ""
    redis = ""
    if settings.redis is not None:
        redis = f"; a proxy before the Redis, which is not touched itself, hangs for {REDIS_FAULT:g} s, then refuses"
    return Plan(
        arms=tuple(arms),
        phases=tuple(
            Phase(name=name, title=_TITLES[name], seconds=seconds[name], measured=name not in _UNMEASURED)
            for name in seconds
        ),
        cycles=settings.cycles or (2 if settings.quick else 3),
        rate=rate,
        patience=PATIENCE,
        workload={
            "arrivals": f"Poisson, {rate:g}/s; {VIRAL_FACTOR:g} times that in the viral phase, the excess on one topic",
            "keys": f"{TOPICS} topics by Zipf, alpha {ALPHA:g}; "
            f"pages of {PAGE} from three sources over {ITEMS:,} items, of which the model ranks {TOP}",
            "users": f"{USERS:,}, equally active",
            "faults": (f"{cleared}the feature service hangs for the first {STALL:g} s of its phase{redis}"),
        },
        let_out=LetOut(
            shadow_seconds=1.5 if settings.quick else 5.0,
            shadow_share=0.5,
            canary_seconds=8.0 if settings.quick else 15.0,
            canary_share=0.25,
            regression=PLANTED,
            everyday=(NORMAL,),
            users_per_second=0.25 if settings.quick else 1.0,
            internal=0.02,
        ),
    )


class _Events(msgspec.Struct):
    """What a feed answers to /lab/events."""

    missing: int
    failure: str


class HomeFeedRunning:
    """The started processes."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        topology: Topology,
        session: aiohttp.ClientSession,
        one_service: OneFeed,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._topology = topology
        self._session = session
        self.one_service = one_service
        self._phase = plan.phases[0]
        self._cpu: dict[str, float] = {}
        self._stale: dict[str, dict[str, float]] = {}
        self._observed_at = SYSTEM_CLOCK.now()

    def schedule(self, cycle: int) -> Schedule:
        rng = np.random.default_rng([self._settings.seed, cycle])
        popularity = Zipf(TOPICS, ALPHA)
        parts = []
        for phase in self._plan.phases:
            part = Schedule.poisson(
                rate=self._plan.rate, duration=phase.seconds, popularity=popularity, users=USERS, rng=rng
            )
            if phase.name == VIRAL and len(part):
                surge = Surge(
                    start=0.0,
                    end=phase.seconds,
                    factor=VIRAL_FACTOR,
                    ramp=phase.seconds / 6,
                    hot_keys=(VIRAL_TOPIC,),
                )
                part = part.with_surge(surge, rng)
            parts.append(part)
        return Schedule.concatenate(parts)

    def url(self, arm: Arm) -> str:
        return self._topology[_instance(arm)].url

    def paths(self, schedule: Schedule) -> Sequence[str]:
        return feed_paths(schedule)

    async def enter(self, arm: Arm, phase: Phase) -> None:
        self._phase = phase
        if phase.name == CLEARED:
            await self._post(_instance(arm), "/lab/clear")
        elif phase.name == STALLED:
            await self._post("feature_service", f"/lab/stall?seconds={STALL}")
        elif phase.name in (REDIS_HUNG, REDIS_GONE):
            fault = "hang" if phase.name == REDIS_HUNG else "refuse"
            await self._post("redis_proxy", f"/lab/{fault}?seconds={REDIS_FAULT}")

    async def observe(self, arm: Arm) -> Mapping[str, float]:
        windows = {
            name: msgspec.json.decode(await self._post(name, "/lab/window"), type=Window)
            for name in DOWNSTREAMS
        }
        elapsed = SYSTEM_CLOCK.now() - self._observed_at
        self._observed_at += elapsed
        kept = msgspec.json.decode(await self._post(_instance(arm), "/lab/events"), type=_Events)
        if kept.missing:
            raise NoSpace(
                f"{_instance(arm)} could not keep {kept.missing} events: {kept.failure or 'its buffer is full'}"
            )
        usage = self._topology[_instance(arm)].usage()
        cpu = usage.cpu_seconds - self._cpu.get(arm.name, 0.0)
        self._cpu[arm.name] = usage.cpu_seconds
        stale = self._stale.get(arm.name, {})
        self._stale[arm.name] = await self._staleness(arm)
        hot = windows["trending_source"].keys.get(str(HOTTEST.get(self._phase.name, 0)), KeyWindow())
        return {
            "origin_calls": sum(window.calls for window in windows.values()),
            "origin_busy_seconds": sum(window.busy_seconds for window in windows.values()),
            "origin_refused": sum(window.refused for window in windows.values()),
            "busiest": max(window.busy_seconds / (window.workers * elapsed) for window in windows.values()),
            "hot_calls": hot.calls,
            "hot_peak": hot.peak,
            "hot_episodes": hot.episodes,
            "hot_first_seconds": hot.first_seconds,
            "cpu_seconds": cpu,
            "memory_bytes": usage.rss_bytes,
        } | {name: count - stale.get(name, 0.0) for name, count in self._stale[arm.name].items()}

    async def _staleness(self, arm: Arm) -> dict[str, float]:
        """Since the start, by field and bucket of its histogram."""
        found = msgspec.json.decode(
            await self._post(_instance(arm), "/lab/staleness"), type=dict[str, HistogramSnapshot]
        )
        return {
            f"{STALENESS_OF}{field}:{bucket}": float(count)
            for field, snapshot in found.items()
            for bucket, count in [("zero", snapshot.zero_count), *snapshot.buckets.items()]
            if count
        }

    async def failure(self) -> None:
        await self._topology.watch()

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
async def start(plan: Plan, settings: Settings, directory: Path) -> AsyncIterator[HomeFeedRunning]:
    """Starts the downstreams, one feed process per arm and one that serves both, all from this Python."""
    flags = directory / "flags.json"
    _write_flags(flags, flag_document(plan.arms))
    _write_flags(_live_flags(directory), flag_document(()))  # control for everybody, until a rollout moves it
    seed = ["--seed", str(settings.seed), "--fd", "{fd}"]
    services = [
        Service(name=f"{source}_source", argv=[*_module("candidate_source"), *seed, f"--source={source}"])
        for source in SOURCES
    ]
    services += [
        Service(name=name, argv=[*_module(name), *seed]) for name in ("label_service", "feature_service")
    ]
    through: list[str] = []
    if settings.redis is not None:
        services.append(
            Service(name="redis_proxy", argv=[*_module("redis_proxy"), *seed, f"--redis={settings.redis}"])
        )
        through = ["--redis-through={redis_proxy.url}"]
    ports = {_instance(arm): settings.port if arm.name == "treatment" else 0 for arm in plan.arms}
    services += [
        Service(
            name=name,
            grace=8.0,  # uvicorn lets requests end for 2 s, then loads and buffered events follow
            port=port,
            argv=[
                *_module("feed"),
                *seed,
                "--lab",
                *DOWNSTREAM_URLS,
                *through,
                f"--shares-as={directory.name}.{name}",  # no arm may profit from another's loads
                f"--flags={_live_flags(directory) if name == ONE_SERVICE else flags}",
                f"--instance={name}",
                f"--events={directory / 'events' / name}",
            ],
        )
        for name, port in (ports | {ONE_SERVICE: 0}).items()
    ]
    timeout = aiohttp.ClientTimeout(total=10.0)
    async with (
        Topology(services, log_directory=directory / "logs") as topology,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        one_service = OneFeed(
            session,
            url=topology[ONE_SERVICE].url,
            log=topology[ONE_SERVICE].log,
            flags=_live_flags(directory),
            events=directory / "events" / ONE_SERVICE,
            rate=plan.rate,
            alpha=ALPHA,
            seed=settings.seed,
        )
        yield HomeFeedRunning(plan, settings, topology, session, one_service)


def _live_flags(directory: Path) -> Path:
    return directory / "rollout" / "flags.json"


def _write_flags(path: Path, document: Mapping[str, object]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=1))
    except OSError as error:
        raise NoSpace(f"{path}: {error.strerror}; make room, or choose another --out") from error


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"fairlead_systems.home_feed.{name}"]


def _instance(arm: Arm) -> str:
    return f"feed-{arm.name}"


def flag_document(arms: Sequence[Arm]) -> dict[str, object]:
    """One flag for the path, one per mechanism; which process is served what is targeted by its instance."""

    def flag(
        variants: dict[str, object], default: str, other: str, instances: list[str]
    ) -> dict[str, object]:
        document: dict[str, object] = {"state": "ENABLED", "variants": variants, "defaultVariant": default}
        if instances:
            document["targeting"] = {"if": [{"in": [{"var": "instance"}, instances]}, other, default]}
        return document

    treated = [_instance(arm) for arm in arms if arm.variant == "treatment"]
    flags: dict[str, object] = {
        FLAG: flag({arm: arm for arm in ("control", "treatment", REGRESSED)}, "control", "treatment", treated)
    }
    flags[USERS_FLAG] = {
        "state": "ENABLED",
        "variants": {"control": "control", "treatment": "treatment"},
        "defaultVariant": "control",
        "targeting": {
            "bucket": {
                "by": "targetingKey",
                "salt": USERS_FLAG,
                "algo": ALGORITHM,
                "slots": [["control", 0, SLOTS // 2], ["treatment", SLOTS // 2, SLOTS]],
            }
        },
    }
    for mechanism in MECHANISMS:
        off = [_instance(arm) for arm in arms if mechanism.name in arm.without]
        flags[FLAG_PREFIX + mechanism.name] = flag({"on": True, "off": False}, "on", "off", off)
    return {"flags": flags}
