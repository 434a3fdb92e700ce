"""The control: what it does when it works, and what it does to a downstream that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fairlead_systems.home_feed import control as control_module
from fairlead_systems.home_feed.answer import NoAnswer
from fairlead_systems.home_feed.clients import Candidates, DownstreamError, Label
from fairlead_systems.home_feed.control import ATTEMPTS, Control, TtlCache, with_retries
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.selection import SOURCES


class Origin:
    def __init__(self) -> None:
        self.topics: list[int] = []
        self.items: list[int] = []
        self.labelled: list[tuple[str, list[int]]] = []
        self.in_flight = self.peak = 0
        self.unknown_topics = False
        self.unsafe: set[int] = set()
        self.candidates_fail: Exception | None = None
        self.nearest_fail: Exception | None = None
        self.labels_fail: Exception | None = None
        self.features_fail: Exception | None = None

    async def safety(self, items: list[int]) -> list[Label | None]:
        self.labelled.append(("safety", items))
        if self.labels_fail is not None:
            raise self.labels_fail
        return [Label(float(item not in self.unsafe), 0.0) for item in items]

    async def popularity(self, items: list[int]) -> list[Label | None]:
        self.labelled.append(("popularity", items))
        return [Label(0.5, 0.0) for _ in items]

    async def get(self, item: int) -> Features:
        self.items.append(item)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if self.features_fail is not None:
            raise self.features_fail
        return Features(item, [float(item)], 0.0)


class Source:
    def __init__(self, origin: Origin, name: str) -> None:
        self.origin = origin
        self.name = name

    async def fetch(self, key: str) -> Candidates | None:
        await asyncio.sleep(0)
        if self.name != "trending":
            if self.name == "nearest" and self.origin.nearest_fail is not None:
                raise self.origin.nearest_fail
            return Candidates(key=key, items=[], as_of_seconds=0.0)  # they follow nobody
        self.origin.topics.append(int(key))
        if self.origin.candidates_fail is not None:
            raise self.origin.candidates_fail
        return None if self.origin.unknown_topics else Candidates(key=key, items=[1, 2, 3], as_of_seconds=0.0)


class InLine:
    def rank(self, user: str, items: list[int], features: Sequence[Sequence[float]]) -> tuple[list[int], str]:
        return list(reversed(items)), "model"


def build() -> tuple[Control, Origin]:
    origin = Origin()
    sources = {name: Source(origin, name) for name in SOURCES}
    return Control(sources, origin, origin, InLine()), origin  # type: ignore[arg-type]  # has what the control calls


async def test_page_is_ranked_by_the_model_in_line():
    control, _ = build()
    answer = await control.page("u", 7)
    assert (answer.items, answer.model, answer.degraded, answer.staleness) == ([3, 2, 1], "model", False, 0.0)


async def test_features_are_fetched_one_after_the_other():
    control, origin = build()
    await control.page("u", 7)
    assert origin.items == [1, 2, 3]
    assert origin.peak == 1


async def test_page_within_the_lifetime_asks_nobody_again():
    control, origin = build()
    first = await control.page("u", 7)
    second = await control.page("u", 7)
    assert (first.hit, second.hit) == (False, True)
    assert (len(origin.topics), len(origin.items)) == (1, 3)


async def test_callers_that_miss_together_all_ask():
    control, origin = build()
    await asyncio.gather(*(control.page(str(user), 7) for user in range(5)))
    assert len(origin.topics) == 5


async def test_cleared_cache_asks_again():
    control, origin = build()
    await control.page("u", 7)
    control.clear()
    await control.page("u", 7)
    assert (len(origin.topics), len(origin.items)) == (2, 6)


async def test_failing_candidates_are_tried_three_times_then_the_page_fails():
    control, origin = build()
    origin.candidates_fail = DownstreamError("HTTP 503")
    with pytest.raises(NoAnswer, match="no candidates") as caught:
        await control.page("u", 7)
    assert caught.value.status == 502
    assert origin.topics == [7] * ATTEMPTS == [7, 7, 7]


async def test_failing_features_cost_the_page():
    control, origin = build()
    origin.features_fail = DownstreamError("queue full")
    with pytest.raises(NoAnswer, match="no features of item 1") as caught:
        await control.page("u", 7)
    assert caught.value.status == 502
    assert origin.items == [1, 1, 1]


async def test_unknown_topic_is_asked_for_once_and_is_the_callers_mistake():
    control, origin = build()
    origin.unknown_topics = True
    with pytest.raises(NoAnswer) as caught:
        await control.page("u", 7)
    assert caught.value.status == 404
    assert origin.topics == [7]


async def test_each_attempt_has_its_own_fixed_timeout():
    began: list[int] = []

    async def hang(argument: int) -> None:
        began.append(argument)
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await with_retries(hang, 5, 0.005)
    assert began == [5, 5, 5]


async def test_attempt_that_succeeds_is_the_last():
    calls = 0

    async def call(argument: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise DownstreamError("once")
        return argument

    assert await with_retries(call, 5, 1.0) == 5
    assert calls == 2


async def test_cancelled_caller_is_not_retried():
    calls = 0

    async def call(argument: int) -> None:
        nonlocal calls
        calls += 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await with_retries(call, 5, 1.0)
    assert calls == 1


def test_entry_is_gone_when_its_lifetime_is_over(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(control_module.time, "monotonic", lambda: now[0])
    cache: TtlCache[str] = TtlCache(1.0)
    cache.set(1, "one")
    now[0] = 100.999
    assert cache.get(1) == "one"
    now[0] = 101.0
    assert cache.get(1) is None


def test_full_cache_drops_its_oldest_entry():
    cache: TtlCache[str] = TtlCache(60.0, max_entries=2)
    for key in (1, 2, 3):
        cache.set(key, str(key))
    assert [cache.get(key) for key in (1, 2, 3)] == [None, "2", "3"]
    cache.set(3, "again")
    assert cache.get(2) == "2"


async def test_any_source_that_fails_costs_the_page():
    control, origin = build()
    origin.nearest_fail = DownstreamError("HTTP 503")
    with pytest.raises(NoAnswer, match="no candidates") as caught:
        await control.page("u", 7)
    assert caught.value.status == 502


async def test_labels_that_cannot_be_had_cost_the_page():
    control, origin = build()
    origin.labels_fail = DownstreamError("HTTP 503")
    with pytest.raises(NoAnswer, match="no labels") as caught:
        await control.page("u", 7)
    assert caught.value.status == 502


async def test_unsafe_items_are_not_shown_and_labels_are_kept_for_their_lifetime():
    control, origin = build()
    origin.unsafe = {2}
    assert (await control.page("u", 7)).items == [3, 1]
    assert (await control.page("v", 7)).items == [3, 1]
    assert [field for field, _ in origin.labelled] == ["safety", "popularity"]


async def test_items_above_the_page_do_not_come_again():
    control, _ = build()
    assert (await control.page("u", 7, shown=[3])).items == [2, 1]
