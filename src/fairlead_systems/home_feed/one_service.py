"""One feed process that serves both paths by a flag: what the change is let out in, once the paths were compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
import numpy as np

from fairlead.errors import ProcessDied
from fairlead.lab import Schedule, Zipf
from fairlead.shadow import ShadowReport
from fairlead_systems.home_feed.paths import REGRESSED, REGRESSION
from fairlead_systems.home_feed.world import TOPICS, USERS

__all__ = ["ONE_SERVICE", "PLANTED", "OneFeed", "feed_paths"]

ONE_SERVICE = "feed-live"
PLANTED = f"{REGRESSION * 100:g} % of the pages of the variant {REGRESSED} end in an error (500)"

_PARTS = {"shadow": 1_000_001, "canary": 1_000_002}
"""Streams of random numbers, apart from those of the cycles."""


class OneFeed:
    """The `fairlead.trial.OneService` of the home feed."""

    regressed = REGRESSED

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        url: str,
        log: Path | None,
        flags: Path,
        events: Path,
        rate: float,
        alpha: float,
        seed: int,
    ) -> None:
        self.url = url
        self.flags = flags
        self.events = events
        self._log = log
        self._session = session
        self._rate = rate
        self._popularity = Zipf(TOPICS, alpha)
        self._seed = seed

    def schedule(self, seconds: float, part: str) -> Schedule:
        return Schedule.poisson(
            rate=self._rate,
            duration=seconds,
            popularity=self._popularity,
            users=USERS,
            rng=np.random.default_rng([self._seed, _PARTS[part]]),
        )

    def paths(self, schedule: Schedule) -> Sequence[str]:
        return feed_paths(schedule)

    async def shadow(self, share: float) -> ShadowReport:
        try:
            async with self._session.post(f"{self.url}/lab/shadow?share={share}") as response:
                response.raise_for_status()
                return msgspec.json.decode(await response.read(), type=ShadowReport)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ProcessDied(
                f"{ONE_SERVICE} did not answer POST /lab/shadow ({error!r}); see {self._log}"
            ) from error


def feed_paths(schedule: Schedule) -> list[str]:
    """Path and query of each request."""
    return [
        f"/feed?user=u{user}&topic={key}"
        for user, key in zip(schedule.users.tolist(), schedule.keys.tolist(), strict=True)
    ]
