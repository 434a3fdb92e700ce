"""The treatment: the same page, made so that a busy or broken downstream costs freshness or rank, not the
answer.

One deadline per request, set at the edge, where a shedder bounds the pages in flight. Candidates and features
come from a coalesced cache; a load belongs to the cache, not to the request that set it off, and runs under a
policy of its own (retry budget, hedge, breaker, adaptive limit). Features of a page travel in one batch. What is
missing when the time is up is replaced by the heuristic, and the answer says so.

Each mechanism can be switched off alone; what then runs in its place is what the control does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from fairlead.admission import LoadShedder
from fairlead.cache import Cache, Freshness, MemoryStore, SecondTier
from fairlead.calls import (
    Batcher,
    Bulkhead,
    CircuitBreaker,
    ConcurrencyLimit,
    Hedge,
    Policy,
    Retry,
    RetryBudget,
)
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, FairleadError, Refused
from fairlead.telemetry import Event, MetricRegistry
from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import (
    CandidateClient,
    Candidates,
    DownstreamError,
    FeatureClient,
    UnknownTopic,
)
from fairlead_systems.home_feed.control import ATTEMPTS, CANDIDATE_TIMEOUT, FEATURE_TIMEOUT, TTL
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.mechanisms import Mechanisms
from fairlead_systems.home_feed.ranking import InlineRanking, ScheduledRanking

__all__ = ["BUDGET", "PAGES", "STALENESS_BOUND", "Treatment"]

BUDGET = 0.3
"""Seconds a request may take when its caller names no deadline."""
RESERVE = 0.02
"""Seconds of the budget kept for ranking and sending, so that a degraded answer is still in time."""
STALENESS_BOUND = 0.4
"""Seconds an answer may be past its lifetime. The account this system is modelled on bounds it at 300 to
500 ms.
"""
FRESHNESS = Freshness(ttl=TTL, jitter=0.1, stale_while_revalidate=STALENESS_BOUND)
"""The control's lifetime, so that the comparison is not one of lifetimes."""
CANDIDATE_ATTEMPT_TIMEOUT = 0.18
"""Seconds; the source's p99 is about 160 ms."""
FEATURE_ATTEMPT_TIMEOUT = 0.06
"""Seconds; the service's p99 for a batch is about 19 ms."""

PAGES = 256
"""Pages in the making at once. At 150 requests a second there are 10, and 45 while a downstream hangs; a process
that has more than this is behind, and making them all would make all of them late.
"""

_FAILURES = (FairleadError, DownstreamError, TimeoutError)


class Treatment:
    def __init__(
        self,
        candidates: CandidateClient,
        features: FeatureClient,
        ranking: InlineRanking | ScheduledRanking,
        trending: Sequence[int],
        uses: Mechanisms,
        on_event: Callable[[Event], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        registry: MetricRegistry | None = None,
        second: SecondTier | None = None,
    ) -> None:
        self._candidates = candidates
        self._features = features
        self._ranking = ranking
        self._trending = tuple(trending)
        self._uses = uses
        self._clock = clock
        self.cache = Cache(MemoryStore(max_entries=10_000), second=second, clock=clock, name="feed")
        self._freshness = replace(
            FRESHNESS,
            jitter=FRESHNESS.jitter if uses.jitter else 0.0,
            stale_while_revalidate=STALENESS_BOUND if uses.stale_while_revalidate else 0.0,
        )
        self.candidate_policy = self._policy(
            "candidate_source",
            CANDIDATE_TIMEOUT,
            CANDIDATE_ATTEMPT_TIMEOUT,
            on_event,
            # Its slow answers are a few of its workers', not its load's: another worker is quicker than waiting.
            Hedge(quantile=0.95, minimum_calls=50) if uses.hedge else None,
        )
        self.feature_policy = self._policy(
            "feature_service", FEATURE_TIMEOUT, FEATURE_ATTEMPT_TIMEOUT, on_event
        )
        self.batcher: Batcher[int, Features] = Batcher(self._load_features, max_batch=256, clock=clock)
        self.shedder = LoadShedder(
            "feed",
            limit=Bulkhead("feed", calls=PAGES, clock=clock),
            metrics=registry,
            on_event=on_event,
            clock=clock,
        )
        if registry is not None:
            for policy in (self.candidate_policy, self.feature_policy):
                policy.export(registry)
            self.cache.export(registry)

    def _policy(
        self,
        name: str,
        timeout: float,
        attempt_timeout: float,
        on_event: Callable[[Event], object] | None,
        hedge: Hedge | None = None,
    ) -> Policy:
        uses = self._uses
        retry = Retry(
            attempts=2,
            on=(DownstreamError, TimeoutError),
            base=0.005,
            cap=0.02,
            budget=RetryBudget(clock=self._clock),
        )
        if not uses.retry_budget:
            retry = Retry(
                attempts=ATTEMPTS, on=(DownstreamError, TimeoutError), base=0.0, cap=0.0, budget=None
            )
        breaker = CircuitBreaker(
            name,
            minimum_calls=10,
            window=2.0,
            open_for=0.2,
            open_for_cap=1.0,
            # A topic that does not exist is the client's doing; counted, one client could open it for all.
            is_failure=lambda error: not isinstance(error, UnknownTopic),
            clock=self._clock,
        )
        return Policy(
            name=name,
            timeout=timeout if uses.deadline else timeout * ATTEMPTS,
            attempt_timeout=attempt_timeout if uses.deadline else timeout,
            idempotent=True,  # both services are only read
            retry=retry,
            hedge=hedge,
            breaker=breaker if uses.breaker else None,
            limit=ConcurrencyLimit(name, clock=self._clock) if uses.adaptive_limit else None,
            on_event=on_event,
            clock=self._clock,
        )

    async def clear(self) -> None:
        await self.cache.clear()

    async def close(self) -> None:
        await self.cache.close(1.0)

    async def page(self, user: str, topic: int, deadline: Deadline | None, request_id: str) -> Answer:
        if not self._uses.deadline:
            return await self._admitted_page(user, topic)
        edge = (deadline or Deadline.never(self._clock)).sooner(BUDGET)
        context = RequestContext(
            request_id=request_id, deadline=Deadline(edge.at - RESERVE, edge.clock), targeting_key=user
        )
        with request_context(context):
            return await self._admitted_page(user, topic)

    async def _admitted_page(self, user: str, topic: int) -> Answer:
        if not self._uses.admission:
            return await self._page(user, topic)
        try:
            async with self.shedder.admit():
                return await self._page(user, topic)
        except (Refused, DeadlineExceeded) as error:
            if not self._uses.heuristic:
                raise NoAnswer(503, str(error)) from error
            return self._trending_page(error)

    async def _page(self, user: str, topic: int) -> Answer:
        try:
            candidates, staleness, hit = await self._cached(
                ("candidates", topic), lambda: self.candidate_policy.call(self._candidates.fetch, topic)
            )
        except UnknownTopic as error:
            raise NoAnswer(404, str(error)) from error
        except _FAILURES as error:
            if not self._uses.heuristic:
                raise NoAnswer(503, f"no candidates: {error}") from error
            return self._trending_page(error)
        items = candidates.items
        try:
            features, feature_staleness, feature_hit = await self._cached(
                ("features", *items), lambda: self._page_features(items)
            )
        except _FAILURES as error:
            return self._without_features(candidates, staleness, hit, error)
        oldest = min(candidates.as_of_seconds, *(each.as_of_seconds for each in features))
        known = [each.values for each in features]
        if isinstance(self._ranking, ScheduledRanking):
            ranked, model, degraded_by = await self._ranking.rank(user, items, known)
        else:
            (ranked, model), degraded_by = self._ranking.rank(user, items, known), ""
        if degraded_by and not self._uses.heuristic:
            raise NoAnswer(503, f"no model: {degraded_by}")
        return Answer(
            items=ranked,
            model=model,
            degraded_by=degraded_by,
            staleness=max(staleness, feature_staleness),
            age=self._clock.now() - oldest,
            hit=hit and feature_hit,
        )

    def _trending_page(self, error: BaseException) -> Answer:
        return Answer(
            items=list(self._trending),
            model="trending",
            degraded_by=type(error).__name__,
            staleness=None,  # made from no origin's answer, so it has neither
            age=None,
            hit=False,
        )

    def _without_features(
        self, candidates: Candidates, staleness: float, hit: bool, error: BaseException
    ) -> Answer:
        if not self._uses.heuristic:
            raise NoAnswer(503, f"no features: {error}") from error
        return Answer(
            items=list(candidates.items),  # the source's own order: nothing more is known of the items
            model="source-order",
            degraded_by=type(error).__name__,
            staleness=staleness,
            age=self._clock.now() - candidates.as_of_seconds,
            hit=hit,
        )

    async def _cached(
        self, key: tuple[str | int, ...], load: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, float, bool]:
        """The value, seconds past its lifetime, and whether it came without waiting."""
        if not self._uses.coalescing:
            return await self._cached_without_coalescing(key, load)
        found = await self.cache.lookup(key, load, self._freshness)
        return found.value, found.staleness, found.source in ("hit", "stale")

    async def _cached_without_coalescing(
        self, key: tuple[str | int, ...], load: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, float, bool]:
        value = await self.cache.get(key)
        if value is not None:
            return value, 0.0, True
        value = await load()
        await self.cache.set(key, value, self._freshness)
        return value, 0.0, False

    async def _page_features(self, items: list[int]) -> list[Features]:
        if not self._uses.batching:
            return [await self.feature_policy.call(self._features.get, item) for item in items]
        return await self.batcher.load_all(items)

    async def _load_features(self, items: list[int]) -> list[Features]:
        return await self.feature_policy.call(self._features.batch, items)
