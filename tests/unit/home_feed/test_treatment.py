"""The treatment with downstreams that are told how to behave, on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.deadline import Deadline
from fairlead.telemetry import Event, MetricRegistry, StateChanged
from fairlead.telemetry.prometheus import render
from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import Candidates, DownstreamError, Label
from fairlead_systems.home_feed.control import Control
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.mechanisms import MECHANISMS, Mechanisms
from fairlead_systems.home_feed.ranking import ScheduledRanking
from fairlead_systems.home_feed.selection import PAGE, SOURCES
from fairlead_systems.home_feed.treatment import BUDGET, PAGES, STALENESS_BOUND, Treatment

T = TypeVar("T")
REVIEWED = list(range(90, 110))


class Origin:
    """All downstreams. `…_delay` is in seconds of the clock; `…_fail` is raised after it."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.candidate_calls: list[int] = []
        self.asked: list[tuple[str, str]] = []
        self.batches: list[list[int]] = []
        self.gets: list[int] = []
        self.label_calls: list[tuple[str, list[int]]] = []
        self.candidate_delay = self.feature_delay = self.slow_once = 0.0
        self.label_delay: dict[str, float] = {}
        self.source_delay: dict[str, float] = {}
        self.source_fail: dict[str, Exception] = {}
        self.label_fail: dict[str, Exception] = {}
        self.unsafe: set[int] = set()
        self.unlabelled: set[int] = set()
        self.unknown_topics = False
        self.candidates_fail: Exception | None = None
        self.features_fail: Exception | None = None

    async def fetch(self, source: str, key: str) -> Candidates | None:
        self.asked.append((source, key))
        began = self.clock.now()
        if source == "trending":
            return await self._trending(int(key), began)
        if delay := self.source_delay.get(source):
            await self.clock.sleep(delay)
        if source in self.source_fail:
            raise self.source_fail[source]
        if not key.startswith("known"):
            return None
        first = 2000 if source == "in_network" else 2400
        return Candidates(key=key, items=[first + position for position in range(12)], as_of_seconds=began)

    async def _trending(self, topic: int, began: float) -> Candidates | None:
        self.candidate_calls.append(topic)
        slow, self.slow_once = self.slow_once, 0.0
        if slow:
            await self.clock.sleep(slow)
        if self.candidate_delay:
            await self.clock.sleep(self.candidate_delay)
        if self.candidates_fail is not None:
            raise self.candidates_fail
        if self.unknown_topics:
            return None
        items = [topic * 100 + position for position in range(PAGE)]
        return Candidates(key=str(topic), items=items, as_of_seconds=began)

    async def safety(self, items: list[int]) -> list[Label | None]:
        return await self._labels("safety", items)

    async def popularity(self, items: list[int]) -> list[Label | None]:
        return await self._labels("popularity", items)

    async def _labels(self, field: str, items: list[int]) -> list[Label | None]:
        self.label_calls.append((field, items))
        began = self.clock.now()
        if delay := self.label_delay.get(field):
            await self.clock.sleep(delay)
        if field in self.label_fail:
            raise self.label_fail[field]
        return [
            None if item in self.unlabelled else Label(float(item not in self.unsafe), began)
            for item in items
        ]

    async def _features(self, items: list[int]) -> list[Features]:
        began = self.clock.now()
        if self.feature_delay:
            await self.clock.sleep(self.feature_delay)
        if self.features_fail is not None:
            raise self.features_fail
        return [Features(item, [float(item)], began) for item in items]

    async def batch(self, items: list[int]) -> list[Features]:
        self.batches.append(items)
        return await self._features(items)

    async def get(self, item: int) -> Features:
        self.gets.append(item)
        (features,) = await self._features([item])
        return features


class Source:
    def __init__(self, origin: Origin, name: str) -> None:
        self.origin = origin
        self.name = name

    async def fetch(self, key: str) -> Candidates | None:
        return await self.origin.fetch(self.name, key)


class InLine:
    """Best item last."""

    def rank(self, user: str, items: list[int], features: Sequence[Sequence[float]]) -> tuple[list[int], str]:
        return list(reversed(items)), "model"


class TooBusy(ScheduledRanking):
    """A scheduler whose model is never there in time."""

    def __init__(self) -> None: ...

    async def rank(
        self, user: str, items: list[int], features: Sequence[Sequence[float]]
    ) -> tuple[list[int], str, str]:
        return list(items), "heuristic", "queue_full"


def build(
    ranking: Any = None,
    on_event: Callable[[Event], object] | None = None,
    registry: MetricRegistry | None = None,
    **off: bool,
) -> tuple[Treatment, Origin, ManualClock]:
    clock = ManualClock(now=100.0)
    origin = Origin(clock)
    made = Treatment(
        {name: Source(origin, name) for name in SOURCES},  # type: ignore[misc]  # has what the treatment calls
        origin,  # type: ignore[arg-type]  # the same
        origin,  # type: ignore[arg-type]  # the same
        ranking or InLine(),
        REVIEWED,
        Mechanisms(**off),
        on_event,
        clock=clock,
        registry=registry,
    )
    return made, origin, clock


async def play(clock: ManualClock, work: Coroutine[Any, Any, T], within: float = 10.0) -> T:
    """The result of `work`, with time passing a millisecond at a time."""
    task = asyncio.ensure_future(work)
    await settle()
    for _ in range(round(within * 1000)):
        if task.done():
            break
        await clock.run_for(0.001)
    assert task.done(), f"not answered within {within} s"
    return task.result()


def page(treatment: Treatment, topic: int = 1, user: str = "u", deadline: Deadline | None = None):
    return treatment.page(user, topic, deadline, "request-1")


async def test_page_is_the_candidates_as_the_model_ranks_them():
    treatment, origin, clock = build()
    answer = await play(clock, page(treatment))
    assert answer.items == [111 - position for position in range(12)]
    assert (answer.model, answer.degraded, answer.hit) == ("model", False, False)
    assert (answer.staleness, answer.age) == (0.0, 0.0)
    assert (origin.candidate_calls, len(origin.batches)) == ([1], 1)


async def test_second_page_of_a_topic_comes_from_memory_with_its_age():
    treatment, origin, clock = build()
    await play(clock, page(treatment))
    clock.advance(0.5)
    answer = await play(clock, page(treatment))
    assert answer.hit
    assert answer.age == pytest.approx(0.5, abs=0.002)
    assert len(origin.candidate_calls) == len(origin.batches) == 1


async def test_failing_features_cost_the_ranking_not_the_answer():
    treatment, origin, clock = build()
    origin.features_fail = DownstreamError("queue full")
    answer = await play(clock, page(treatment))
    assert answer.degraded
    assert answer.degraded_by == "DownstreamError"
    assert answer.items == [100 + position for position in range(12)]
    assert answer.model == "first-stage"


async def test_failing_candidates_are_answered_with_what_was_reviewed():
    treatment, origin, clock = build()
    origin.candidates_fail = DownstreamError("HTTP 503")
    answer = await play(clock, page(treatment))
    assert (answer.items, answer.model, answer.degraded_by) == (
        REVIEWED[:PAGE],
        "reviewed",
        "DownstreamError",
    )


async def test_stalled_features_are_answered_within_the_budget():
    treatment, origin, clock = build()
    origin.feature_delay = 30.0
    began = clock.now()
    answer = await play(clock, page(treatment))
    assert answer.degraded
    assert clock.now() - began <= BUDGET


async def test_stalled_candidates_are_answered_within_the_budget():
    treatment, origin, clock = build()
    origin.candidate_delay = 30.0
    began = clock.now()
    answer = await play(clock, page(treatment))
    assert answer.model == "reviewed"
    assert clock.now() - began <= BUDGET


async def test_deadline_of_the_caller_is_kept_when_it_is_sooner():
    treatment, origin, clock = build()
    origin.candidate_delay = 30.0
    began = clock.now()
    answer = await play(clock, page(treatment, deadline=Deadline.after(0.1, clock)))
    assert answer.degraded
    assert clock.now() - began <= 0.1


async def test_later_deadline_of_the_caller_does_not_lengthen_the_budget():
    treatment, origin, clock = build()
    origin.candidate_delay = 30.0
    began = clock.now()
    await play(clock, page(treatment, deadline=Deadline.after(60.0, clock)))
    assert clock.now() - began <= BUDGET


async def test_deadline_that_has_passed_asks_no_downstream():
    treatment, origin, clock = build()
    answer = await play(clock, page(treatment, deadline=Deadline.after(0.0, clock)))
    assert answer.model == "reviewed"
    assert origin.candidate_calls == []


async def test_unknown_topic_is_the_callers_mistake():
    treatment, origin, clock = build()
    origin.unknown_topics = True
    with pytest.raises(NoAnswer) as caught:
        await play(clock, page(treatment, 9))
    assert caught.value.status == 404
    assert origin.candidate_calls == [9]  # and was not retried


async def test_unknown_topics_do_not_open_the_breaker_for_others():
    treatment, origin, clock = build()
    origin.unknown_topics = True
    for topic in range(50):
        with pytest.raises(NoAnswer):
            await play(clock, page(treatment, topic))
    origin.unknown_topics = False
    assert not (await play(clock, page(treatment, 77))).degraded


async def test_page_of_a_known_user_mixes_all_sources_each_item_once():
    treatment, origin, clock = build()
    answer = await play(clock, page(treatment, user="known"))
    assert {item // 400 for item in answer.items} == {0, 5, 6}
    assert len(set(answer.items)) == len(answer.items) == PAGE
    assert not answer.degraded
    assert {source for source, _ in origin.asked} == set(SOURCES)


async def test_sources_are_asked_at_once_and_not_one_after_the_other():
    treatment, origin, clock = build()
    origin.candidate_delay = 0.05
    origin.source_delay = {"in_network": 0.05, "nearest": 0.05}
    began = clock.now()
    await play(clock, page(treatment, user="known"))
    assert clock.now() - began < 0.06


@pytest.mark.parametrize("source", ["in_network", "nearest"])
@pytest.mark.parametrize("how", ["late", "failing"])
async def test_source_that_is_late_or_fails_is_missing_and_the_page_is_not(source: str, how: str):
    treatment, origin, clock = build()
    if how == "late":
        origin.source_delay[source] = 30.0
    else:
        origin.source_fail[source] = DownstreamError("HTTP 503")
    began = clock.now()
    answer = await play(clock, page(treatment, user="known"))
    assert clock.now() - began <= BUDGET
    assert answer.missing == (source,)
    assert answer.degraded
    assert len(answer.items) == PAGE
    assert answer.model == "model"  # labels, features and ranking still had their time


async def test_page_without_trending_comes_from_the_users_own_sources():
    treatment, origin, clock = build()
    origin.candidates_fail = DownstreamError("HTTP 503")
    answer = await play(clock, page(treatment, user="known"))
    assert answer.missing == ("trending",)
    assert all(item >= 2000 for item in answer.items)


async def test_unsafe_items_are_not_shown_and_do_not_degrade_the_page():
    treatment, origin, clock = build()
    origin.unsafe = {100, 105}
    answer = await play(clock, page(treatment))
    assert not origin.unsafe & set(answer.items)
    assert (len(answer.items), answer.degraded) == (PAGE - 2, False)


async def test_item_that_nobody_labelled_is_not_shown():
    treatment, origin, clock = build()
    origin.unlabelled = {103}
    answer = await play(clock, page(treatment))
    assert 103 not in answer.items
    assert len(answer.items) == PAGE - 1


@pytest.mark.parametrize("how", ["late", "failing"])
async def test_without_any_label_only_reviewed_items_are_shown(how: str):
    treatment, origin, clock = build()
    if how == "late":
        origin.label_delay["safety"] = 30.0
    else:
        origin.label_fail["safety"] = DownstreamError("HTTP 503")
    began = clock.now()
    answer = await play(clock, page(treatment))
    assert (answer.items, answer.model) == (REVIEWED[:PAGE], "reviewed")
    assert answer.missing == ("safety",)
    assert clock.now() - began <= BUDGET


async def test_label_past_its_lifetime_is_never_used_while_popularity_may_be_stale():
    treatment, origin, clock = build()
    await play(clock, page(treatment))
    origin.label_fail = {field: DownstreamError("HTTP 503") for field in ("safety", "popularity")}
    models = []
    for _ in range(60):  # six seconds: the lifetime of a label is five
        await clock.run_for(0.1)
        answer = await play(clock, page(treatment))
        models.append(answer.model)
    assert models[0] == "model"
    assert models[-1] == "reviewed"


async def test_missing_popularity_costs_order_and_not_items():
    treatment, origin, clock = build()
    origin.label_fail["popularity"] = DownstreamError("HTTP 503")
    answer = await play(clock, page(treatment))
    assert len(answer.items) == PAGE
    assert answer.missing == ("popularity",)
    assert answer.model == "model"


async def test_staleness_is_kept_per_field():
    registry = MetricRegistry()
    treatment, _, clock = build(registry=registry)
    await play(clock, page(treatment))
    text = render(registry)
    for field in ("safety", "popularity"):
        assert f'cache_field_staleness_seconds_count{{composite="item",field="{field}"}} 12' in text


async def test_labels_of_a_page_are_asked_for_in_one_call_per_field():
    treatment, origin, clock = build()
    await play(clock, page(treatment))
    assert sorted((field, len(items)) for field, items in origin.label_calls) == [
        ("popularity", PAGE),
        ("safety", PAGE),
    ]


async def test_both_arms_show_the_same_items():
    treatment, origin, clock = build()
    origin.unsafe = {101, 2003}
    sources = {name: Source(origin, name) for name in SOURCES}
    control = Control(sources, origin, origin, InLine())  # type: ignore[arg-type]  # has what the control calls
    for user in ("known", "nobody"):
        shown: list[int] = []
        for _ in range(3):
            treated = await play(clock, treatment.page(user, 1, None, "request-1", shown=shown, seen=shown))
            controlled = await play(clock, control.page(user, 1, shown=shown, seen=shown))
            assert (treated.items, treated.more) == (controlled.items, controlled.more)
            shown += treated.items


async def test_what_was_shown_above_does_not_come_again_and_what_was_seen_comes_last():
    treatment, _, clock = build()
    first = await play(clock, page(treatment, user="known"))
    below = await play(clock, treatment.page("known", 1, None, "request-2", shown=first.items))
    assert first.more
    assert not set(first.items) & set(below.items)
    again = await play(clock, treatment.page("known", 1, None, "request-3", seen=first.items))
    assert not set(first.items) & set(again.items)
    only = await play(clock, treatment.page("u", 1, None, "request-4", seen=list(range(100, 112))))
    assert len(only.items) == PAGE  # nothing else is there: better seen than empty


async def stalest(treatment: Treatment, origin: Origin, clock: ManualClock) -> list[Answer]:
    """A page a hundred times in two seconds, while the origin no longer answers."""
    await play(clock, page(treatment))
    origin.candidate_delay = origin.feature_delay = 60.0
    answers = []
    for _ in range(100):
        await clock.run_for(0.02)
        answers.append(await play(clock, page(treatment)))
    return answers


async def test_no_answer_is_staler_than_the_bound_while_the_origin_is_gone():
    treatment, origin, clock = build()
    answers = await stalest(treatment, origin, clock)
    assert 0 < max(answer.staleness or 0.0 for answer in answers) <= STALENESS_BOUND
    assert answers[-1].model == "reviewed"
    assert (answers[-1].staleness, answers[-1].age) == (None, None)  # neither fresh nor stale


async def test_what_waits_for_a_load_does_not_end_with_the_caller_who_began_it():
    treatment, origin, clock = build()
    origin.candidate_delay = 0.05
    first = asyncio.ensure_future(page(treatment))
    second = asyncio.ensure_future(page(treatment, user="another"))
    await clock.run_for(0.01)
    first.cancel()
    answer = await play(clock, second)  # type: ignore[arg-type]  # a future is awaited all the same
    assert not answer.degraded
    assert origin.candidate_calls == [1]


# One test per switch: what is off must be seen from outside.


async def test_without_deadline_a_page_waits_as_long_as_the_fixed_timeouts_allow():
    treatment, origin, clock = build(deadline=False)
    origin.feature_delay = 0.4
    began = clock.now()
    answer = await play(clock, page(treatment, deadline=Deadline.after(0.1, clock)))
    assert not answer.degraded
    assert clock.now() - began >= 0.4


async def test_without_coalescing_every_caller_loads_for_itself():
    loads = {}
    for coalescing in (True, False):
        treatment, origin, clock = build(coalescing=coalescing)
        origin.candidate_delay = 0.02
        herd = [asyncio.ensure_future(page(treatment, user=str(number))) for number in range(8)]
        await play(clock, asyncio.wait_for(asyncio.gather(*herd), None))
        loads[coalescing] = len(origin.candidate_calls)
    assert loads == {True: 1, False: 8}


async def test_without_partial_results_one_source_costs_the_page():
    models = {}
    for partial in (True, False):
        treatment, origin, clock = build(partial_results=partial)
        origin.source_fail["nearest"] = DownstreamError("HTTP 503")
        models[partial] = (await play(clock, page(treatment, user="known"))).model
    assert models == {True: "model", False: "reviewed"}


async def test_without_field_tiers_missing_popularity_costs_the_items():
    models = {}
    for tiers in (True, False):
        treatment, origin, clock = build(field_tiers=tiers)
        origin.label_fail["popularity"] = DownstreamError("HTTP 503")
        models[tiers] = (await play(clock, page(treatment))).model
    assert models == {True: "model", False: "reviewed"}


async def test_without_negative_caching_who_does_not_exist_is_asked_about_each_time():
    asked = {}
    for negative in (True, False):
        treatment, origin, clock = build(negative_caching=negative)
        for _ in range(5):
            await play(clock, page(treatment, user="nobody"))
        asked[negative] = origin.asked.count(("nearest", "nobody"))
    assert asked == {True: 1, False: 5}


async def test_without_prewarm_the_first_page_waits_for_its_candidates():
    hits = {}
    for warmed in (True, False):
        treatment, origin, clock = build(prewarm=warmed)
        await play(clock, treatment.warm([1, 2, 3]))
        hits[warmed] = len(origin.candidate_calls)
        await play(clock, page(treatment))
        assert origin.candidate_calls.count(1) == 1
    assert hits == {True: 3, False: 0}


async def test_emptied_cache_loads_again_what_was_asked_for_most():
    treatment, origin, clock = build()
    for topic in (5, 5, 6):
        await play(clock, page(treatment, topic))
    origin.candidate_calls.clear()
    await treatment.clear()
    await clock.run_for(0.01)
    assert origin.candidate_calls == [5, 6]
    await treatment.close()


async def test_source_that_fails_keeps_no_process_from_starting():
    treatment, origin, clock = build()
    origin.candidates_fail = DownstreamError("HTTP 503")
    await play(clock, treatment.warm(range(5)))
    assert origin.candidate_calls


async def test_without_jitter_keys_loaded_together_expire_together():
    expiries = {}
    for jitter in (True, False):
        treatment, _, clock = build(jitter=jitter, stale_while_revalidate=False)
        for topic in range(30):
            await treatment.cache.set(("trending", topic), topic, treatment._memory.of_topic)
        alive = []
        for _ in range(120):
            clock.advance(0.01)
            alive.append(sum([await treatment.cache.get(("trending", t)) is not None for t in range(30)]))
        expiries[jitter] = len(set(alive))
    assert expiries[False] == 2  # all, then none
    assert expiries[True] > 5


async def test_without_stale_while_revalidate_an_expired_page_waits_for_its_load():
    hits = {}
    for revalidates in (True, False):
        treatment, origin, clock = build(stale_while_revalidate=revalidates, jitter=False)
        await play(clock, page(treatment, user="known"))
        origin.candidate_delay = 0.05
        await clock.run_for(1.1)
        answer = await play(clock, page(treatment, user="known"))
        hits[revalidates] = (answer.hit, answer.staleness > 0)
    assert hits == {True: (True, True), False: (False, False)}


async def test_without_batching_features_are_asked_for_one_by_one():
    calls = {}
    for batching in (True, False):
        treatment, origin, clock = build(batching=batching)
        await play(clock, page(treatment))
        calls[batching] = (len(origin.batches), len(origin.gets))
    assert calls == {True: (1, 0), False: (0, PAGE)}


async def test_without_breaker_a_failing_downstream_is_asked_every_time():
    calls, opened = {}, {}
    for breaker in (True, False):
        events: list[Event] = []
        treatment, origin, clock = build(breaker=breaker, on_event=events.append)
        origin.candidates_fail = DownstreamError("HTTP 503")
        for topic in range(60):
            await play(clock, page(treatment, topic))
        calls[breaker] = len(set(origin.candidate_calls))
        opened[breaker] = [
            event.current
            for event in events
            if isinstance(event, StateChanged) and event.name == "trending_source"
        ]
    assert calls[False] == 60
    assert calls[True] < 60
    assert opened[True][0] == "open"
    assert opened[False] == []


async def test_without_retry_budget_every_failure_is_tried_three_times():
    treatment, origin, clock = build(retry_budget=False, breaker=False, adaptive_limit=False)
    origin.candidates_fail = DownstreamError("HTTP 503")
    for topic in range(40):
        await play(clock, page(treatment, topic))
    assert len(origin.candidate_calls) == 120


async def test_retry_budget_keeps_retries_to_a_fraction_of_the_calls():
    treatment, origin, clock = build(breaker=False, adaptive_limit=False)
    origin.candidates_fail = DownstreamError("HTTP 503")
    for topic in range(400):
        await play(clock, page(treatment, topic))
    retries = len(origin.candidate_calls) - 400
    assert 0 < retries < 100


async def test_without_adaptive_limit_calls_in_flight_are_not_bounded():
    asked = {}
    for limited in (True, False):
        treatment, origin, clock = build(adaptive_limit=limited, breaker=False, admission=False)
        origin.candidate_delay = 0.15
        waiting = [asyncio.ensure_future(page(treatment, topic)) for topic in range(300)]
        await clock.run_for(0.01)
        asked[limited] = len(origin.candidate_calls)
        await clock.run_for(1.0)
        await asyncio.gather(*waiting)
    assert asked[False] == 300
    assert asked[True] < 300


async def warm(treatment: Treatment, clock: ManualClock, pages: int) -> None:
    """Enough answers of the usual speed for the hedge to know what slow is."""
    for topic in range(1000, 1000 + pages):
        await play(clock, page(treatment, topic))


async def test_without_hedge_a_slow_candidate_load_is_waited_for():
    took = {}
    for hedged in (True, False):
        treatment, origin, clock = build(hedge=hedged)
        origin.candidate_delay = 0.01
        await warm(treatment, clock, 60)
        origin.slow_once = 0.12
        began = clock.now()
        answer = await play(clock, page(treatment, 1))
        assert not answer.degraded
        took[hedged] = clock.now() - began
        await treatment.close()
    assert took[True] < 0.05
    assert took[False] >= 0.12


async def test_pages_beyond_the_bound_are_reviewed_items_and_no_errors():
    treatment, origin, clock = build(deadline=False, adaptive_limit=False)
    origin.candidate_delay = 0.15
    waiting = [asyncio.ensure_future(page(treatment, topic)) for topic in range(PAGES + 300)]
    await clock.run_for(1.0)
    answers = await asyncio.gather(*waiting)
    assert {answer.degraded_by for answer in answers} == {"", "Overloaded"}
    assert len(origin.candidate_calls) <= PAGES + 256  # those that were let in, at once or from the queue
    assert treatment.shedder.in_flight == 0


async def test_without_admission_any_number_of_pages_is_in_the_making():
    treatment, origin, clock = build(admission=False, deadline=False, adaptive_limit=False)
    origin.candidate_delay = 0.15
    waiting = [asyncio.ensure_future(page(treatment, topic)) for topic in range(PAGES + 300)]
    await clock.run_for(1.0)
    assert not any(answer.degraded for answer in await asyncio.gather(*waiting))
    assert len(origin.candidate_calls) == PAGES + 300


async def test_without_int8_ranking_the_model_in_line_ranks():
    treatment, _, clock = build(InLine(), int8_ranking=False)
    assert (await play(clock, page(treatment))).model == "model"


async def test_late_model_is_replaced_by_the_heuristic_and_the_answer_says_so():
    treatment, _, clock = build(TooBusy())
    answer = await play(clock, page(treatment))
    assert (answer.model, answer.degraded_by) == ("heuristic", "queue_full")


@pytest.mark.parametrize("broken", ["candidates", "features", "model"])
async def test_without_heuristic_what_is_missing_costs_the_answer(broken: str):
    treatment, origin, clock = build(TooBusy() if broken == "model" else InLine(), heuristic=False)
    if broken == "candidates":
        origin.candidates_fail = DownstreamError("HTTP 503")
    elif broken == "features":
        origin.features_fail = DownstreamError("queue full")
    with pytest.raises(NoAnswer, match=broken) as caught:
        await play(clock, page(treatment))
    assert caught.value.status == 503


def test_every_switch_has_a_test_of_its_own():
    named = " ".join(name for name in globals() if name.startswith("test_without_"))
    assert [each.name for each in MECHANISMS if f"without_{each.name}_" not in named] == []


async def test_cleared_cache_forgets_candidates_and_features():
    treatment, origin, clock = build()
    await play(clock, page(treatment))
    await treatment.clear()
    await play(clock, page(treatment))
    assert len(origin.candidate_calls) == len(origin.batches) == 2


async def test_closing_ends_the_loads_that_run():
    treatment, origin, clock = build()
    origin.candidate_delay = 30.0
    waiting = asyncio.ensure_future(page(treatment))
    await clock.run_for(0.01)
    await treatment.close()
    assert (await play(clock, waiting)).model == "reviewed"  # type: ignore[arg-type]  # as above
