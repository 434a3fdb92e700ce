"""Labels and popularity of items, each as fresh as it must be.

    safety      strict: within its lifetime, or the item is not shown. Refreshed early, as nothing stale may be used
    popularity  relaxed: at most 400 ms past its lifetime, else as if nobody had seen the item

A label that is missing is not a good label. Where none can be had, the page falls back to items that were reviewed by
hand; it is never filled with what nobody vouches for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from fairlead.cache import Composite, Field
from fairlead.calls import Batcher
from fairlead.clock import Clock
from fairlead.context import current, request_context
from fairlead.telemetry import MetricRegistry
from fairlead_systems.home_feed.clients import Label, LabelClient
from fairlead_systems.home_feed.control import ITEM_TTL, LABEL_TIMEOUT
from fairlead_systems.home_feed.feed_cache import FeedCache
from fairlead_systems.home_feed.gathering import FAILURES
from fairlead_systems.home_feed.mechanisms import Mechanisms
from fairlead_systems.home_feed.policies import Policies

__all__ = ["Labelled", "Labelling"]

SHARE = 0.6
"""Part of the remaining budget that labels may take."""
ATTEMPT_TIMEOUT = 0.04
"""Seconds; the service's p99 is about 13 ms."""


@dataclass(kw_only=True, slots=True)
class Labelled:
    """What is known of the items of one page."""

    safe: list[int] = field(default_factory=list)
    """Items that may be shown, in the order given."""
    popularity: dict[int, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Fields that at least one item lacks, with the class of the error that says why."""
    staleness: float = 0.0
    as_of: float = float("inf")


class Labelling:
    """Asks for all items of a page, and of pages that wait at once, in one call per field; per process."""

    def __init__(
        self,
        client: LabelClient,
        cache: FeedCache,
        policies: Policies,
        uses: Mechanisms,
        registry: MetricRegistry,
        clock: Clock,
    ) -> None:
        self._client = client
        self._share = SHARE if uses.deadline else None
        self.policies = {
            name: policies.make(f"label_service_{name}", LABEL_TIMEOUT, ATTEMPT_TIMEOUT, hedged=True)
            for name in ("safety", "popularity")
        }
        self._safety: Batcher[int, Label | None] = Batcher(self._load_safety, max_batch=256, clock=clock)
        self._popularity: Batcher[int, Label | None] = Batcher(
            self._load_popularity, max_batch=256, clock=clock
        )
        strict = cache.lifetime(ITEM_TTL, early_refresh=1.0)
        fields: dict[str, Field[int]] = {
            "safety": Field(load_many=self._safety.load_all, freshness=strict),
            "popularity": Field(
                load_many=self._popularity.load_all,
                freshness=cache.of_item,
                tier="relaxed",
            ),
        }
        if not uses.field_tiers:  # one value for both, as fresh as the strictest needs it
            fields = {"both": Field(load=self._load_both, freshness=strict)}
        self._items = Composite(cache.cache, "item", fields, metrics=registry)
        self.staleness = self._items.staleness
        """A histogram per field, as /metrics shows it."""
        withheld = registry.counter(
            "feed_items_withheld_total", "Candidates that were not shown.", labels=("why",)
        )
        self._unsafe, self._unlabelled = (withheld.labels(why=why) for why in ("unsafe", "no_label"))

    async def label(self, items: Collection[int]) -> Labelled:
        """Never fails: an item without a label is not among the safe ones."""
        context = current()
        if self._share is not None:
            budget = max(0.0, context.deadline.remaining()) * self._share
            context = replace(context, deadline=context.deadline.sooner(budget))
        with request_context(context):
            answers = await self._items.get_many(items)
        labelled = Labelled()
        for item, answer in answers.items():
            if isinstance(answer, Exception):
                if not isinstance(answer, FAILURES):
                    raise answer  # a defect, and no failure of anybody
                labelled.missing.setdefault("safety", type(answer).__name__)
                self._unlabelled.add()
                continue
            values = answer.values
            safety, popularity = (
                values["both"] if "both" in values else (values["safety"], values["popularity"])
            )
            if safety is None or not safety.value:
                (self._unlabelled if safety is None else self._unsafe).add()
                continue
            labelled.safe.append(item)
            labelled.staleness = max(labelled.staleness, *answer.staleness.values())
            labelled.as_of = min(labelled.as_of, safety.as_of_seconds)
            if popularity is not None:
                labelled.popularity[item] = popularity.value
                labelled.as_of = min(labelled.as_of, popularity.as_of_seconds)
            if answer.missing:
                labelled.missing.setdefault("popularity", answer.missing["popularity"].partition(":")[0])
        return labelled

    async def _load_safety(self, items: list[int]) -> list[Label | None]:
        return await self.policies["safety"].call(self._client.safety, items)

    async def _load_popularity(self, items: list[int]) -> list[Label | None]:
        return await self.policies["popularity"].call(self._client.popularity, items)

    async def _load_both(self, item: int) -> tuple[Label | None, Label | None]:
        safety, popularity = await asyncio.gather(self._safety.load(item), self._popularity.load(item))
        return safety, popularity
