"""The shared tier in Redis (6.2 or later, Valkey, or a cluster of either).

Per key k, of which the cluster hashes the part in braces, so that its two names share a slot:

    NAMESPACE:v:{:k}   the entry, a `redis_envelope`; gone at the end of its last bound (PXAT)
    NAMESPACE:f:{:k}   the fence: the moment of the latest expire, remove or set; kept as long as a load may fly
    NAMESPACE:l:{:k}   the lease: the token of whoever loads k
    NAMESPACE:t:{:tag} the moment of the latest remove_tag; the empty tag, borne by every entry, is `clear`

A write is a script that looks at fence and entry and refuses to go back in time. An invalidation moves the
fence and deletes, or ages, the entry in one step. Tags and `clear` cost their readers one more question, and
their writers nothing per entry (docs/decisions/0049).

Invariant: all moments are the server's own (`redis_time`), so the clocks of the hosts need not agree, and a
command that a hung server executes an hour late does what it would have done in time.
"""

from __future__ import annotations

import binascii
import os
import secrets
import ssl
from collections.abc import Hashable, Sequence
from hashlib import sha1
from math import inf
from typing import Any, cast

from fairlead.cache.codec import Codec
from fairlead.cache.entry import Entry
from fairlead.cache.keys import key_text
from fairlead.cache.redis_backplane import RedisBackplane
from fairlead.cache.redis_envelope import pack, unpack
from fairlead.cache.redis_nodes import Address, Command, Node, Nodes, Wire
from fairlead.cache.redis_time import ServerTime
from fairlead.cache.store import Invalidation, Put
from fairlead.calls.bounds import check_number, check_whole
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, InvalidInput, MissingExtra, StoreUnavailable

try:
    import hiredis
except ImportError as missing:
    raise MissingExtra("hiredis", "redis") from missing

__all__ = ["RedisBackplane", "RedisStore"]

_FENCE_FOR = 300.0  # seconds; a load that took longer is not shared
_FENCE_MILLISECONDS = str(int(_FENCE_FOR * 1000))
_MOST_AT_ONCE = 1_000  # keys of one command: a server does nothing else while it answers

# Offsets and formats: `redis_envelope`.
# A fence is "LATEST EARLIEST ORIGIN": between processes the moment counts as late as it may have been; within
# one, whose clock is one, it is compared as exactly as it was read, or a load right after a removal were refused.
_PUT = """
local began = tonumber(ARGV[3])
local fence = redis.call('GET', KEYS[2])
if fence then
  local latest, earliest, origin = string.match(fence, '(%S+) (%S+) (%S+)')
  if began <= tonumber(origin == ARGV[4] and earliest or latest) then return 0 end
end
local head = redis.call('GETRANGE', KEYS[1], 0, 8)
if #head == 9 and struct.unpack('>d', head, 2) > began then return 0 end
if ARGV[5] ~= '' then redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6]) end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 1
"""
_FENCE = """
local at = tonumber(ARGV[1])
local fence = redis.call('GET', KEYS[2])
if not fence or tonumber(string.match(fence, '%S+')) < at then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
local head = redis.call('GETRANGE', KEYS[1], 0, 40)
if #head == 0 then return 0 end
if #head == 41 and struct.unpack('>d', head, 2) > at then return 0 end
"""
_REMOVE = f"{_FENCE} return redis.call('DEL', KEYS[1])"
_EXPIRE = f"""{_FENCE}
if #head < 41 then return redis.call('DEL', KEYS[1]) end
local fresh, stale, failing = struct.unpack('>ddd', head, 18)
if fresh <= at then return 0 end
local early = fresh - at
redis.call('SETRANGE', KEYS[1], 17, struct.pack('>dddd', at, stale - early, failing - early, at))
return redis.call('PEXPIREAT', KEYS[1], math.floor(math.max(at, stale - early, failing - early) * 1000))
"""
_TAG = """
local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def _sha(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


_SCRIPTS = (_PUT, _REMOVE, _EXPIRE, _TAG, _RELEASE)
_PUT_SHA, _REMOVE_SHA, _EXPIRE_SHA, _TAG_SHA, _RELEASE_SHA = (_sha(script) for script in _SCRIPTS)
_PRELUDE = tuple(("SCRIPT", "LOAD", script) for script in _SCRIPTS)


_Reply = tuple[Any, Node, float]


class RedisStore:
    """A `Store` in one Redis server or cluster. Per process: one connection per server, counters."""

    def __init__(
        self,
        url: str,
        *,
        codec: Codec[Any],
        namespace: str = "fairlead",
        cluster: bool = False,
        tls: ssl.SSLContext | None = None,
        connect_timeout: float = 1.0,
        reply_timeout: float = 1.0,
        max_life: float = 86_400.0,
        max_reply_bytes: int = 2**26,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """url: redis://, rediss:// or unix://, with credentials; they appear in no message.

        codec: how values are written; what it cannot read is a counted miss. namespace: begins every name in
        Redis; caches that share one must agree in what their keys mean. cluster: `url` names one node of a
        Redis Cluster. tls: for rediss://; by default the system's authorities are trusted and the host name is
        checked. connect_timeout, reply_timeout: seconds after which the connection is given up; what a caller
        waits is the budget of its `SecondTier`. max_life: seconds after which the tier forgets an entry
        whatever its bounds, and for which it remembers removed tags. max_reply_bytes: a longer reply ends the
        connection. 2**26: 64 values of the codec's usual bound.
        """
        check_number("RedisStore.connect_timeout", connect_timeout, above=0.0, high=3600.0)
        check_number("RedisStore.reply_timeout", reply_timeout, above=0.0, high=3600.0)
        check_number("RedisStore.max_life", max_life, above=0.0, high=10 * 366 * 86_400.0)
        check_whole("RedisStore.max_reply_bytes", max_reply_bytes, low=1024, high=2**31)
        if not namespace or not namespace.isprintable() or set("{} ") & set(namespace):
            raise InvalidInput(f"RedisStore.namespace: {namespace!r} is empty or holds a space or a brace")
        self.mismatches = 0
        self.unwritable = 0
        self._codec = codec
        self._clock = clock
        self._max_life = max_life
        self._value_name = f"{namespace}:v:{{:"
        self._fence_name = f"{namespace}:f:{{:"
        self._lease_name = f"{namespace}:l:{{:"
        self.namespace = namespace
        self._tag_name = f"{namespace}:t:{{:"
        self._clear = f"{self._tag_name}}}"
        self._wire = Wire(
            pack=hiredis.pack_command,
            new_reader=lambda nothing: hiredis.Reader(notEnoughData=nothing),
            clock=clock,
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            most_bytes=max_reply_bytes,
            prelude=_PRELUDE,
        )
        self._token = secrets.token_hex(8)
        self._nodes = Nodes(Address.parse(url, tls), self._wire, cluster=cluster)

    def __repr__(self) -> str:
        return f"RedisStore({self._nodes.seed.address}{', cluster' if self._nodes.cluster else ''})"

    async def get_many(self, keys: Sequence[Hashable]) -> list[Entry[Any] | None]:
        names = [f"{self._value_name}{text}}}" for text in map(_text, keys)]
        found: list[Entry[Any] | None] = []
        for start in range(0, max(1, len(names)), _MOST_AT_ONCE):
            found += await self._read(names[start : start + _MOST_AT_ONCE])
        return found

    async def put_many(self, puts: Sequence[Put]) -> int:
        commands: list[Command] = []
        for key, entry, replaces in puts:
            now = self._clock.now()
            if now - entry.began_at > _FENCE_FOR:
                continue
            try:
                text = key_text(key)
                slot = self._slot(text)
                time = await (await self._nodes.owner(slot)).timed()
                blob, began, ends = pack(entry, self._codec.encode(entry.value), time)
            except InvalidInput:
                self.unwritable += 1
                if replaces:  # what lies there is older than what is known
                    commands += await self._invalidation(Invalidation("remove", key, entry.began_at))
                continue
            ends = min(ends, time.earliest(now) + self._max_life)
            fence = self._fence(time, entry.began_at) if replaces else ""
            words = (blob, str(int(ends * 1000)), repr(began), self._origin(), fence, _FENCE_MILLISECONDS)
            names = (f"{self._value_name}{text}}}", f"{self._fence_name}{text}}}")
            commands.append((slot, ("EVALSHA", _PUT_SHA, "2", *names, *words)))
        return sum(reply == 0 for reply in await self._ask(commands, while_moving=0))

    async def invalidate(self, invalidations: Sequence[Invalidation]) -> None:
        commands: list[Command] = []
        for each in invalidations:
            commands += await self._invalidation(each)
        await self._ask(commands)

    async def acquire(self, key: Hashable, token: str, seconds: float) -> bool:
        """Whether the lease of `key` is now held under `token`, for `seconds` of the server's clock."""
        name = f"{self._lease_name}{_text(key)}}}"
        words = ("SET", name, token, "NX", "PX", str(max(1, int(seconds * 1000))))
        (reply,) = await self._ask([(self._slot_named(name), words)])
        return reply is not None

    async def release(self, held: Sequence[tuple[Hashable, str]]) -> None:
        """Gives back leases; those held under another token by now stay."""
        names = [f"{self._lease_name}{_text(key)}}}" for key, _ in held]
        await self._ask(
            [
                (self._slot_named(name), ("EVALSHA", _RELEASE_SHA, "1", name, token))
                for name, (_, token) in zip(names, held, strict=True)
            ]
        )

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        await self._nodes.close()

    async def _read(self, names: list[str]) -> list[Entry[Any] | None]:
        groups: list[Sequence[int]] = [range(len(names))] if names else []
        if self._nodes.cluster:
            by_slot: dict[int, list[int]] = {}
            for index, name in enumerate(names):
                by_slot.setdefault(_slot_of(name), []).append(index)
            groups = list(by_slot.values())
        commands: list[Command] = [(self._slot(""), ("GET", self._clear))]
        commands += [
            (self._slot_named(names[group[0]]), ("MGET", *[names[i] for i in group])) for group in groups
        ]
        replies = await self._nodes.ask(commands, timed=True)
        (cleared, node, _), *rest = self._checked(replies, while_moving=())
        cleared_at = -inf if cleared is None else float(cleared) + node.time.late_shift
        found: list[Entry[Any] | None] = [None] * len(names)
        tagged = []
        for group, (blobs, node, server_now) in zip(groups, rest, strict=True):
            shift = node.time.shift
            for index, blob in zip(group, blobs, strict=False):  # a slot on its way has nothing to say
                if blob is None:
                    continue
                try:
                    entry, at = unpack(blob, shift, server_now)
                    entry.value = self._codec.decode(blob[at:])
                except BrokenDocument:
                    self.mismatches += 1
                    continue
                if entry.began_at > cleared_at:
                    found[index] = entry
                    if entry.tags:
                        tagged.append(index)
        if tagged:
            await self._drop_removed(found, tagged)
        return found

    async def _drop_removed(self, found: list[Entry[Any] | None], tagged: list[int]) -> None:
        """Forgets the entries of which a tag was removed after their load began.

        Asked after the entries were read: a removal that ended before the read began is seen.
        """
        tags = list({tag for index in tagged for tag in cast(Entry[Any], found[index]).tags})
        names = [self._tagged(tag) for tag in tags]
        commands: list[Command] = [(self._slot_named(name), ("GET", name)) for name in names]
        removed_at = {
            tag: float(reply) + node.time.late_shift
            for tag, (reply, node, _) in zip(
                tags, self._checked(await self._nodes.ask(commands)), strict=True
            )
            if reply is not None
        }
        if removed_at:
            for index in tagged:
                entry = cast(Entry[Any], found[index])
                if any(entry.began_at <= removed_at.get(tag, -inf) for tag in entry.tags):
                    found[index] = None

    async def _invalidation(self, invalidation: Invalidation) -> list[Command]:
        """The command, or none for a key that cannot be here."""
        kind, subject, at = invalidation
        if kind in ("remove_tag", "clear"):
            name = self._tagged(str(subject)) if kind == "remove_tag" else self._clear
            slot = self._slot_named(name)
            time = await (await self._nodes.owner(slot)).timed()
            kept = str(int(self._max_life * 1000))
            return [(slot, ("EVALSHA", _TAG_SHA, "1", name, repr(time.latest(at)), kept))]
        text = _text(subject)
        if not text:
            return []
        slot = self._slot(text)
        time = await (await self._nodes.owner(slot)).timed()
        names = (f"{self._value_name}{text}}}", f"{self._fence_name}{text}}}")
        sha = _REMOVE_SHA if kind == "remove" else _EXPIRE_SHA
        words = (repr(time.latest(at)), self._fence(time, at), _FENCE_MILLISECONDS)
        return [(slot, ("EVALSHA", sha, "2", *names, *words))]

    async def _ask(self, commands: list[Command], *, while_moving: Any = None) -> list[Any]:
        if not commands:
            return []
        replies = await self._nodes.ask(commands)
        return [reply for reply, _, _ in self._checked(replies, while_moving=while_moving)]

    def _checked(self, replies: list[_Reply], *, while_moving: Any = None) -> list[_Reply]:
        """The replies; raises StoreUnavailable if one is an error.

        while_moving: stands for the refusal of several keys whose slot is on its way between two nodes: that
        part of the cluster is busy, not gone.
        """
        checked = []
        for reply, node, server_now in replies:
            if isinstance(reply, Exception):
                if while_moving is None or not str(reply).startswith("TRYAGAIN"):
                    raise StoreUnavailable(f"redis at {node.address}: refuses: {reply}") from reply
                reply = while_moving
            checked.append((reply, node, server_now))
        return checked

    def _tagged(self, tag: str) -> str:
        # Names are sent as UTF-8, which a lone surrogate has no place in.
        return f"{self._tag_name}{tag.encode('utf-8', 'backslashreplace').decode()}}}"

    def _fence(self, time: ServerTime, at: float) -> str:
        return f"{time.latest(at)!r} {time.earliest(at)!r} {self._origin()}"

    def _origin(self) -> str:
        return f"{self._token}.{os.getpid()}"  # a fork inherits the token

    def _slot(self, text: str) -> int:
        return self._slot_named(f"{{:{text}}}")

    def _slot_named(self, name: str) -> int:
        return _slot_of(name) if self._nodes.cluster else 0


def _slot_of(name: str) -> int:
    """Of a name that holds braces with something between: that part up to the first closing one is hashed."""
    inner = name[name.index("{") + 1 :]
    return binascii.crc_hqx(inner[: inner.index("}")].encode(), 0) % 16_384


def _text(key: Hashable) -> str:
    """The key's text; empty, which is no key's, for one that has none: it must not fail those beside it."""
    try:
        return key_text(key)
    except InvalidInput:
        return ""
