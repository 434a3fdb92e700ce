"""Two feed processes of the treatment behind a client that routes: what consistent routing is worth to memory.

A user's entries lie in the process that served him last. Spread at random over two processes, half of his requests
meet a process that does not know him; sent by `Rendezvous`, none does. Both ways are measured against the same started
processes, with the same requests, the caches emptied in between; what memory did not answer is counted at the sources.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from fairlead.cache import Rendezvous
from fairlead.lab import Service, Topology
from fairlead.trial import Arm
from fairlead_systems.home_feed.selection import SOURCES
from fairlead_systems.home_feed.system import DOWNSTREAM_URLS, flag_document

__all__ = ["Routed", "measure_routing", "two_feeds"]

FEEDS = ("feed-0", "feed-1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """What one way of routing came to."""

    hit_ratio: float
    """Look-ups of users' candidates that memory answered, 0-1, over both processes."""
    user_loads: int
    """Calls that the users' own sources received."""
    requests: int
    seen_again: int
    """Items of a user's page that stood on his last page too, over all pages."""


@asynccontextmanager
async def two_feeds(directory: Path, *, seed: int = 1, redis: str | None = None) -> AsyncIterator[Topology]:
    """The downstreams, and two processes of the treatment named as FEEDS; ends all of them."""
    flags = directory / "flags.json"
    arms = [Arm(name=feed.removeprefix("feed-"), variant="treatment") for feed in FEEDS]
    flags.write_text(json.dumps(flag_document(arms)))

    def module(name: str, *more: str) -> list[str]:
        run = [sys.executable, "-m", f"fairlead_systems.home_feed.{name}"]
        return [*run, "--fd", "{fd}", "--seed", str(seed), *more]

    services = [
        Service(name=f"{source}_source", argv=module("candidate_source", f"--source={source}"))
        for source in SOURCES
    ]
    services += [Service(name=name, argv=module(name)) for name in ("label_service", "feature_service")]
    shared = [] if redis is None else [f"--redis={redis}"]
    services += [
        Service(
            name=feed,
            argv=module("feed", "--lab", *DOWNSTREAM_URLS, f"--flags={flags}", f"--instance={feed}", *shared),
        )
        for feed in FEEDS
    ]
    async with Topology(services, log_directory=directory / "logs") as topology:
        yield topology


async def measure_routing(
    topology: Topology, *, users: int = 60, requests: int = 600, at_once: int = 8, seed: int = 1
) -> dict[str, Routed]:
    """The same requests at random and by user: `{"random": …, "routed": …}`."""
    rng = random.Random(seed)
    wanted = [(f"u{rng.randrange(users)}", rng.randrange(20)) for _ in range(requests)]
    route = Rendezvous(FEEDS)
    chosen = random.Random(seed + 1)
    ways: dict[str, Callable[[str], str]] = {
        "random": lambda user: chosen.choice(FEEDS),
        "routed": route.node,
    }
    async with aiohttp.ClientSession() as session:
        return {name: await _measure(topology, session, wanted, way, at_once) for name, way in ways.items()}


async def _measure(
    topology: Topology,
    session: aiohttp.ClientSession,
    wanted: list[tuple[str, int]],
    feed_of: Callable[[str], str],
    at_once: int,
) -> Routed:
    for feed in FEEDS:
        async with session.post(f"{topology[feed].url}/lab/clear") as response:
            response.raise_for_status()
    await _user_loads(topology, session)
    turn = asyncio.Semaphore(at_once)
    shown: dict[str, list[int]] = {}
    again = 0

    async def ask(user: str, topic: int) -> None:
        nonlocal again
        async with (
            turn,
            session.get(f"{topology[feed_of(user)].url}/feed?user={user}&topic={topic}") as response,
        ):
            response.raise_for_status()
            items = (await response.json())["items"]
        last = shown.get(user, [])
        again += len(set(last) & set(items))
        shown[user] = items

    await asyncio.gather(*(ask(user, topic) for user, topic in wanted))
    loads = await _user_loads(topology, session)
    asked = 2 * len(wanted)  # two sources belong to the user
    return Routed(hit_ratio=1.0 - loads / asked, user_loads=loads, requests=len(wanted), seen_again=again)


async def _user_loads(topology: Topology, session: aiohttp.ClientSession) -> int:
    """Calls of the users' own sources since this was last asked."""
    calls = 0
    for source in ("in_network", "nearest"):
        async with session.post(f"{topology[f'{source}_source'].url}/lab/window") as response:
            calls += int((await response.json())["calls"])
    return calls
