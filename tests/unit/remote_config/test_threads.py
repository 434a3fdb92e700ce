from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from fairlead_systems.remote_config.threads import DatabaseThreads


@pytest.fixture
def threads() -> Iterator[DatabaseThreads]:
    made = DatabaseThreads("test", 2)
    yield made
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(made.close(within=1.0))


async def test_answers_and_failures_come_back(threads: DatabaseThreads):
    assert await threads.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_call_that_hangs_holds_neither_the_loop_nor_its_caller(threads: DatabaseThreads):
    hangs = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run(hangs.wait), 0.01)
        assert await threads.run(lambda: "the other thread") == "the other thread"
    finally:
        hangs.set()


async def test_caller_who_leaves_before_his_turn_takes_his_call_out(threads: DatabaseThreads):
    hangs, ran = threading.Event(), []
    first = [asyncio.create_task(threads.run(hangs.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    third = asyncio.create_task(threads.run(lambda: ran.append("third")))
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    hangs.set()
    await asyncio.gather(*first)
    assert await threads.run(lambda: "next") == "next"
    assert ran == []


def test_answer_that_comes_after_its_loop_has_closed_harms_nobody(threads: DatabaseThreads):
    hangs, done = threading.Event(), threading.Event()

    def late() -> None:
        hangs.wait()
        done.set()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run(late), 0.01)

    asyncio.run(leave())
    hangs.set()
    assert done.wait(1.0)
    assert asyncio.run(threads.run(lambda: "a new loop")) == "a new loop"


async def test_threads_end_when_closed():
    threads = DatabaseThreads("ending", 1)
    await threads.run(lambda: None)
    (thread,) = [each for each in threading.enumerate() if each.name == "ending-1"]
    assert thread.daemon  # so that a database that hangs does not keep the process
    await threads.close(within=1.0)
    thread.join(0.1)
    assert not thread.is_alive()


async def test_close_does_not_wait_for_a_thread_that_hangs():
    threads, hangs = DatabaseThreads("hanging", 1), threading.Event()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run(hangs.wait), 0.01)
        await asyncio.wait_for(threads.close(within=0.01), 1.0)
    finally:
        hangs.set()
