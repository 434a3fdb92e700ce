"""The Redis driver on real servers: the contract of the port, and what only Redis can do to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.cache.codec import Codec
from fairlead.cache.entry import Entry
from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import key_text
from fairlead.cache.redis import RedisBackplane, RedisStore
from fairlead.cache.second_tier import SecondTier
from fairlead.cache.store import Invalidation, Put
from fairlead.errors import InvalidInput, StoreUnavailable
from fairlead.testing import RedisCluster, RedisServer
from fairlead.testing.store_contract import StoreContract, Stores

FRESHNESS = Freshness(ttl=10.0, jitter=0.0)


ANYTHING: Codec[Any] = Codec(Any, mutable_ok=True)


def entry(value: object) -> Entry[object]:
    now = time.monotonic()
    return Entry.keep(value, FRESHNESS, began_at=now, now=now, draw=0.0)


class TestOneServer(StoreContract):
    @pytest.fixture
    async def stores(self, redis_server: RedisServer) -> AsyncIterator[Stores]:
        both = RedisStore(redis_server.url, codec=ANYTHING), RedisStore(redis_server.url, codec=ANYTHING)
        yield both
        for store in both:
            await store.close()


class TestThreeNodeCluster(StoreContract):
    @pytest.fixture
    async def stores(self, redis_cluster: RedisCluster) -> AsyncIterator[Stores]:
        both = tuple(RedisStore(node.url, codec=ANYTHING, cluster=True) for node in redis_cluster.nodes[:2])
        yield both[0], both[1]
        for store in both:
            await store.close()


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_server.url, codec=ANYTHING, connect_timeout=0.3, reply_timeout=0.3)
    yield made
    await made.close()


async def value(store: RedisStore, key: object) -> object:
    (found,) = await store.get_many([key])
    return "absent" if found is None else found.value


async def test_a_hung_server_is_given_up_after_the_reply_timeout_and_used_again_when_it_answers(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.put_many([Put("k", entry("v"))])
    redis_server.pause()
    try:
        for what in ("no reply within 0.3 s", "did not answer within 0.3 s"):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=what):
                await store.get_many(["k"])
            assert 0.25 < time.monotonic() - began < 1.0
    finally:
        redis_server.resume()
    assert await value(store, "k") == "v"


async def test_a_killed_server_fails_those_who_wait_and_is_found_again_empty(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.put_many([Put("k", entry("v"))])
    redis_server.pause()
    waiting = asyncio.create_task(store.get_many(["k"]))
    await asyncio.sleep(0.02)
    redis_server.kill()
    with pytest.raises(StoreUnavailable, match="connection is lost"):
        await waiting
    with pytest.raises(StoreUnavailable, match="cannot connect"):
        await store.get_many(["k"])
    redis_server.restart()
    assert await value(store, "k") == "absent"
    assert await store.put_many([Put("k", entry("again"))]) == 0  # its scripts were loaded anew
    assert await value(store, "k") == "again"


async def test_a_write_that_a_hung_server_executes_late_does_not_outlive_its_bound(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.get_many([])
    now = time.monotonic()
    short = Entry.keep("v", Freshness(ttl=0.2, jitter=0.0), began_at=now, now=now, draw=0.0)
    redis_server.pause()
    writing = asyncio.create_task(store.put_many([Put("k", short)]))
    await asyncio.sleep(0.25)
    redis_server.resume()
    await writing
    assert redis_server.command("KEYS", "*") == []


async def test_scripts_that_the_server_lost_are_loaded_again(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.put_many([Put("k", entry("v"))])
    redis_server.command("SCRIPT", "FLUSH")
    assert await store.put_many([Put("k2", entry("v2"))]) == 0
    redis_server.command("SCRIPT", "FLUSH")
    await store.invalidate([Invalidation("remove", "k", time.monotonic())])
    assert [await value(store, "k"), await value(store, "k2")] == ["absent", "v2"]


async def test_what_cannot_be_read_is_a_counted_miss(store: RedisStore, redis_server: RedisServer) -> None:
    await store.put_many([Put(key, entry("v")) for key in ("cut", "junk", "future", "value", "good")])
    name = {key: f"fairlead:v:{{:{key_text(key)}}}" for key in ("cut", "junk", "future", "value")}
    whole = redis_server.command("GET", name["cut"])
    redis_server.command("SET", name["cut"], whole[:30])
    redis_server.command("SET", name["junk"], b"\xff" * 100)
    redis_server.command("SET", name["future"], whole[:1] + b"\x7f" + whole[2:])
    redis_server.command("SET", name["value"], whole[:-3] + b"\xc1\x01")
    found = await store.get_many(["cut", "junk", "future", "value", "good"])
    assert [each and each.value for each in found] == [None, None, None, None, "v"]
    assert store.mismatches == 4


async def test_a_value_that_cannot_be_written_is_counted_and_what_it_replaces_is_gone(
    redis_server: RedisServer,
) -> None:
    store = RedisStore(redis_server.url, codec=Codec(bytes, max_bytes=100))
    await store.put_many([Put("k", entry(b"x" * 80)), Put("long", entry(b"x" * 100))])
    assert [await value(store, "k"), await value(store, "long")] == [b"x" * 80, "absent"]
    await store.put_many([Put("k", entry("of another type"), replaces=True), Put("ok", entry(b"v"))])
    assert [await value(store, "k"), await value(store, "ok")] == ["absent", b"v"]
    assert store.unwritable == 2
    await store.close()


async def test_a_key_without_text_fails_nobody_beside_it(store: RedisStore) -> None:
    odd = object()
    await store.put_many([Put(odd, entry("v")), Put("k", entry("v"))])
    await store.invalidate([Invalidation("remove", odd, time.monotonic())])
    found = await store.get_many([odd, "k"])
    assert [each and each.value for each in found] == [None, "v"]


async def test_a_reply_longer_than_its_bound_ends_the_connection(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, codec=ANYTHING, max_reply_bytes=1024)
    await store.put_many([Put("k", entry("x" * 2_000_000))])
    redis_server.command("SET", f"fairlead:v:{{:{key_text('k')}}}", b"x" * 1_000_000)
    with pytest.raises(StoreUnavailable, match="longer than 1024 bytes"):
        await store.get_many(["k"])
    await store.close()


async def test_nothing_outlives_max_life(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, codec=ANYTHING, max_life=5.0)
    await store.put_many([Put("k", entry("v"))])
    await store.invalidate([Invalidation("remove_tag", "t", time.monotonic())])
    for name in redis_server.command("KEYS", "*"):
        assert 0 < redis_server.command("PTTL", name) <= 5_000
    await store.close()


async def test_every_name_in_redis_expires_by_itself(store: RedisStore, redis_server: RedisServer) -> None:
    now = time.monotonic()
    await store.put_many([Put("a", entry("v")), Put("b", entry("v"), replaces=True)])
    kinds = ("expire", "remove", "remove_tag")
    await store.invalidate([Invalidation(kind, f"k-{kind}", now) for kind in kinds])
    await store.invalidate([Invalidation("clear", None, now)])
    names = redis_server.command("KEYS", "*")
    assert len(names) == 7
    assert all(redis_server.command("PTTL", name) > 0 for name in names)


async def test_credentials_open_the_door_and_appear_nowhere() -> None:
    with RedisServer("--requirepass", "s3cret") as server:
        url = server.url.replace("redis://", "redis://:s3cret@")
        store = RedisStore(url, codec=ANYTHING)
        await store.put_many([Put("k", entry("v"))])
        assert await value(store, "k") == "v"
        assert "s3cret" not in repr(store) + repr(vars(store)) + repr(store._nodes.seed.address)
        await store.close()
        wrong = RedisStore(server.url.replace("redis://", "redis://ada:wr0ng@"), codec=ANYTHING)
        with pytest.raises(StoreUnavailable, match="refuses the credentials") as refused:
            await wrong.get_many(["k"])
        assert "wr0ng" not in repr(refused.value) + repr(refused.value.__cause__)
        await wrong.close()


@pytest.mark.parametrize(
    "url", ["http://h", "redis://:pw@h:notaport/0", "redis://h/zero", "h:6379", "", "redis://[::1"]
)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(InvalidInput, match="Redis URL") as refused:
        RedisStore(url, codec=ANYTHING)
    assert not url or url not in str(refused.value)


async def test_a_unix_socket_and_a_database_are_chosen_by_the_url(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as server:
        store = RedisStore(f"unix://{path}?db=3", codec=ANYTHING)
        await store.put_many([Put("k", entry("v"))])
        assert await value(store, "k") == "v"
        assert b"db3:keys=1" in server.command("INFO", "keyspace")
        await store.close()


def test_a_store_works_in_one_event_loop_after_another(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, codec=ANYTHING)

    async def use() -> object:
        await store.put_many([Put("k", entry("v"))])
        found = await value(store, "k")
        await store.close()
        return found

    assert [asyncio.run(use()), asyncio.run(use())] == ["v", "v"]


async def test_a_slot_that_moved_is_followed_and_remembered(redis_cluster: RedisCluster) -> None:
    store = RedisStore(redis_cluster.url, codec=ANYTHING, cluster=True)
    keys = [("k", n) for n in range(50)]
    await store.put_many([Put(key, entry(n)) for n, key in enumerate(keys)])
    owners = store._nodes._owners
    store._nodes._owners = [owners[0]] * 16_384  # a map in which one node has it all
    found = await store.get_many(keys)
    assert [each and each.value for each in found] == list(range(50))
    await asyncio.sleep(0.05)
    assert store._nodes._owners == owners
    await store.close()


async def test_a_slot_on_its_way_is_asked_for_where_it_goes(redis_cluster: RedisCluster) -> None:
    store = RedisStore(redis_cluster.url, codec=ANYTHING, cluster=True)
    slot = store._slot(key_text("k"))
    source = redis_cluster.node_of(slot)
    target = next(node for node in redis_cluster.nodes if node is not source)
    ids = {node: node.command("CLUSTER", "MYID").decode() for node in (source, target)}
    await store.put_many([Put("k", entry("v"))])
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    try:
        name = f"fairlead:v:{{:{key_text('k')}}}"
        source.command("MIGRATE", "127.0.0.1", target.port, name, 0, 1000)
        assert await value(store, "k") == "v"
        assert await store.put_many([Put("k", entry("v2"))]) == 1  # refused, as its two names may lie apart
        assert await value(store, "k") == "v"
    finally:
        for node in (target, source):
            node.command("FLUSHALL")
            node.command("CLUSTER", "SETSLOT", slot, "STABLE")
        await store.close()


async def test_one_hung_node_of_a_cluster_does_not_hang_the_keys_of_the_others(
    redis_cluster: RedisCluster,
) -> None:
    store = RedisStore(redis_cluster.url, codec=ANYTHING, cluster=True, reply_timeout=0.3)
    by_node: dict[RedisServer, str] = {}
    for n in range(200):
        by_node.setdefault(redis_cluster.node_of(store._slot(key_text(f"k{n}"))), f"k{n}")
    await store.put_many([Put(key, entry(key)) for key in by_node.values()])
    hung = next(node for node in redis_cluster.nodes if node is not redis_cluster.node_of(store._slot("")))
    hung.pause()
    try:
        for node, key in by_node.items():
            if node is not hung:
                assert await value(store, key) == key
        with pytest.raises(StoreUnavailable):
            await store.get_many([by_node[hung]])
    finally:
        hung.resume()
        await store.close()


async def test_a_lease_has_one_holder_until_it_is_released_or_over(store: RedisStore) -> None:
    assert await store.acquire("k", "a", 0.2)
    assert not await store.acquire("k", "b", 0.2)
    await store.release([("k", "b")])
    assert not await store.acquire("k", "b", 0.2)
    await store.release([("k", "a")])
    assert await store.acquire("k", "b", 0.2)
    await asyncio.sleep(0.25)
    assert await store.acquire("k", "c", 60.0)
    await store.release([("k", "b")])  # b came late: the lease is another's
    assert not await store.acquire("k", "d", 60.0)


@pytest.mark.parametrize("kind", ["one", "cluster"])
async def test_messages_reach_every_listener(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "one":
        urls = [request.getfixturevalue("redis_server").url] * 2
    else:
        urls = [node.url for node in request.getfixturevalue("redis_cluster").nodes[:2]]
    stores = [RedisStore(url, codec=ANYTHING, cluster=kind == "cluster") for url in urls]
    planes = [RedisBackplane(each) for each in stores]
    inbox: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    connected = asyncio.Semaphore(0)
    listeners = [
        asyncio.create_task(
            plane.listen(lambda data, n=n: inbox.put_nowait((n, data)), connected.release)  # type: ignore[misc]
        )
        for n, plane in enumerate(planes)
    ]
    await connected.acquire()
    await connected.acquire()
    await planes[0].publish([b"one", b"two"])
    await planes[1].publish([b"\xff\x00"])
    async with asyncio.timeout(5.0):
        heard = [await inbox.get() for _ in range(6)]
    assert sorted(heard) == sorted((n, data) for n in (0, 1) for data in (b"one", b"two", b"\xff\x00"))
    for listener in listeners:
        listener.cancel()
    await asyncio.gather(*listeners, return_exceptions=True)
    for each in stores:
        await each.close()


async def test_a_listener_notices_a_server_that_is_killed_and_one_that_hangs(
    store: RedisStore, redis_server: RedisServer
) -> None:
    plane = RedisBackplane(store, ping_after=0.1)
    connected = asyncio.Event()
    listening = asyncio.create_task(plane.listen(print, connected.set))
    await connected.wait()
    await asyncio.sleep(0.5)
    assert not listening.done()  # silence alone is no loss
    redis_server.pause()
    with pytest.raises(StoreUnavailable, match="messages is lost"):
        await listening
    redis_server.resume()
    connected.clear()
    listening = asyncio.create_task(plane.listen(print, connected.set))
    await connected.wait()
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await listening
    redis_server.restart()


async def test_tags_of_any_text_find_their_entries_and_too_many_are_refused(store: RedisStore) -> None:
    odd = ["", "}", "{a}", "é\ud800", "x" * 70_000, "\x00\r\n"]
    now = time.monotonic()

    def tagged(*tags: str) -> Entry[object]:
        return Entry.keep("v", FRESHNESS, began_at=now, now=now, draw=0.0, tags=frozenset(tags))

    await store.put_many([Put(n, tagged(tag)) for n, tag in enumerate(odd)])
    await store.put_many([Put("many", tagged(*map(str, range(70_000))))])
    found = await store.get_many([*range(len(odd)), "many"])
    assert [each and each.value for each in found] == ["v", "v", "v", "v", None, "v", None]
    assert store.unwritable == 2
    at = time.monotonic()
    await store.invalidate([Invalidation("remove_tag", tag, at) for tag in odd])
    assert await store.get_many(list(range(len(odd)))) == [None] * len(odd)


async def test_a_server_without_memory_takes_no_value_and_still_answers() -> None:
    with RedisServer() as server:
        tier = SecondTier(RedisStore(server.url, codec=ANYTHING), budget=0.5)
        await tier.get("warm")
        tier.put("before", entry("v"))
        await asyncio.sleep(0.05)
        server.command("CONFIG", "SET", "maxmemory", "1")
        tier.put("after", entry("v"))
        await asyncio.sleep(0.05)
        assert (tier.stats.dropped_writes, tier.is_trusted) == (1, True)
        assert "OOM" in tier.stats.last_error
        found = await tier.get("before")
        assert found is not None
        server.command("CONFIG", "SET", "maxmemory", "0")
        await tier.close()
