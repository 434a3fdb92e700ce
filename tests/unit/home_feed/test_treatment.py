"""The treatment with downstreams that are told how to behave, on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.deadline import Deadline
from fairlead.telemetry import Event, StateChanged
from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import Candidates, DownstreamError, UnknownTopic
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.mechanisms import MECHANISMS, Mechanisms
from fairlead_systems.home_feed.ranking import ScheduledRanking
from fairlead_systems.home_feed.treatment import BUDGET, PAGES, STALENESS_BOUND, Treatment
from fairlead_systems.home_feed.world import CANDIDATES_PER_TOPIC

T = TypeVar("T")
TRENDING = [90, 91, 92]


class Origin:
    """Both downstreams. `delay` is in seconds of the clock; `fails` is raised after it."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.candidate_calls: list[int] = []
        self.batches: list[list[int]] = []
        self.gets: list[int] = []
        self.candidate_delay = self.feature_delay = self.slow_once = 0.0
        self.candidates_fail: Exception | None = None
        self.features_fail: Exception | None = None

    async def fetch(self, topic: int) -> Candidates:
        self.candidate_calls.append(topic)
        began = self.clock.now()
        slow, self.slow_once = self.slow_once, 0.0
        if slow:
            await self.clock.sleep(slow)
        if self.candidate_delay:
            await self.clock.sleep(self.candidate_delay)
        if self.candidates_fail is not None:
            raise self.candidates_fail
        items = [topic * 100 + position for position in range(CANDIDATES_PER_TOPIC)]
        return Candidates(topic=topic, items=items, as_of_seconds=began)

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
    ranking: Any = None, on_event: Callable[[Event], object] | None = None, **off: bool
) -> tuple[Treatment, Origin, ManualClock]:
    clock = ManualClock(now=100.0)
    origin = Origin(clock)
    made = Treatment(
        origin,  # type: ignore[arg-type]  # has what the treatment calls
        origin,  # type: ignore[arg-type]  # the same
        ranking or InLine(),
        TRENDING,
        Mechanisms(**off),
        on_event,
        clock=clock,
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
    answer = await play(clock, page(treatment, user="another"))
    assert answer.hit
    assert answer.age == pytest.approx(0.5)
    assert len(origin.candidate_calls) == len(origin.batches) == 1


async def test_failing_features_cost_the_ranking_not_the_answer():
    treatment, origin, clock = build()
    origin.features_fail = DownstreamError("queue full")
    answer = await play(clock, page(treatment))
    assert answer.degraded
    assert answer.degraded_by == "DownstreamError"
    assert answer.items == [100 + position for position in range(12)]
    assert answer.model == "source-order"


async def test_failing_candidates_are_answered_with_what_is_trending():
    treatment, origin, clock = build()
    origin.candidates_fail = DownstreamError("HTTP 503")
    answer = await play(clock, page(treatment))
    assert (answer.items, answer.model, answer.degraded_by) == (TRENDING, "trending", "DownstreamError")


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
    assert answer.model == "trending"
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
    assert answer.model == "trending"
    assert origin.candidate_calls == []


async def test_unknown_topic_is_the_callers_mistake():
    treatment, origin, clock = build()
    origin.candidates_fail = UnknownTopic("no topic 9")
    with pytest.raises(NoAnswer) as caught:
        await play(clock, page(treatment, 9))
    assert caught.value.status == 404
    assert origin.candidate_calls == [9]  # and was not retried


async def test_unknown_topics_do_not_open_the_breaker_for_others():
    treatment, origin, clock = build()
    origin.candidates_fail = UnknownTopic("no such topic")
    for topic in range(50):
        with pytest.raises(NoAnswer):
            await play(clock, page(treatment, topic))
    origin.candidates_fail = None
    assert not (await play(clock, page(treatment, 77))).degraded


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
    assert answers[-1].model == "trending"
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


async def test_without_jitter_keys_loaded_together_expire_together():
    expiries = {}
    for jitter in (True, False):
        treatment, _, clock = build(jitter=jitter, stale_while_revalidate=False)
        for topic in range(30):
            await treatment.cache.set(("candidates", topic), topic, treatment._freshness)
        alive = []
        for _ in range(120):
            clock.advance(0.01)
            alive.append(sum([await treatment.cache.get(("candidates", t)) is not None for t in range(30)]))
        expiries[jitter] = len(set(alive))
    assert expiries[False] == 2  # all, then none
    assert expiries[True] > 5


async def test_without_stale_while_revalidate_an_expired_page_waits_for_its_load():
    hits = {}
    for revalidates in (True, False):
        treatment, origin, clock = build(stale_while_revalidate=revalidates, jitter=False)
        await play(clock, page(treatment))
        origin.candidate_delay = 0.05
        await clock.run_for(1.1)
        answer = await play(clock, page(treatment))
        hits[revalidates] = (answer.hit, answer.staleness > 0)
    assert hits == {True: (True, True), False: (False, False)}


async def test_without_batching_features_are_asked_for_one_by_one():
    calls = {}
    for batching in (True, False):
        treatment, origin, clock = build(batching=batching)
        await play(clock, page(treatment))
        calls[batching] = (len(origin.batches), len(origin.gets))
    assert calls == {True: (1, 0), False: (0, 12)}


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
            if isinstance(event, StateChanged) and event.name == "candidate_source"
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
        origin.slow_once = 0.15
        began = clock.now()
        answer = await play(clock, page(treatment, 1))
        assert not answer.degraded
        took[hedged] = clock.now() - began
        await treatment.close()
    assert took[True] < 0.05
    assert took[False] >= 0.15


async def test_pages_beyond_the_bound_are_trending_and_no_errors():
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
    assert (await play(clock, waiting)).model == "trending"  # type: ignore[arg-type]  # as above
