"""The treatment: the same page, made so that a busy or broken downstream costs freshness or rank, not the
answer.

One deadline per request, set at the edge, where a shedder bounds the pages in flight. Candidates, labels and features
come from a coalesced cache; a load belongs to the cache, not to the request that set it off, and runs under a
policy of its own (retry budget, hedge, breaker, adaptive limit). Labels and features of a page travel in one batch.
What is missing when the time is up is left out or replaced by the heuristic, and the answer says so.

Each mechanism can be switched off alone; what then runs in its place is what the control does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fairlead.admission import LoadShedder
from fairlead.cache import HotKeys, SecondTier, prewarm
from fairlead.calls import Batcher, Bulkhead
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, Refused
from fairlead.telemetry import Event, MetricRegistry
from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import CandidateClient, FeatureClient, LabelClient
from fairlead_systems.home_feed.control import FEATURE_TIMEOUT
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.feed_cache import STALENESS_BOUND, FeedCache
from fairlead_systems.home_feed.gathering import FAILURES, Gathering
from fairlead_systems.home_feed.labelling import Labelling
from fairlead_systems.home_feed.mechanisms import Mechanisms
from fairlead_systems.home_feed.policies import Policies
from fairlead_systems.home_feed.ranking import InlineRanking, ScheduledRanking
from fairlead_systems.home_feed.selection import PAGE, first_stage, shortlist, spread

__all__ = ["BUDGET", "PAGES", "STALENESS_BOUND", "Treatment"]

BUDGET = 0.3
"""Seconds a request may take when its caller names no deadline."""
RESERVE = 0.02
"""Seconds of the budget kept for ranking and sending, so that a degraded answer is still in time."""
FEATURE_ATTEMPT_TIMEOUT = 0.06
"""Seconds; the service's p99 for a batch is about 19 ms."""

PAGES = 256
"""Pages in the making at once. At 80 requests a second there are 6, and 24 while a downstream hangs; a process
that has more than this is behind, and making them all would make all of them late.
"""
WARMED_WITHIN = 2.0
"""Seconds for which a start waits for its hot spots."""
HOT_SPOTS = 24
"""Topics loaded before anybody asks: at the start, and after the cache was emptied."""


@dataclass(kw_only=True, slots=True)
class _Inputs:
    """How the second stage came by what it ranked."""

    staleness: float = 0.0
    as_of: float = float("inf")
    hit: bool = True
    reasons: dict[str, str] = field(default_factory=dict)
    """What it had to do without, each with the reason."""


class Treatment:
    def __init__(
        self,
        sources: Mapping[str, CandidateClient],
        labels: LabelClient,
        features: FeatureClient,
        ranking: InlineRanking | ScheduledRanking,
        reviewed: Sequence[int],
        uses: Mechanisms,
        on_event: Callable[[Event], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        registry: MetricRegistry | None = None,
        second: SecondTier | None = None,
    ) -> None:
        self._features = features
        self._ranking = ranking
        self._reviewed = tuple(reviewed)
        self._uses = uses
        self._clock = clock
        registry = MetricRegistry() if registry is None else registry
        self._memory = FeedCache(uses, second, clock)
        self.cache = self._memory.cache
        self._hot: HotKeys = HotKeys(capacity=4 * HOT_SPOTS, clock=clock)
        self._warming: asyncio.Task[None] | None = None
        policies = Policies(uses, on_event, registry, clock)
        self.gathering = Gathering(sources, self._memory, policies, uses)
        self.labelling = Labelling(labels, self._memory, policies, uses, registry, clock)
        self.feature_policy = policies.make("feature_service", FEATURE_TIMEOUT, FEATURE_ATTEMPT_TIMEOUT)
        self.batcher: Batcher[int, Features] = Batcher(self._load_features, max_batch=256, clock=clock)
        self.shedder = LoadShedder(
            "feed",
            limit=Bulkhead("feed", calls=PAGES, clock=clock),
            metrics=registry,
            on_event=on_event,
            clock=clock,
        )
        self.cache.export(registry)

    async def warm(self, topics: Iterable[int] = range(HOT_SPOTS)) -> None:
        """Loads the candidates of these topics, the hottest first; what fails is left to those who ask for it."""
        if not self._uses.prewarm:
            return
        keys = [("trending", str(topic)) for topic in topics]
        policy, client = self.gathering.policies["trending"], self.gathering.clients["trending"]
        with suppress(TimeoutError):  # a source that hangs must not keep the process from starting
            async with asyncio.timeout(WARMED_WITHIN):
                await prewarm(
                    self.cache,
                    keys,
                    lambda key: policy.call(client.fetch, key[1]),
                    self._memory.of_topic,
                    concurrency=4,  # a third of the source's workers: who asks meanwhile must find one free
                )

    async def clear(self) -> None:
        """Forgets all, and begins to load again what was asked for most."""
        await self._stop_warming()
        await self.cache.clear()
        hottest = [int(each.key) for each in self._hot.top(HOT_SPOTS) if isinstance(each.key, int)]
        self._warming = asyncio.create_task(self.warm(hottest))

    async def close(self) -> None:
        await self._stop_warming()
        await self.cache.close(1.0)

    async def _stop_warming(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
            self._warming = None

    async def page(
        self,
        user: str,
        topic: int,
        deadline: Deadline | None,
        request_id: str,
        *,
        shown: Sequence[int] = (),
        seen: Sequence[int] = (),
    ) -> Answer:
        """The page below `shown`, without `seen` while there is anything else to show."""
        if not self._uses.deadline:
            return await self._admitted_page(user, topic, shown, seen)
        edge = (deadline or Deadline.never(self._clock)).sooner(BUDGET)
        context = RequestContext(
            request_id=request_id, deadline=Deadline(edge.at - RESERVE, edge.clock), targeting_key=user
        )
        with request_context(context):
            return await self._admitted_page(user, topic, shown, seen)

    async def _admitted_page(
        self, user: str, topic: int, shown: Sequence[int], seen: Sequence[int]
    ) -> Answer:
        if not self._uses.admission:
            return await self._page(user, topic, shown, seen)
        try:
            async with self.shedder.admit():
                return await self._page(user, topic, shown, seen)
        except (Refused, DeadlineExceeded) as error:
            return self._reviewed_page(shown, type(error).__name__, str(error), ("candidates",))

    async def _page(self, user: str, topic: int, shown: Sequence[int], seen: Sequence[int]) -> Answer:
        self._hot.add(topic)
        try:
            gathered = await self.gathering.gather(user, topic)
        except FAILURES as error:
            return self._reviewed_page(
                shown, type(error).__name__, f"no candidates: {error}", ("candidates",)
            )
        if "trending" in gathered.unknown:
            raise NoAnswer(404, f"no topic {topic}")
        reasons = {source: type(error).__name__ for source, error in gathered.missing.items()}
        if not gathered.offers:
            why = "; ".join(map(str, gathered.missing.values()))
            return self._reviewed_page(
                shown, next(iter(reasons.values())), f"no candidates: {why}", tuple(reasons)
            )
        candidates = shortlist(gathered.offers, shown=shown, seen=seen)
        labelled = await self.labelling.label(candidates)
        reasons |= labelled.missing
        if not labelled.safe and "safety" in labelled.missing:
            why = labelled.missing["safety"]
            return self._reviewed_page(shown, why, f"no labels: {why}", tuple(reasons))
        top = first_stage({item: candidates[item] for item in labelled.safe}, labelled.popularity)
        ranked, model, inputs = await self._ranked(user, top)
        reasons |= inputs.reasons
        page = spread(ranked, shown)
        oldest = min(gathered.as_of, labelled.as_of, inputs.as_of)
        return Answer(
            items=page,
            model=model,
            degraded_by=next(iter(reasons.values()), ""),
            missing=tuple(reasons),
            more=bool(page) and len(labelled.safe) > len(page),
            staleness=max(gathered.staleness, labelled.staleness, inputs.staleness),
            age=max(0.0, self._clock.now() - oldest) if oldest < float("inf") else None,
            hit=gathered.hit and inputs.hit,
        )

    async def _ranked(self, user: str, top: list[int]) -> tuple[list[int], str, _Inputs]:
        """The second stage: by the model, else by the heuristic, else in the first stage's order."""
        try:
            found = await self._memory.find_all("features", top, self._page_features, self._memory.of_item)
        except FAILURES as error:
            if not self._uses.heuristic:
                raise NoAnswer(503, f"no features: {error}") from error
            return top, "first-stage", _Inputs(reasons={"features": type(error).__name__}, hit=False)
        features: list[Features] = [each.value for each in found]
        inputs = _Inputs(
            staleness=max((each.staleness for each in found), default=0.0),
            as_of=min((each.as_of_seconds for each in features), default=float("inf")),
            hit=all(each.hit for each in found),
        )
        known = [each.values for each in features]
        if not top:
            return [], "", inputs
        if not isinstance(self._ranking, ScheduledRanking):
            ranked, model = self._ranking.rank(user, top, known)
            return ranked, model, inputs
        ranked, model, reason = await self._ranking.rank(user, top, known)
        if reason:
            if not self._uses.heuristic:
                raise NoAnswer(503, f"no model: {reason}")
            inputs.reasons["model"] = reason
        return ranked, model, inputs

    def _reviewed_page(
        self, shown: Sequence[int], reason: str, message: str, missing: tuple[str, ...]
    ) -> Answer:
        if not self._uses.heuristic:
            raise NoAnswer(503, message)
        hidden = frozenset(shown)
        left = [item for item in self._reviewed if item not in hidden]
        return Answer(
            items=left[:PAGE],
            model="reviewed",
            degraded_by=reason,
            missing=missing,
            more=len(left) > PAGE,
            staleness=None,  # made from no origin's answer, so it has neither
            age=None,
            hit=False,
        )

    async def _page_features(self, items: list[int]) -> list[Features]:
        if not self._uses.batching:
            return [await self.feature_policy.call(self._features.get, item) for item in items]
        return await self.batcher.load_all(items)

    async def _load_features(self, items: list[int]) -> list[Features]:
        return await self.feature_policy.call(self._features.batch, items)
