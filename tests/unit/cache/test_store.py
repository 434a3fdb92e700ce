"""The tier in this process: what is kept, how it ages and how tags find it."""

from __future__ import annotations

import pytest

from fairlead.cache import Entry, Freshness, MemoryStore

FRESHNESS = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0, stale_if_error=60.0)


def entry(value: object, now: float = 100.0, tags: tuple[str, ...] = ()) -> Entry[object]:
    return Entry.keep(value, FRESHNESS, began_at=now, now=now, draw=0.0, tags=frozenset(tags))


@pytest.fixture(
    params=[{}, {"admission": "tiny_lfu"}, {"max_bytes": 10_000}], ids=["lru", "tiny_lfu", "bytes"]
)
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(**request.param)


def test_an_entry_is_read_back_with_its_moments(store: MemoryStore) -> None:
    store.put("k", entry("value"))
    found = store.entries.get("k")
    assert found is not None
    assert (found.value, found.began_at, found.stored_at) == ("value", 100.0, 100.0)
    assert (found.fresh_until, found.stale_until, found.error_until) == (110.0, 115.0, 170.0)


def test_an_unknown_key_has_no_entry(store: MemoryStore) -> None:
    assert store.entries.get("k") is None


def test_a_stored_none_is_told_from_no_entry(store: MemoryStore) -> None:
    store.put("k", entry(None))
    found = store.entries.get("k")
    assert found is not None
    assert found.value is None


def test_setting_replaces_the_whole_entry(store: MemoryStore) -> None:
    store.put("k", entry("old"))
    store.put("k", entry("new", now=200.0))
    found = store.entries.get("k")
    assert found is not None
    assert (found.value, found.fresh_until) == ("new", 210.0)


def test_expiring_moves_the_windows_and_keeps_their_lengths(store: MemoryStore) -> None:
    store.put("k", entry("value"))
    store.expire("k", 103.0)
    found = store.entries.get("k")
    assert found is not None
    assert (found.fresh_until, found.stale_until, found.error_until) == (103.0, 108.0, 163.0)


def test_expiring_what_is_stale_or_absent_changes_nothing(store: MemoryStore) -> None:
    store.put("k", entry("value"))
    store.expire("k", 112.0)
    store.expire("absent", 112.0)
    found = store.entries.get("k")
    assert found is not None
    assert found.fresh_until == 110.0
    assert store.entries.get("absent") is None


def test_removing_forgets_one_key_and_clearing_forgets_all(store: MemoryStore) -> None:
    for key in ("a", "b", "c"):
        store.put(key, entry(key))
    store.drop("a")
    store.drop("never there")
    assert [store.entries.get(key) is not None for key in ("a", "b", "c")] == [False, True, True]
    store.clear()
    assert [store.entries.get(key) for key in ("a", "b", "c")] == [None, None, None]


def test_a_tag_forgets_every_entry_that_bears_it_and_no_other(store: MemoryStore) -> None:
    store.put("a", entry("a", tags=("red", "round")))
    store.put("b", entry("b", tags=("red",)))
    store.put("c", entry("c", tags=("round",)))
    store.put("d", entry("d"))
    assert store.drop_tag("red") == 2
    assert sorted(map(str, store.entries)) == ["c", "d"]
    assert store.drop_tag("red") == 0


def test_an_entry_that_replaced_another_bears_only_its_own_tags(store: MemoryStore) -> None:
    store.put("a", entry("a", tags=("old", "both")))
    store.put("a", entry("a", tags=("both", "new")))
    assert store.drop_tag("old") == 0
    assert store.drop_tag("new") == 1


def test_an_expired_entry_keeps_its_tags(store: MemoryStore) -> None:
    store.put("a", entry("a", tags=("red",)))
    store.expire("a", 103.0)
    assert store.drop_tag("red") == 1


def test_the_index_of_tags_lives_no_longer_than_the_entries() -> None:
    store = MemoryStore(max_entries=2)
    for number in range(50):
        store.put(number, entry(number, tags=(f"tag {number}", "all")))
    assert len(store._tagged) == 3
    assert store._tagged["all"] == {48, 49}
    store.drop(48)
    store.clear()
    assert store._tagged == {}
