"""`Cache` against a model that knows nothing of tasks: a dict of values with three moments each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fairlead.cache import Cache, CacheEvent, Freshness, Lookup, MemoryStore
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded

KEYS = ("a", "b")
TAGS = ("red", "blue")
LOAD_TIMEOUT = 20.0
WIDEST = 8.0  # of the windows in which a value is stale

keys = st.sampled_from(KEYS)
spans = st.sampled_from([0.0, 1.0, 3.0])
caps = st.sampled_from([1.0, 4.0, inf])  # of the whole age


def _freshness(ttl: float, cap: float, soft_timeout: float | None, **rest: Any) -> Freshness:
    soft = soft_timeout if rest["stale_if_error"] else None  # without one, no old value may answer
    return Freshness(ttl=ttl, max_ttl=max(ttl, cap), soft_timeout=soft, jitter=0.0, **rest)


freshnesses = st.builds(
    _freshness,
    ttl=spans,
    cap=caps,
    soft_timeout=st.sampled_from([None, 0.1, 1.1]),  # no moment of another timer's
    stale_while_revalidate=spans,
    stale_if_error=st.sampled_from([0.0, 3.0, WIDEST]),
    negative_ttl=st.sampled_from([None, 0.0, 1.0]),
)
patiences = st.sampled_from([0.5, 2.0, 1e6])
tag_sets = st.frozensets(st.sampled_from(TAGS))
answers = st.one_of(st.none(), st.integers(0, 99))
generations = st.integers(0, 9)


class OriginDown(Exception):
    pass


@dataclass
class Stored:
    value: object
    began_at: float
    fresh_until: float
    stale_until: float
    error_until: float
    tags: frozenset[str]


@dataclass(eq=False)
class Load:
    """A load that the origin was asked for and has not answered."""

    key: str
    began_at: float
    freshness: Freshness
    tags: frozenset[str]
    listed: bool = True
    given_up: bool = False
    answer: asyncio.Future[object] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(eq=False)
class Caller:
    task: asyncio.Task[Lookup[object]]
    load: Load
    deadline: float
    soft: float = inf
    """When an old value answers, if the load has not ended."""
    cancelled: bool = False


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.clock = ManualClock()
        self.cache = Cache(
            MemoryStore(max_entries=100),
            clock=self.clock,
            rng=random.Random(1),
            refresh_concurrency=2,
            load_timeout=LOAD_TIMEOUT,
        )
        self.stored: dict[str, Stored] = {}
        self.loads: list[Load] = []
        self.callers: list[Caller] = []
        self.refreshes: list[Load] = []
        self.started: list[Load] = []
        self.generations: dict[str, int] = {}
        self.tag_generations: dict[str, int] = {}

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(what)

    def teardown(self) -> None:
        self.run(self.cache.close())
        for caller in self.callers:
            caller.task.cancel()
        self.run(settle())
        for caller in self.callers:
            if caller.task.done() and not caller.task.cancelled():
                caller.task.exception()
        self.loop.close()

    # The model

    def listed(self, key: str) -> Load | None:
        return next((load for load in self.loads if load.key == key and load.listed), None)

    def unlist(self, key: str) -> None:
        load = self.listed(key)
        if load is not None:
            load.listed = False

    def keep(
        self, key: str, value: object, freshness: Freshness, began_at: float, tags: frozenset[str]
    ) -> None:
        now, last = self.clock.now(), began_at + freshness.max_ttl
        if value is None and freshness.negative_ttl is not None:
            ends = (now + freshness.negative_ttl,) * 3
        else:
            end = min(now + freshness.ttl, last)
            ends = (end, end + freshness.stale_while_revalidate, end + freshness.stale_if_error)
        capped = [min(each, last) for each in ends]
        self.stored[key] = Stored(value, began_at, *capped, tags)

    def settle_callers(self, load: Load, error: Exception | None, value: object) -> None:
        """Checks the outcome of everybody who waited for `load`, which has just ended."""
        now = self.clock.now()
        for caller in [caller for caller in self.callers if caller.load is load]:
            self.callers.remove(caller)
            assert caller.task.done()
            if caller.cancelled:
                assert caller.task.cancelled()
                continue
            if error is None:
                found = caller.task.result()
                assert found.value == value
                assert (found.age, found.staleness) == (now - load.began_at, 0.0)
                continue
            stored = self.stored.get(load.key)
            if stored is not None and now < stored.error_until:
                found = caller.task.result()
                assert found.value == stored.value
                assert found.source == ("hit" if now < stored.fresh_until else "stale_error")
                assert found.staleness == max(0.0, now - stored.fresh_until)
            else:
                assert type(caller.task.exception()) is type(error)

    # What can happen

    @rule(key=keys, freshness=freshnesses, patience=patiences, tags=tag_sets)
    def ask(self, key: str, freshness: Freshness, patience: float, tags: frozenset[str]) -> None:
        self.asked(key, freshness, patience, tags)

    @rule(
        key=keys,
        value=answers,
        freshness=freshnesses,
        patience=patiences,
        seconds=st.sampled_from([0.0, 0.25, 1.0]),
    )
    def ask_for_what_has_grown_old(
        self, key: str, value: object, freshness: Freshness, patience: float, seconds: float
    ) -> None:
        """By chance alone, hardly any call finds a value that may stand in for a slow load and no more."""
        self.write(key, value, Freshness(ttl=1.0, jitter=0.0, stale_if_error=WIDEST), frozenset())
        self.time_passes(2.5)
        self.asked(key, freshness, patience, frozenset())
        self.time_passes(seconds)

    def asked(self, key: str, freshness: Freshness, patience: float, tags: frozenset[str]) -> None:
        now = self.clock.now()
        started: list[Load] = []

        async def load() -> object:
            started.append(Load(key, now, freshness, tags))
            return await started[0].answer

        async def begin() -> asyncio.Task[Lookup[object]]:
            deadline = Deadline(now + patience, self.clock)
            with request_context(RequestContext(deadline=deadline)):
                task = asyncio.create_task(self.cache.lookup(key, load, freshness, tags))
            await settle()
            return task

        stored, flying = self.stored.get(key), self.listed(key)
        task = self.run(begin())
        if stored is not None and now < stored.fresh_until:
            assert task.result() == Lookup(stored.value, "hit", now - stored.began_at, 0.0)
            assert started == []
        elif stored is not None and now < stored.stale_until:
            staleness = now - stored.fresh_until
            assert task.result() == Lookup(stored.value, "stale", now - stored.began_at, staleness)
            may_refresh = flying is None and len(self.refreshes) < 2
            assert len(started) == int(may_refresh)
            self.refreshes += started
        else:
            assert len(started) == int(flying is None)
            assert not task.done()
            soft = now + (inf if freshness.soft_timeout is None else freshness.soft_timeout)
            if stored is None or soft >= min(stored.error_until, now + patience):
                soft = inf
            self.callers.append(Caller(task, flying or started[0], now + patience, soft))
        self.loads += started

    @precondition(lambda self: self.loads)
    @rule(data=st.data(), value=answers, fails=st.booleans())
    def origin_answers(self, data: st.DataObject, value: object, fails: bool) -> None:
        load = data.draw(st.sampled_from(self.loads))
        self.loads.remove(load)
        if fails:
            load.answer.set_exception(OriginDown())
        else:
            load.answer.set_result(value)
        self.run(settle())
        if load in self.refreshes:
            self.refreshes.remove(load)
        if not fails and load.listed:
            self.keep(load.key, value, load.freshness, load.began_at, load.tags)
        self.settle_callers(load, OriginDown() if fails else None, value)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.callers))
        caller.task.cancel()
        self.run(settle())
        assert caller.task.cancelled()
        self.callers.remove(caller)

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.5, 7.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now() + seconds
        while True:
            moments = [min(caller.deadline, caller.soft) for caller in self.callers]
            moments += [load.began_at + LOAD_TIMEOUT for load in self.loads]
            if not moments or min(moments) > end:
                break
            self.run(self.clock.run_for(min(moments) - self.clock.now()))
            self.fall_due()
        self.run(self.clock.run_for(end - self.clock.now()))

    def fall_due(self) -> None:
        now = self.clock.now()
        for caller in [caller for caller in self.callers if caller.soft <= now]:
            caller.soft = inf
            stored = self.stored.get(caller.load.key)
            if stored is not None and now < stored.error_until:  # else it waits for the load after all
                self.callers.remove(caller)
                source = "hit" if now < stored.fresh_until else "stale_slow"
                staleness = max(0.0, now - stored.fresh_until)
                assert caller.task.result() == Lookup(stored.value, source, now - stored.began_at, staleness)
        for caller in [caller for caller in self.callers if caller.deadline <= now]:
            if caller.load.began_at + LOAD_TIMEOUT > now:
                self.callers.remove(caller)
                with pytest.raises(DeadlineExceeded, match="this caller's deadline"):
                    caller.task.result()
        for load in [load for load in self.loads if load.began_at + LOAD_TIMEOUT <= now]:
            self.loads.remove(load)
            if load in self.refreshes:
                self.refreshes.remove(load)
            self.settle_callers(load, DeadlineExceeded(), None)

    @rule(key=keys, value=answers, freshness=freshnesses, tags=tag_sets)
    def write(self, key: str, value: object, freshness: Freshness, tags: frozenset[str]) -> None:
        self.run(self.cache.set(key, value, freshness, tags=tags))
        self.unlist(key)
        self.keep(key, value, freshness, self.clock.now(), tags)

    def is_newer(self, key: str, generation: int) -> bool:
        if generation <= self.generations.get(key, -1):
            return False
        self.generations[key] = generation
        return True

    @rule(key=keys, value=answers, freshness=freshnesses, tags=tag_sets, generation=generations)
    def apply(
        self, key: str, value: object, freshness: Freshness, tags: frozenset[str], generation: int
    ) -> None:
        event = CacheEvent(
            key=key, generation=generation, value=value, freshness=freshness, tags=tuple(sorted(tags))
        )
        newer = self.is_newer(key, generation)
        assert self.run(self.cache.apply(event)) == newer
        if newer and any(self.tag_generations.get(tag, -1) >= generation for tag in tags):
            self.removed(key)
        elif newer:
            self.unlist(key)
            self.keep(key, value, freshness, self.clock.now(), tags)

    @rule(key=keys, kind=st.sampled_from(["expire", "remove"]), generation=generations)
    def apply_an_end(self, key: str, kind: Literal["expire", "remove"], generation: int) -> None:
        newer = self.is_newer(key, generation)
        assert self.run(self.cache.apply(CacheEvent(key=key, generation=generation, kind=kind))) == newer
        if newer and kind == "expire":
            self.expired(key)
        elif newer:
            self.removed(key)

    @rule(tag=st.sampled_from(TAGS), generation=generations)
    def apply_a_removal_of_a_tag(self, tag: str, generation: int) -> None:
        newer = generation > self.tag_generations.get(tag, -1)
        event = CacheEvent(key=tag, generation=generation, kind="remove_tag")
        assert self.run(self.cache.apply(event)) == newer
        if newer:
            self.tag_generations[tag] = generation
            self.tag_removed(tag)

    @rule(tag=st.sampled_from(TAGS))
    def remove_tag(self, tag: str) -> None:
        self.run(self.cache.remove_tag(tag))
        self.tag_removed(tag)

    def tag_removed(self, tag: str) -> None:
        for load in self.loads:
            if tag in load.tags:
                load.listed = False
        for key in [key for key, stored in self.stored.items() if tag in stored.tags]:
            del self.stored[key]

    @rule(key=keys)
    def expire(self, key: str) -> None:
        self.run(self.cache.expire(key))
        self.expired(key)

    def expired(self, key: str) -> None:
        self.unlist(key)
        stored = self.stored.get(key)
        if stored is not None and stored.fresh_until > self.clock.now():
            early = stored.fresh_until - self.clock.now()
            stored.fresh_until -= early
            stored.stale_until -= early
            stored.error_until -= early

    @rule(key=keys)
    def remove(self, key: str) -> None:
        self.run(self.cache.remove(key))
        self.removed(key)

    def removed(self, key: str) -> None:
        self.unlist(key)
        self.stored.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.run(self.cache.clear())
        for key in KEYS:
            self.unlist(key)
        self.stored.clear()

    @invariant()
    def reads_agree(self) -> None:
        for key in KEYS:
            stored = self.stored.get(key)
            fresh = stored is not None and self.clock.now() < stored.fresh_until
            assert self.run(self.cache.get(key, "absent")) == (stored.value if stored and fresh else "absent")

    @invariant()
    def asyncio_has_nothing_to_report(self) -> None:
        assert self.problems == []

    @invariant()
    def staleness_stays_in_its_bound(self) -> None:
        assert self.cache.stats.max_staleness_served < WIDEST


CacheMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_a_cache_does_what_a_dict_with_three_moments_per_value_does = CacheMachine.TestCase
