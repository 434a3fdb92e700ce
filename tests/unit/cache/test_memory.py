"""The bounds of the memory tier, and who leaves when one is met."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache import Cache, Entry, Freshness, MemoryStore
from fairlead.cache.footprint import footprint
from fairlead.cache.tiny_lfu import Frequencies
from fairlead.errors import InvalidInput

FOREVER = Freshness(ttl=1e6, jitter=0.0)


def entry(value: object = None, tag: str = "") -> Entry[Any]:
    tags = frozenset({tag} - {""})
    return Entry.keep(value, FOREVER, began_at=0.0, now=0.0, draw=0.0, tags=tags)


def ask(store: MemoryStore, key: Hashable) -> bool:
    """What a cache does for one request: a hit touches, a miss puts; whether it was a hit."""
    if store.entries.get(key) is not None:
        store.touch(key)
        return True
    store.put(key, entry(b"", tag="asked"))
    return False


def test_the_least_recently_used_leaves_first() -> None:
    store = MemoryStore(2)
    ask(store, "a")
    ask(store, "b")
    ask(store, "a")
    ask(store, "c")
    assert list(store.entries) == ["a", "c"]
    assert store.evicted == 1


def test_bytes_are_bounded_as_told() -> None:
    store = MemoryStore(max_bytes=10, size_of=len)
    assert store.put("a", entry(b"1234")) == 0
    assert store.put("b", entry(b"1234")) == 0
    assert store.bytes == 8
    assert store.put("c", entry(b"1234567")) == 2
    assert (list(store.entries), store.bytes, store.evicted, store.rejected) == (["c"], 7, 2, 0)


def test_an_entry_larger_than_the_bound_is_not_kept_nor_is_what_it_replaces() -> None:
    store = MemoryStore(max_bytes=10, size_of=len)
    store.put("a", entry(b"old"))
    store.put("b", entry(b"b"))
    assert store.put("a", entry(b"x" * 11)) == 0
    assert (list(store.entries), store.bytes, store.rejected) == (["b"], 1, 1)


def test_a_value_that_cannot_be_sized_is_handed_out_and_not_kept() -> None:
    async def main() -> None:
        cache = Cache(MemoryStore(max_bytes=10, size_of=len))

        async def load() -> int:
            return 7

        assert await cache.get_or_load("k", load, FOREVER) == 7
        assert await cache.get("k") is None

    asyncio.run(main())
    for wrong in (-1, 1.5, float("nan"), True, None):
        store = MemoryStore(max_bytes=10, size_of=lambda _, size=wrong: size)  # type: ignore[misc]
        store.put("k", entry())
        assert (len(store), store.bytes, store.rejected) == (0, 0, 1)


def test_the_estimate_counts_what_a_value_holds_and_each_object_once() -> None:
    big = b"x" * 1000
    assert footprint((big, big)) < 1300
    assert footprint({"a": [big], "b": {1: (b"y" * 1000,)}}) > 2000
    loop: list[Any] = [big]
    loop.append(loop)
    assert 1000 < footprint(loop) < 1300
    store = MemoryStore(max_bytes=10_000)
    for key in range(100):
        store.put(key, entry(b"x" * 700))
    assert 8 <= len(store) <= 10
    assert store.bytes <= 10_000


@pytest.mark.parametrize("admission", ["always", "tiny_lfu"])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("ppggdetc"), st.integers(0, 12), st.integers(0, 9)), max_size=60
    ),
    max_entries=st.integers(1, 6),
    max_bytes=st.none() | st.integers(1, 20),
)
def test_bounds_and_counters_hold_whatever_comes(
    admission: Any, steps: list[tuple[str, int, int]], max_entries: int, max_bytes: int | None
) -> None:
    sized: dict[str, Any] = {} if max_bytes is None else {"max_bytes": max_bytes, "size_of": len}
    store = MemoryStore(max_entries, admission=admission, **sized)
    for step, key, size in steps:
        if step == "p":
            evicted = store.evicted
            assert store.put(key, entry(b"x" * size, tag=str(key % 3))) == store.evicted - evicted
        elif step == "g":
            ask(store, key)
        elif step == "d":
            store.drop(key)
        elif step == "e":
            store.expire(key, 1.0)
        elif step == "t":
            store.drop_tag(str(key % 3))
        else:
            store.clear()
        assert len(store) <= max_entries
        assert set(store.entries) == {key for keys in store._tagged.values() for key in keys}
        if max_bytes is not None:
            assert store.bytes == sum(len(each.value) for each in store.entries.values()) <= max_bytes
        order = store._by_frequency
        if order is not None:
            segments = [*order._window, *order._probation, *order._protected]
            assert sorted(map(str, segments)) == sorted(map(str, store.entries))


def test_a_scan_does_not_push_out_what_is_asked_for_often() -> None:
    def kept(admission: Any) -> int:
        store = MemoryStore(100, admission=admission)
        for _ in range(10):
            for key in range(50):
                ask(store, key)
        for key in range(1_000, 2_000):
            ask(store, key)
        return sum(key in store.entries for key in range(50))

    assert kept("always") == 0
    assert kept("tiny_lfu") >= 45


def test_admission_by_frequency_hits_more_of_a_zipf_stream() -> None:
    rng = random.Random(3)
    keys = rng.choices(range(2_000), [1 / rank**0.9 for rank in range(1, 2_001)], k=20_000)

    def hits(admission: Any) -> int:
        store = MemoryStore(50, admission=admission)
        return sum(ask(store, key) for key in keys)

    assert hits("tiny_lfu") > 1.1 * hits("always")


def test_what_was_hot_leaves_once_others_are_hotter() -> None:
    store = MemoryStore(20, admission="tiny_lfu")
    for _ in range(50):
        for key in range(20):
            ask(store, ("old", key))
    for _ in range(200):
        for key in range(20):
            ask(store, ("new", key))
    assert sum(("new", key) in store.entries for key in range(20)) >= 18


def test_what_has_expired_keeps_no_newcomer_out_however_often_it_was_asked_for() -> None:
    minute = Freshness(ttl=60.0, jitter=0.0)

    def ask_at(store: MemoryStore, key: object, now: float) -> None:
        if (held := store.entries.get(key)) is not None and not held.is_dead(now):
            store.touch(key)
        else:
            store.put(key, Entry.keep(None, minute, began_at=now, now=now, draw=0.0))

    store = MemoryStore(20, admission="tiny_lfu")
    for _ in range(50):
        for key in range(20):
            ask_at(store, ("expired", key), 0.0)
    for key in range(20):
        ask_at(store, ("new", key), 59.9)  # none of them was asked for often enough
    assert sum(("new", key) in store.entries for key in range(20)) <= 2
    for key in range(20):
        ask_at(store, ("new", key), 60.0)
    assert sum(("new", key) in store.entries for key in range(20)) >= 18
    assert len(store) == 20


@given(st.lists(st.integers(0, 30), max_size=200))
def test_a_frequency_is_never_counted_too_low_before_it_ages(keys: list[int]) -> None:
    counted = Frequencies(1_000)
    for key in keys:
        counted.add(key)
    for key in set(keys):
        assert counted.of(key) >= min(keys.count(key), 15)


def test_frequencies_fade() -> None:
    counted = Frequencies(64)
    for _ in range(15):
        counted.add("old")
    for key in range(64 * 10):
        counted.add(key)
    assert counted.of("old") < 15


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_entries": 0},
        {"max_entries": True},
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"size_of": len},
        {"admission": "lfu"},
    ],
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        MemoryStore(**wrong)
