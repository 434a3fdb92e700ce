"""Candidates from three sources at once, each within its own share of the time.

A page that waits for all of its sources is as slow as the slowest and fails with any of them. Here each source gets a
part of what is left of the request's budget; who has not answered by then, or fails, is missing from this page, and
the page says so. Its load goes on and is there for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fairlead.calls import Policy
from fairlead.context import current, request_context
from fairlead.errors import FairleadError
from fairlead_systems.home_feed.clients import CandidateClient, Candidates, DownstreamError
from fairlead_systems.home_feed.control import CANDIDATE_TIMEOUT
from fairlead_systems.home_feed.feed_cache import FeedCache, Found
from fairlead_systems.home_feed.mechanisms import Mechanisms
from fairlead_systems.home_feed.policies import Policies
from fairlead_systems.home_feed.selection import SOURCES

__all__ = ["FAILURES", "SHARES", "Gathered", "Gathering", "key_of"]

SHARES = {"trending": 0.6, "in_network": 0.5, "nearest": 0.5}
"""Parts of the remaining budget. What is left is for labels, features and the model; about one load of trending
candidates in a hundred takes longer than 170 ms, and is there for the next page.
"""
ATTEMPT_TIMEOUTS = {"trending": 0.18, "in_network": 0.08, "nearest": 0.08}
"""Seconds; the sources' p99 are about 160, 35 and 26 ms."""

FAILURES = (FairleadError, DownstreamError, TimeoutError)
"""What a downstream, or a policy on its behalf, may do to a page."""


@dataclass(kw_only=True, slots=True)
class Gathered:
    """What the sources offered."""

    offers: dict[str, list[int]] = field(default_factory=dict)
    missing: dict[str, Exception] = field(default_factory=dict)
    """Sources that were late or failed, with the error that says why."""
    unknown: set[str] = field(default_factory=set)
    """Sources that do not know the topic or user."""
    staleness: float = 0.0
    as_of: float = float("inf")
    """Moment at which the oldest offer was read."""
    hit: bool = True


def key_of(source: str, user: str, topic: int) -> str:
    """What a source is asked for."""
    return str(topic) if source == "trending" else user


class Gathering:
    """Asks all sources through the cache; per process."""

    def __init__(
        self,
        clients: Mapping[str, CandidateClient],
        cache: FeedCache,
        policies: Policies,
        uses: Mechanisms,
    ) -> None:
        self.clients = clients
        self._cache = cache
        self._partial = uses.partial_results
        self._shares = SHARES if uses.deadline else {}
        self.policies: dict[str, Policy] = {
            # Slow answers are a few of a source's workers', not its load's: another worker is quicker than waiting.
            source: policies.make(
                f"{source}_source", CANDIDATE_TIMEOUT, ATTEMPT_TIMEOUTS[source], hedged=True
            )
            for source in SOURCES
        }

    async def gather(self, user: str, topic: int) -> Gathered:
        """Raises the failure of a source only where partial results are switched off."""
        answers = await asyncio.gather(
            *(self._ask(source, key_of(source, user, topic)) for source in SOURCES)
        )
        gathered = Gathered()
        for source, answer in zip(SOURCES, answers, strict=True):
            if isinstance(answer, Exception):
                if not self._partial:
                    raise answer
                gathered.missing[source] = answer
                continue
            gathered.hit = gathered.hit and answer.hit
            candidates: Candidates | None = answer.value
            if candidates is None:
                gathered.unknown.add(source)
                continue
            gathered.staleness = max(gathered.staleness, answer.staleness)
            gathered.as_of = min(gathered.as_of, candidates.as_of_seconds)
            gathered.offers[source] = candidates.items
        return gathered

    async def find(self, source: str, key: str) -> Found:
        """The offer of one source, from memory or by a load that all who ask share."""
        client, policy = self.clients[source], self.policies[source]
        lifetime = self._cache.of_topic if source == "trending" else self._cache.of_user
        return await self._cache.find((source, key), lambda: policy.call(client.fetch, key), lifetime)

    async def _ask(self, source: str, key: str) -> Found | Exception:
        # In a task of its own, and so in a context of its own.
        context = current()
        if (share := self._shares.get(source)) is not None:
            budget = max(0.0, context.deadline.remaining()) * share
            context = replace(context, deadline=context.deadline.sooner(budget))
        try:
            with request_context(context):
                return await self.find(source, key)
        except FAILURES as error:
            return error
