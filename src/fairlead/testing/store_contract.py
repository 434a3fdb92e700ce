"""What every `Store` must do, as tests that a driver's author runs against a real server.

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def stores(self):
            yield MyStore(...), MyStore(...)

The two stores stand for two processes: neither knows what the other did but through the server. Tests are
coroutines (pytest-asyncio, `asyncio_mode = "auto"`) on the system's clock, and every key is new, so the server
need not be empty.
"""

from __future__ import annotations

import asyncio
import time
import uuid

from fairlead.cache.entry import Entry
from fairlead.cache.freshness import Freshness
from fairlead.cache.store import Invalidation, Put, Store

__all__ = ["StoreContract"]

_FRESHNESS = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0, stale_if_error=60.0)
_PRECISION = 0.05  # seconds; two processes learn each other's moments through the server's clock

Stores = tuple[Store, Store]


def _entry(value: object, *, age: float = 0.0, tags: frozenset[str] = frozenset()) -> Entry[object]:
    """Loaded `age` seconds ago."""
    now = time.monotonic() - age
    made = Entry.keep(value, _FRESHNESS, began_at=now, now=now, draw=0.0)
    return Entry(
        value,
        began_at=made.began_at,
        stored_at=made.stored_at,
        fresh_until=made.fresh_until,
        stale_until=made.stale_until,
        error_until=made.error_until,
        tags=tags,
    )


def _key() -> tuple[str, str]:
    return ("contract", uuid.uuid4().hex)


async def _value(store: Store, key: object) -> object:
    found = (await store.get_many([key]))[0]
    return "absent" if found is None else found.value


class StoreContract:
    """Subclass it with a fixture `stores` that yields two stores on one server."""

    async def test_an_unknown_key_has_no_entry(self, stores: Stores) -> None:
        assert await stores[0].get_many([_key(), _key()]) == [None, None]

    async def test_a_question_without_keys_asks_whether_the_tier_answers(self, stores: Stores) -> None:
        assert await stores[0].get_many([]) == []

    async def test_another_process_reads_the_value_with_its_moments_and_tags(self, stores: Stores) -> None:
        key, entry = _key(), _entry("value", age=2.0, tags=frozenset({"a", "b"}))
        assert await stores[0].put_many([Put(key, entry)]) == 0
        (found,) = await stores[1].get_many([key])
        assert found is not None
        assert (found.value, found.tags) == ("value", entry.tags)
        for moment in ("began_at", "stored_at", "fresh_until", "stale_until", "error_until"):
            early = getattr(entry, moment) - getattr(found, moment)
            assert 0.0 <= early < _PRECISION, (moment, early)

    async def test_a_stored_none_is_told_from_no_entry(self, stores: Stores) -> None:
        key = _key()
        await stores[0].put_many([Put(key, _entry(None))])
        assert await _value(stores[1], key) is None

    async def test_many_keys_are_answered_in_order_the_same_one_twice(self, stores: Stores) -> None:
        keys = [_key() for _ in range(300)]
        await stores[0].put_many([Put(key, _entry(n)) for n, key in enumerate(keys)])
        asked = [*reversed(keys), _key(), keys[0]]
        found = await stores[1].get_many(asked)
        assert [each and each.value for each in found] == [*reversed(range(300)), None, 0]

    async def test_keys_of_different_kinds_with_equal_text_are_different(self, stores: Stores) -> None:
        mark = uuid.uuid4().hex
        keys = [
            (mark, 1),
            (mark, "1"),
            (mark, b"1"),
            (mark, ("1",)),
            (mark, None),
            (mark, "{}"),
            (mark, "}{"),
        ]
        await stores[0].put_many([Put(key, _entry(n)) for n, key in enumerate(keys)])
        assert [each and each.value for each in await stores[1].get_many(keys)] == list(range(len(keys)))

    async def test_a_later_load_wins_whatever_order_they_are_stored_in(self, stores: Stores) -> None:
        key = _key()
        await stores[0].put_many([Put(key, _entry("new"))])
        assert await stores[1].put_many([Put(key, _entry("old", age=1.0))]) == 1
        assert await _value(stores[1], key) == "new"
        await stores[1].put_many([Put(key, _entry("newest", age=-_PRECISION))])
        assert await _value(stores[0], key) == "newest"

    async def test_no_value_outlives_its_last_bound(self, stores: Stores) -> None:
        gone, going = _key(), _key()
        await stores[0].put_many([Put(gone, _entry("v", age=71.0)), Put(going, _entry("v", age=69.8))])
        assert await _value(stores[1], gone) == "absent"
        await asyncio.sleep(0.25)
        assert await _value(stores[1], going) == "absent"

    async def test_a_removed_value_is_gone_for_every_process(self, stores: Stores) -> None:
        key = _key()
        await stores[0].put_many([Put(key, _entry("v"))])
        await stores[1].invalidate([Invalidation("remove", key, time.monotonic())])
        assert await _value(stores[0], key) == "absent"
        await stores[1].invalidate([Invalidation("remove", key, time.monotonic())])

    async def test_a_load_that_began_before_a_removal_is_refused(self, stores: Stores) -> None:
        key, entry = _key(), _entry("old")
        await stores[1].invalidate([Invalidation("remove", key, time.monotonic())])
        assert await stores[0].put_many([Put(key, entry)]) == 1
        assert await _value(stores[1], key) == "absent"

    async def test_a_load_that_began_before_a_removal_is_refused_after_a_later_one_was_stored(
        self, stores: Stores
    ) -> None:
        key, old = _key(), _entry("old")
        await stores[1].invalidate([Invalidation("remove", key, time.monotonic())])
        await stores[1].put_many([Put(key, _entry("new", age=-_PRECISION))])
        assert await stores[0].put_many([Put(key, old)]) == 1
        assert await _value(stores[1], key) == "new"

    async def test_a_load_that_begins_after_a_removal_by_the_same_process_is_stored(
        self, stores: Stores
    ) -> None:
        key = _key()
        await stores[0].invalidate([Invalidation("remove", key, time.monotonic())])
        assert await stores[0].put_many([Put(key, _entry("new"))]) == 0
        assert await _value(stores[1], key) == "new"

    async def test_a_removal_that_arrives_late_spares_what_was_loaded_after_it(self, stores: Stores) -> None:
        key, at = _key(), time.monotonic() - 1.0
        await stores[0].put_many([Put(key, _entry("new"))])
        await stores[1].invalidate([Invalidation("remove", key, at)])
        assert await _value(stores[0], key) == "new"

    async def test_an_expired_value_is_stale_with_its_windows_moved(self, stores: Stores) -> None:
        key, entry = _key(), _entry("v")
        await stores[0].put_many([Put(key, entry)])
        at = time.monotonic()
        await stores[1].invalidate([Invalidation("expire", key, at)])
        (found,) = await stores[0].get_many([key])
        assert found is not None
        assert abs(found.fresh_until - at) < _PRECISION
        assert abs(found.stale_until - (at + 5.0)) < _PRECISION
        assert abs(found.error_until - (at + 60.0)) < _PRECISION

    async def test_a_load_that_began_before_an_expiry_is_refused(self, stores: Stores) -> None:
        key, entry = _key(), _entry("old")
        await stores[1].invalidate([Invalidation("expire", key, time.monotonic())])
        assert await stores[0].put_many([Put(key, entry)]) == 1

    async def test_a_value_that_was_set_refuses_loads_that_began_before(self, stores: Stores) -> None:
        key, old = _key(), _entry("old")
        await stores[1].put_many([Put(key, _entry("set"), replaces=True)])
        await stores[1].invalidate([Invalidation("remove", key, time.monotonic())])
        assert await stores[0].put_many([Put(key, old)]) == 1

    async def test_removing_a_tag_removes_what_bears_it_and_nothing_else(self, stores: Stores) -> None:
        tag, both, other, plain = uuid.uuid4().hex, _key(), _key(), _key()
        await stores[0].put_many(
            [
                Put(both, _entry("both", tags=frozenset({tag, "kept"}))),
                Put(other, _entry("other", tags=frozenset({"kept"}))),
                Put(plain, _entry("plain")),
            ]
        )
        await stores[1].invalidate([Invalidation("remove_tag", tag, time.monotonic())])
        assert [await _value(stores[0], key) for key in (both, other, plain)] == ["absent", "other", "plain"]

    async def test_a_load_that_began_before_its_tag_was_removed_is_never_seen(self, stores: Stores) -> None:
        tag, key = uuid.uuid4().hex, _key()
        old = _entry("old", tags=frozenset({tag}))
        await stores[1].invalidate([Invalidation("remove_tag", tag, time.monotonic())])
        await stores[0].put_many([Put(key, old)])
        assert await _value(stores[1], key) == "absent"
        await asyncio.sleep(_PRECISION)
        await stores[0].put_many([Put(key, _entry("new", tags=frozenset({tag})))])
        assert await _value(stores[1], key) == "new"

    async def test_clear_forgets_every_key_and_loads_that_began_before(self, stores: Stores) -> None:
        kept, late = _key(), _key()
        old = _entry("late")
        await stores[0].put_many([Put(kept, _entry("v"))])
        await stores[1].invalidate([Invalidation("clear", None, time.monotonic())])
        await stores[0].put_many([Put(late, old)])
        assert [await _value(stores[0], key) for key in (kept, late)] == ["absent", "absent"]
        await asyncio.sleep(_PRECISION)
        await stores[0].put_many([Put(kept, _entry("new"))])
        assert await _value(stores[1], kept) == "new"

    async def test_a_cancelled_reader_leaves_the_replies_of_the_others_in_place(self, stores: Stores) -> None:
        keys = [_key() for _ in range(20)]
        await stores[0].put_many([Put(key, _entry(n)) for n, key in enumerate(keys)])
        for _ in range(20):
            readers = [asyncio.create_task(_value(stores[0], key)) for key in keys]
            await asyncio.sleep(0)
            for reader in readers[::3]:
                reader.cancel()
            answers = await asyncio.gather(*readers, return_exceptions=True)
            assert all(
                answer == n if n % 3 else isinstance(answer, asyncio.CancelledError)
                for n, answer in enumerate(answers)
            )

    async def test_a_closed_store_opens_again_when_it_is_used(self, stores: Stores) -> None:
        key = _key()
        await stores[0].put_many([Put(key, _entry("v"))])
        await stores[0].close()
        await stores[0].close()
        assert await _value(stores[0], key) == "v"
