"""Changes reach other processes' memory; a PostgreSQL that hangs, dies, or loses a notice costs time and no answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from fairlead.testing import PostgresServer
from fairlead_systems.remote_config.configuration import Configuration
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import Change, ConfigTable


@asynccontextmanager
async def running(url: str, directory: Path, **settings: Any) -> AsyncIterator[Configuration]:
    table = ConfigTable(url, PAGE)
    configuration = Configuration(table, PAGE, last_known_good=directory / "kept.json", **settings)
    await configuration.start()
    try:
        yield configuration
    finally:
        await configuration.close()
        table.close()


async def value(configuration: Configuration, user: str, name: str) -> Any:
    return json.loads((await configuration.document(user)).document.body)["values"][name]


async def seconds_until(condition: Callable[[], Any], within: float = 10.0) -> float:
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < within, "did not come to pass"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def put(table: ConfigTable, name: str, to: object, layer: Any = "all", subject: str = "") -> None:
    table.write([Change(layer=layer, subject=subject, name=name, value=to)], actor="test")


async def test_change_by_another_process_is_seen_within_the_poll(
    url: str, table: ConfigTable, tmp_path: Path
):
    put(table, "theme", "dark")
    async with running(url, tmp_path, poll_every=0.2) as configuration:
        assert await value(configuration, "ana", "theme") == "dark"
        await asyncio.to_thread(put, table, "theme", "light")
        await seconds_until(lambda: _is(configuration, "ana", "theme", "light"), within=2.0)
        await asyncio.to_thread(put, table, "theme", "system", "user", "ana")
        await seconds_until(lambda: _is(configuration, "ana", "theme", "system"), within=2.0)
        assert await value(configuration, "ben", "theme") == "light"


async def _is(configuration: Configuration, user: str, name: str, expected: object) -> bool:
    return await value(configuration, user, name) == expected


async def test_notice_brings_a_change_long_before_the_poll(postgres_url: str, tmp_path: Path):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    async with running(postgres_url, tmp_path, poll_every=60.0) as configuration:
        await seconds_until(lambda: _true(configuration.listener.listening))
        assert await value(configuration, "ana", "theme") == "system"
        await asyncio.to_thread(put, table, "theme", "dark")
        assert await seconds_until(lambda: _is(configuration, "ana", "theme", "dark")) < 2.0
    table.close()


async def _true(fact: bool) -> bool:
    return fact


async def test_lost_notice_costs_a_poll_and_no_more(postgres_url: str, tmp_path: Path):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    async with running(postgres_url, tmp_path, poll_every=1.0) as configuration:
        await seconds_until(lambda: _true(configuration.listener.listening))
        assert await value(configuration, "ana", "theme") == "system"
        configuration.follower.notice = lambda: None  # type: ignore[method-assign]  # deaf from now on
        configuration.listener._on_notice = lambda: None
        await asyncio.to_thread(put, table, "theme", "dark")
        assert await seconds_until(lambda: _is(configuration, "ana", "theme", "dark")) < 1.0 + 1.0
    table.close()


async def test_listener_that_is_cut_comes_back_and_asks_what_it_missed(postgres_url: str, tmp_path: Path):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    async with running(postgres_url, tmp_path, poll_every=60.0) as configuration:
        await seconds_until(lambda: _true(configuration.listener.listening))
        assert await value(configuration, "ana", "theme") == "system"

        def cut() -> None:
            with psycopg.connect(postgres_url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'remote_config listener' AND datname = current_database()"
                )

        await asyncio.to_thread(cut)
        await seconds_until(lambda: _true(not configuration.listener.listening))
        await asyncio.to_thread(put, table, "theme", "dark")
        assert await seconds_until(lambda: _is(configuration, "ana", "theme", "dark")) < 5.0
        assert configuration.listener.cut == 1
    table.close()


async def test_postgres_that_hangs_costs_nobody_an_answer_and_is_followed_again(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    put(table, "theme", "dark")
    async with running(postgres_url, tmp_path, poll_every=0.2) as configuration:
        assert await value(configuration, "ana", "theme") == "dark"
        postgres.pause()
        try:
            slowest = 0.0
            for number in range(40):
                began = time.monotonic()
                stranger = await configuration.document(f"stranger{number}")
                slowest = max(slowest, time.monotonic() - began)
                assert json.loads(stranger.document.body)["values"]["theme"] == "dark"
                assert stranger.degraded_by
            known = await configuration.document("ana")
            assert (known.degraded_by, known.hit) == ("", True)
            assert slowest < 1.0
        finally:
            postgres.resume()
        await asyncio.to_thread(put, table, "theme", "light")
        await seconds_until(lambda: _is(configuration, "ana", "theme", "light"))
        await seconds_until(lambda: _fresh(configuration, "a-stranger-no-more"))
    table.close()


async def _fresh(configuration: Configuration, user: str) -> bool:
    return not (await configuration.document(user)).degraded_by


async def test_process_that_starts_while_the_database_is_gone_serves_the_last_known_good(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    put(table, "theme", "dark")
    async with running(postgres_url, tmp_path):
        await seconds_until(lambda: _true((tmp_path / "kept.json").exists()))
    for away in (postgres.kill, postgres.pause):
        away()
        try:
            began = time.monotonic()
            async with running(postgres_url, tmp_path, poll_every=0.2) as configuration:
                answer = await configuration.document("ana")
                assert time.monotonic() - began < 2.5
                assert json.loads(answer.document.body)["values"]["theme"] == "dark"
                assert answer.degraded_by
                assert configuration.source == "last_known_good"
                postgres.resume() if postgres.pid else postgres.restart()
                await seconds_until(lambda: _fresh(configuration, "ana"))
                assert configuration.source == "table"
        finally:
            postgres.resume() if postgres.pid else postgres.restart()
    table.close()


async def test_sqlite_file_that_is_taken_away_is_survived(tmp_path: Path):
    file = tmp_path / "config.db"
    table = ConfigTable(f"sqlite:///{file}", PAGE)
    table.create()
    put(table, "theme", "dark")
    table.close()
    async with running(f"sqlite:///{file}", tmp_path):
        await seconds_until(lambda: _true((tmp_path / "kept.json").exists()))
    file.rename(tmp_path / "away.db")
    async with running(f"sqlite:///{file}", tmp_path, poll_every=0.1) as configuration:
        assert await value(configuration, "ana", "theme") == "dark"
        assert configuration.source == "last_known_good"
        (tmp_path / "away.db").rename(file)
        await seconds_until(lambda: _fresh(configuration, "ana"))


async def test_backup_that_is_played_back_is_what_counts(url: str, table: ConfigTable, tmp_path: Path):
    for theme in ("dark", "light", "dark", "light"):
        put(table, "theme", theme)
    async with running(url, tmp_path, poll_every=0.1) as configuration:
        assert await value(configuration, "ana", "theme") == "light"

        def play_back() -> None:
            with table.engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM remote_config WHERE version > 1")
                connection.exec_driver_sql("UPDATE remote_config SET superseded_by = NULL")

        await asyncio.to_thread(play_back)
        await seconds_until(lambda: _is(configuration, "ana", "theme", "dark"))
        assert configuration.follower.forgot_all == 1


async def test_import_of_many_entries_is_followed_by_forgetting(tmp_path: Path):
    count = 25_000
    url = f"sqlite:///{tmp_path / 'config'}.db"
    table = ConfigTable(url, PAGE)
    table.create()
    async with running(url, tmp_path, poll_every=0.1) as configuration:
        assert await value(configuration, "u1", "trial.days") == 14
        changes = (
            Change(layer="user", subject=f"u{each}", name="trial.days", value=7) for each in range(count)
        )
        await asyncio.to_thread(table.fill, changes, actor="import")
        await seconds_until(lambda: _is(configuration, "u1", "trial.days", 7))
        assert configuration.follower.seen == count
    table.close()
