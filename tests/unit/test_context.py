from __future__ import annotations

import asyncio
import copy
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context

import pytest

from fairlead.clock import ManualClock
from fairlead.context import Priority, RequestContext, current, detached, request_context
from fairlead.deadline import Deadline

OUTER = RequestContext(request_id="outer", targeting_key="user-1", priority=Priority.CRITICAL)
INNER = RequestContext(request_id="inner")
NOBODY = RequestContext()


def test_outside_a_request_nobody_asks_and_nothing_expires():
    assert current() == NOBODY
    assert current().deadline == Deadline.never()


def test_blocks_nest_and_give_back_what_was_there():
    with request_context(OUTER) as given:
        assert given is current() is OUTER
        with request_context(INNER):
            assert current() is INNER
        assert current() is OUTER
    assert current() == NOBODY


def test_block_that_raises_gives_back_what_was_there():
    with pytest.raises(ZeroDivisionError), request_context(OUTER):
        _ = 1 / 0
    assert current() == NOBODY


def test_detached_work_sees_no_request_and_the_request_goes_on_after_it():
    with request_context(OUTER):
        with detached():
            assert current() == NOBODY
        assert current() is OUTER


async def test_task_inherits_its_starters_request_and_keeps_it_when_the_block_ends():
    go = asyncio.Event()

    async def work() -> RequestContext:
        await go.wait()
        return current()

    with request_context(OUTER):
        task = asyncio.create_task(work())
        with detached():
            free = asyncio.create_task(work())
    go.set()
    assert await task is OUTER
    assert await free == NOBODY


async def test_tasks_do_not_see_each_others_requests():
    both = asyncio.Barrier(2)

    async def serve(context: RequestContext) -> RequestContext:
        with request_context(context):
            await both.wait()
            return current()

    assert await asyncio.gather(serve(OUTER), serve(INNER)) == [OUTER, INNER]
    assert current() == NOBODY


async def test_thread_started_by_a_request_inherits_it():
    with request_context(OUTER):
        assert await asyncio.to_thread(current) is OUTER


def test_outer_block_restores_what_an_unfinished_generator_left_behind():
    def forgotten() -> Iterator[None]:
        with request_context(INNER):
            yield

    with request_context(OUTER):
        generator = forgotten()
        next(generator)
    assert current() == NOBODY
    copy_context().run(generator.close)


async def test_generator_closed_by_another_task_ends_quietly_and_harms_neither():
    cleaned: list[str] = []

    async def stream() -> AsyncIterator[int]:
        try:
            with request_context(INNER):
                yield 1
        finally:
            cleaned.append("closed")

    async def close() -> RequestContext:
        with request_context(OUTER):
            await generator.aclose()
            return current()

    generator = stream()
    async with asyncio.timeout(5):
        first = asyncio.create_task(anext(generator))
        assert await first == 1
        assert await asyncio.create_task(close()) is OUTER
    assert cleaned == ["closed"]
    assert current() == NOBODY


async def test_cancellation_survives_a_block_that_is_left_in_another_task():
    entered = request_context(INNER)
    await asyncio.create_task(asyncio.to_thread(entered.__enter__))

    async def leave() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            entered.__exit__(*sys.exc_info())

    task = asyncio.create_task(leave())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_least_urgent_work_is_refused_first():
    assert sorted(Priority) == [Priority.BACKGROUND, Priority.NORMAL, Priority.CRITICAL]


def test_request_is_a_value():
    request = RequestContext(request_id="r", deadline=Deadline(5.0))
    assert request == RequestContext(request_id="r", deadline=Deadline(5.0))
    assert hash(request) == hash(RequestContext(request_id="r", deadline=Deadline(5.0)))
    carried = pickle.loads(pickle.dumps(request))  # noqa: S301  # written one call earlier
    assert copy.deepcopy(request) == carried == request
    assert request != RequestContext(request_id="r", deadline=Deadline(5.0, ManualClock()))
    with pytest.raises(AttributeError):
        request.request_id = "another"  # type: ignore[misc]  # that it is frozen is what is tested
