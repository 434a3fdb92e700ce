"""The configuration on a clock that the test moves, over a real SQLite file that can be told to fail or to hang."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import FairleadError, InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render
from fairlead_systems.remote_config.configuration import Configuration, Served
from fairlead_systems.remote_config.mechanisms import Mechanisms
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import Change, ConfigTable, TableUnavailable


class Table(ConfigTable):
    """Counts its reads; may fail, or hang until `hangs` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", PAGE)
        self.fails = False
        self.hangs: threading.Event | None = None
        self.reads: list[tuple[Any, ...]] = []

    def _touch(self, *what: Any) -> None:
        self.reads.append(what)
        if self.fails:
            raise TableUnavailable("no answer")
        if self.hangs is not None:
            self.hangs.wait()

    def read(self, layer, subject):
        self._touch(layer, subject)
        return super().read(layer, subject)

    def read_shared(self):
        self._touch("shared")
        return super().read_shared()

    def changed_since(self, seen):
        self._touch("since", seen)
        return super().changed_since(seen)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1_000.0)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(tmp_path / "config.db")
    table.create()
    put(table, "all", "", theme="dark")
    put(table, "segment", "power", **{"feed.page_size": 50})
    put(table, "user", "ana", segment="power")
    put(table, "user", "ben", theme="light")
    return table


def put(table: ConfigTable, layer: Any, subject: str, **values: object) -> int:
    changes = [Change(layer=layer, subject=subject, name=name, value=value) for name, value in values.items()]
    return table.write(changes, actor="test")


def made(table: Table, clock: ManualClock, tmp_path: Path, **settings: Any) -> Configuration:
    return Configuration(
        table, PAGE, last_known_good=tmp_path / "kept.json", clock=clock, rng=random.Random(1), **settings
    )


@pytest.fixture
async def configuration(table: Table, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Configuration]:
    configuration = made(table, clock, tmp_path)
    await configuration.start()
    await until((tmp_path / "kept.json").exists)
    yield configuration
    await configuration.close()
    table.close()


async def until(condition) -> None:
    """Real threads answer in their own time."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("did not come to pass")


async def moved(clock: ManualClock, seconds: float, waiting: asyncio.Task[Any]) -> Any:
    """The result of `waiting`, which takes at most so many seconds of the clock, and some turns of real threads."""
    end = clock.now() + seconds
    while not waiting.done() and clock.now() < end:
        await asyncio.sleep(0.002)
        await clock.run_for(0.005)
    return await asyncio.wait_for(waiting, 2.0)


def values(served: Served) -> dict[str, Any]:
    return json.loads(served.document.body)["values"]


def reads_of(table: Table, *what: Any) -> int:
    return table.reads.count(what)


async def test_user_gets_his_layers(configuration):
    ana, ben, nobody = [await configuration.document(user) for user in ("ana", "ben", "nobody")]
    assert (values(ana)["theme"], values(ana)["feed.page_size"]) == ("dark", 50)
    assert (values(ben)["theme"], values(ben)["feed.page_size"]) == ("light", 20)
    assert (values(nobody)["theme"], values(nobody)["feed.page_size"]) == ("dark", 20)
    assert (ana.degraded_by, ana.staleness, configuration.source) == ("", 0.0, "table")


async def test_thousand_who_ask_at_once_are_one_read(configuration, table):
    answers = await asyncio.gather(*(configuration.document("ana") for _ in range(1_000)))
    assert len({answer.document.etag for answer in answers}) == 1
    assert reads_of(table, "user", "ana") == 1


async def test_user_of_whom_the_table_says_nothing_is_asked_about_once(configuration, table):
    for _ in range(3):
        await configuration.document("nobody")
    assert reads_of(table, "user", "nobody") == 1


async def test_change_is_seen_within_a_poll_and_shown_stale_at_most_once(configuration, table, clock):
    await configuration.document("ana")
    await configuration.document("ben")
    put(table, "user", "ana", theme="light")
    asked = reads_of(table, "user", "ben")
    polls = configuration.follower.polls
    await clock.run_for(0.5)
    await until(lambda: configuration.follower.polls > polls and configuration.follower.seen == 5)
    first = await configuration.document("ana")
    assert first.staleness <= 1.0
    await until(lambda: reads_of(table, "user", "ana") == 2)
    await asyncio.sleep(0.01)
    assert values(await configuration.document("ana"))["theme"] == "light"
    assert reads_of(table, "user", "ben") == asked  # nobody else was forgotten


async def test_change_for_all_reaches_those_who_are_in_memory(configuration, table, clock):
    before = await configuration.document("nobody")
    put(table, "all", "", theme="light")
    await clock.run_for(0.5)
    await until(lambda: configuration.follower.seen == 5)
    after = await configuration.document("nobody")
    assert (values(before)["theme"], values(after)["theme"]) == ("dark", "light")
    assert before.document.etag != after.document.etag
    assert reads_of(table, "user", "nobody") == 1


async def test_process_reads_its_own_write(configuration):
    await configuration.document("nobody")
    version = await configuration.write([Change(layer="all", name="theme", value="light")], actor="ana")
    answer = await configuration.document("nobody")
    assert (version, answer.version, values(answer)["theme"]) == (5, 5, "light")


async def test_process_reads_its_own_write_of_a_user_at_once(configuration):
    assert values(await configuration.document("ben"))["theme"] == "light"
    await configuration.write([Change(layer="user", subject="ben", name="theme", value="dark")], actor="ben")
    assert values(await configuration.document("ben"))["theme"] == "dark"


async def test_write_that_the_schema_refuses_changes_nothing(configuration, table):
    with pytest.raises(InvalidInput, match="theme"):
        await configuration.write([Change(layer="all", name="theme", value="purple")], actor="ana")
    assert table.version() == 4


async def test_table_that_fails_costs_freshness_and_no_answer(configuration, table, clock):
    await configuration.document("ana")
    table.fails = True
    hit = await configuration.document("ana")
    assert (hit.degraded_by, hit.hit) == ("", True)
    asking = asyncio.create_task(configuration.document("ben"))
    stranger = await moved(clock, 0.05, asking)
    assert stranger.degraded_by
    assert values(stranger)["theme"] == "dark"  # of all, for want of his own
    await clock.run_for(40.0)
    old = await moved(clock, 0.3, asyncio.create_task(configuration.document("ana")))
    assert old.degraded_by
    assert values(old)["feed.page_size"] == 50


async def test_table_that_hangs_costs_a_stranger_one_timeout_and_then_nothing(configuration, table, clock):
    table.hangs = threading.Event()
    try:
        for number in range(5):
            asking = asyncio.create_task(configuration.document(f"stranger{number}"))
            answer = await moved(clock, 0.22, asking)
            assert answer.degraded_by
        refused = await configuration.document("the-next")
        assert refused.degraded_by in ("CircuitOpen", "DeadlineExceeded")
    finally:
        table.hangs.set()
        table.hangs = None


async def test_age_counts_from_the_last_look_that_brought_no_change(configuration, table, clock):
    await configuration.document("ana")
    ages = []
    for _ in range(12):
        polls = configuration.follower.polls
        await clock.run_for(0.5)
        await until(lambda polls=polls: configuration.follower.polls > polls)
        await asyncio.sleep(0.005)
        ages.append((await configuration.document("ana")).age)
    # On a busy machine a look may end at its deadline, as the clock does not wait for the table's thread.
    assert min(ages[7:]) <= 0.6
    table.fails = True
    await clock.run_for(5.0)
    age = (await configuration.document("ana")).age
    assert age is not None
    assert age >= 5.0


async def test_start_without_the_table_serves_what_was_last_known_good(configuration, table, clock, tmp_path):
    table.fails = True
    again = made(table, clock, tmp_path)
    await moved(clock, 1.1, asyncio.create_task(again.start()))
    try:
        assert again.source == "last_known_good"
        answer = await moved(clock, 0.3, asyncio.create_task(again.document("ana")))
        assert answer.degraded_by
        assert values(answer)["theme"] == "dark"
        assert answer.version == 4
        table.fails = False
        await until_table(again, clock)
        assert values(await again.document("ana"))["feed.page_size"] == 50
    finally:
        await again.close()


async def until_table(configuration: Configuration, clock: ManualClock) -> None:
    for _ in range(200):
        await clock.run_for(0.5)
        await asyncio.sleep(0.002)
        if configuration.source == "table":
            await asyncio.sleep(0.01)
            return
    raise AssertionError("the table was not found again")


async def test_start_with_neither_table_nor_file_serves_the_defaults(table, clock, tmp_path):
    table.fails = True
    configuration = made(table, clock, tmp_path)
    await moved(clock, 1.1, asyncio.create_task(configuration.start()))
    try:
        answer = await moved(clock, 1.0, asyncio.create_task(configuration.document("ana")))
        assert configuration.source == "defaults"
        assert answer.degraded_by
        assert values(answer)["theme"] == "system"
    finally:
        await configuration.close()
        table.close()


async def test_broken_file_is_counted_and_does_not_stop_the_start(table, clock, tmp_path):
    (tmp_path / "kept.json").write_text("{")
    configuration = made(table, clock, tmp_path)
    await configuration.start()
    try:
        assert (configuration.file_failures, configuration.source) == (1, "table")
        await until(lambda: (tmp_path / "kept.json").read_text().startswith('{"schema"'))
    finally:
        await configuration.close()
        table.close()


async def test_without_last_known_good_a_table_that_fails_is_an_error(table, clock, tmp_path):
    configuration = made(table, clock, tmp_path, uses=Mechanisms(last_known_good=False))
    await configuration.start()
    try:
        table.fails = True
        asking = asyncio.create_task(configuration.document("ana"))
        with pytest.raises((TableUnavailable, FairleadError)):
            await moved(clock, 0.3, asking)
        assert not (tmp_path / "kept.json").exists()
    finally:
        await configuration.close()
        table.close()


async def test_without_cached_response_every_request_reads(table, clock, tmp_path):
    configuration = made(table, clock, tmp_path, uses=Mechanisms(cached_response=False))
    await configuration.start()
    try:
        for _ in range(3):
            await configuration.document("ana")
        assert reads_of(table, "user", "ana") == 3
    finally:
        await configuration.close()
        table.close()


async def test_without_negative_entries_nobody_is_asked_about_each_time(table, clock, tmp_path):
    configuration = made(table, clock, tmp_path, uses=Mechanisms(negative_entries=False))
    await configuration.start()
    try:
        for _ in range(3):
            await configuration.document("nobody")
            await configuration.document("ana")
        assert reads_of(table, "user", "nobody") == 3
        assert reads_of(table, "user", "ana") == 1
    finally:
        await configuration.close()
        table.close()


async def test_caller_who_leaves_harms_nobody_who_waits_for_the_same(configuration, table):
    table.hangs = threading.Event()
    first = asyncio.create_task(configuration.document("ana"))
    await until(lambda: reads_of(table, "user", "ana"))
    second = asyncio.create_task(configuration.document("ana"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    table.hangs.set()
    table.hangs = None
    assert values(await asyncio.wait_for(second, 2.0))["feed.page_size"] == 50


async def test_close_ends_every_task(configuration):
    await configuration.document("ana")
    await configuration.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_state_is_exported(configuration):
    registry = MetricRegistry()
    configuration.export(registry)
    text = render(registry)
    assert "remote_config_version 4" in text
    assert "remote_config_polls_total" in text
