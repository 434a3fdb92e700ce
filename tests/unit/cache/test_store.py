"""The contract of the port `Store`, run on each driver that needs no server."""

from __future__ import annotations

import pytest

from fairlead.cache import Entry, Freshness, MemoryStore, Store

FRESHNESS = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0, stale_if_error=60.0)


def entry(value: object, now: float = 100.0) -> Entry[object]:
    return Entry.keep(value, FRESHNESS, began_at=now, now=now, draw=0.0)


@pytest.fixture(params=[MemoryStore])
def store(request: pytest.FixtureRequest) -> Store:
    made: Store = request.param()
    return made


async def test_an_entry_is_read_back_with_its_moments(store: Store) -> None:
    await store.set("k", entry("value"))
    found = await store.get("k")
    assert found is not None
    assert (found.value, found.began_at, found.stored_at) == ("value", 100.0, 100.0)
    assert (found.fresh_until, found.stale_until, found.error_until) == (110.0, 115.0, 170.0)


async def test_an_unknown_key_has_no_entry(store: Store) -> None:
    assert await store.get("k") is None


async def test_a_stored_none_is_told_from_no_entry(store: Store) -> None:
    await store.set("k", entry(None))
    found = await store.get("k")
    assert found is not None
    assert found.value is None


async def test_setting_replaces_the_whole_entry(store: Store) -> None:
    await store.set("k", entry("old"))
    await store.set("k", entry("new", now=200.0))
    found = await store.get("k")
    assert found is not None
    assert (found.value, found.fresh_until) == ("new", 210.0)


async def test_expiring_moves_the_windows_and_keeps_their_lengths(store: Store) -> None:
    await store.set("k", entry("value"))
    await store.expire("k", 103.0)
    found = await store.get("k")
    assert found is not None
    assert (found.fresh_until, found.stale_until, found.error_until) == (103.0, 108.0, 163.0)


async def test_expiring_what_is_stale_or_absent_changes_nothing(store: Store) -> None:
    await store.set("k", entry("value"))
    await store.expire("k", 112.0)
    await store.expire("absent", 112.0)
    found = await store.get("k")
    assert found is not None
    assert found.fresh_until == 110.0
    assert await store.get("absent") is None


async def test_removing_forgets_one_key_and_clearing_forgets_all(store: Store) -> None:
    for key in ("a", "b", "c"):
        await store.set(key, entry(key))
    await store.remove("a")
    await store.remove("never there")
    assert [await store.get(key) is not None for key in ("a", "b", "c")] == [False, True, True]
    await store.clear()
    assert [await store.get(key) for key in ("a", "b", "c")] == [None, None, None]
