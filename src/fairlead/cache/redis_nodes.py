"""Which server answers for which key, and the connection to it.

A single server answers for all. In a cluster each of 16,384 slots has its owner, and owners change: a MOVED
reply says that the map is old (it is fetched again), an ASK that one slot is on its way (that command alone
goes elsewhere). Either is followed at most `_MOST_HOPS` times per command.

Connecting is done by a task of the node's own: a caller that leaves while it runs takes nobody's connection
away. Credentials are sent on each new connection and shown nowhere.

Per process and event loop. Another loop, or a fork, finds no connection and makes its own.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fairlead.cache.redis_connection import Connection, Reader
from fairlead.cache.redis_time import ServerTime
from fairlead.clock import Clock
from fairlead.errors import InvalidInput, StoreUnavailable

__all__ = ["Address", "Command", "Node", "Nodes", "Wire"]

_MOST_HOPS = 3
_left_behind: list[Connection] = []  # sockets shared with a parent: closing them tidily would speak for it

Command = tuple[int, tuple[Any, ...]]
"""The slot of its keys, and its words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server is and how it is entered."""

    host: str
    port: int
    path: str = ""
    """Of a Unix socket; then host and port mean nothing."""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None) -> Address:
        """From redis://, rediss:// (TLS) or unix:// with [username][:password]@ and /db or ?db=.

        Raises InvalidInput; the message does not show the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
        except ValueError:
            parts, port = None, 0
        if parts is None or parts.scheme not in ("redis", "rediss", "unix"):
            raise InvalidInput(
                "Redis URL: not readable; write redis://[user:password@]host[:port][/db], rediss://… for TLS "
                "or unix://[user:password@]/path[?db=n]"
            )
        on_socket = parts.scheme == "unix"
        db = dict(parse_qsl(parts.query)).get("db") or ("" if on_socket else parts.path.strip("/")) or "0"
        if not db.isdecimal() or len(db) > 6:
            raise InvalidInput("Redis URL: the database is not a number; write …/0 or ?db=0")
        if parts.scheme == "rediss" and tls is None:
            tls = ssl.create_default_context()
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            path=unquote(parts.path) if on_socket else "",
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            db=int(db),
            tls=None if on_socket else tls,
        )

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> Address:
        """Another server that is entered in the same way."""
        return Address(
            host=host or self.host,
            port=port,
            username=self.username,
            password=self.password,
            db=self.db,
            tls=self.tls,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """What the protocol's library provides, and the bounds of a connection."""

    pack: Callable[[tuple[Any, ...]], bytes]
    new_reader: Callable[[object], Reader]
    clock: Clock
    connect_timeout: float
    """Seconds for name, socket, TLS and credentials together."""
    reply_timeout: float
    """Seconds after which an unanswered connection is given up."""
    most_bytes: int
    """Length of a reply above which the connection is given up."""
    most_unsent: int = 8 * 2**20
    """Bytes waiting for a server that does not read, above which commands are refused."""
    prelude: tuple[tuple[Any, ...], ...] = ()
    """Commands sent on each new connection; their replies must not be errors."""


class Node:
    """One server: its connection, made when needed, and its clock."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self.address = address
        self.time = ServerTime()
        self._wire = wire
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None

    @property
    def live(self) -> Connection | None:
        """The open connection of this loop and process, if there is one."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return None
        home = self._home
        if home is None or home[0] is not asyncio.get_running_loop() or home[1] != os.getpid():
            return None
        return connection

    async def connection(self) -> Connection:
        """The open connection, or a new one. Raises StoreUnavailable."""
        if (live := self.live) is not None:
            return live
        home = (asyncio.get_running_loop(), os.getpid())
        if self._home != home:
            if self._connection is not None and self._home is not None and self._home[1] != home[1]:
                _left_behind.append(self._connection)
            self._home, self._connection, self._connecting = home, None, None
        if self._connecting is None or self._connecting.done():
            self._connecting = home[0].create_task(self._connect())
            self._connecting.add_done_callback(_look_at)
        return await asyncio.shield(self._connecting)

    async def close(self) -> None:
        if (
            self._home is None
            or self._home[0] is not asyncio.get_running_loop()
            or self._home[1] != os.getpid()
        ):
            return
        connecting, self._connecting = self._connecting, None
        if connecting is not None and not connecting.done():
            connecting.cancel()
            await asyncio.wait([connecting])
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort(ConnectionAbortedError("closed"))
            await asyncio.wait([connection.closed])

    async def _connect(self) -> Connection:
        address, wire = self.address, self._wire
        connection = Connection(
            f"redis at {address}",
            wire.new_reader,
            patience=wire.reply_timeout,
            most_bytes=wire.most_bytes,
        )
        try:
            async with asyncio.timeout(wire.connect_timeout):
                await open_transport(connection, address)
                await self._introduce(connection)
        except BaseException as error:
            connection.abort(error if isinstance(error, Exception) else ConnectionAbortedError("closed"))
            if not isinstance(error, Exception) or isinstance(error, StoreUnavailable):
                raise
            what = (
                f"did not answer within {wire.connect_timeout:g} s"
                if isinstance(error, TimeoutError)
                else str(error) or type(error).__name__
            )
            raise StoreUnavailable(f"redis at {address}: cannot connect: {what}") from error
        self._connection = connection
        return connection

    async def _introduce(self, connection: Connection) -> None:
        wire = self._wire
        await enter(connection, self.address, wire)
        sent = wire.clock.now()
        time = connection.send(wire.pack(("TIME",)))
        asked = [connection.send(wire.pack(words)) for words in wire.prelude]
        self.measured(await time, sent)
        for future in asked:
            await future

    async def timed(self) -> ServerTime:
        """The server's clock, asked again when its last answer is old."""
        if self.time.is_old(self._wire.clock.now()):
            connection = await self.connection()
            sent = self._wire.clock.now()
            self.measured(await connection.send(self._wire.pack(("TIME",))), sent)
        return self.time

    def measured(self, reply: list[bytes], sent: float) -> float:
        """Takes note of a TIME reply; the server's time in it."""
        server = int(reply[0]) + int(reply[1]) * 1e-6
        self.time.measured(server, sent, self._wire.clock.now())
        return server


def _look_at(task: asyncio.Task[Any]) -> None:
    # Whoever waited has left; the next caller meets the failure by itself.
    if not task.cancelled():
        task.exception()


async def open_transport(connection: Connection, address: Address) -> None:
    loop = asyncio.get_running_loop()
    if address.path:
        await loop.create_unix_connection(lambda: connection, address.path)
    else:
        await loop.create_connection(lambda: connection, address.host, address.port, ssl=address.tls)


async def enter(connection: Connection, address: Address, wire: Wire) -> None:
    """Authenticates and selects the database. Raises StoreUnavailable without the server's words, because
    some servers quote the command that they refuse."""
    words: list[tuple[str, tuple[Any, ...]]] = []
    if address.password:
        login = (address.username, address.password) if address.username else (address.password,)
        words.append(("refuses the credentials", ("AUTH", *login)))
    if address.db:
        words.append((f"refuses database {address.db}", ("SELECT", address.db)))
    asked = [(what, connection.send(wire.pack(command))) for what, command in words]
    for what, future in asked:
        try:
            await future
        except StoreUnavailable:
            raise
        except Exception:
            raise StoreUnavailable(f"redis at {address}: {what}") from None


class Nodes:
    """The server, or the servers of a cluster."""

    def __init__(self, address: Address, wire: Wire, *, cluster: bool) -> None:
        self.seed = Node(address, wire)
        self.cluster = cluster
        self._wire = wire
        self._by_address: dict[tuple[str, int], Node] = {(address.host, address.port): self.seed}
        self._owners: list[Node | None] = []
        self._mapping: asyncio.Task[None] | None = None

    async def ask(self, commands: Sequence[Command], *, timed: bool = False) -> list[tuple[Any, Node, float]]:
        """The reply to each command, which may be an error reply, with its node and that node's time.

        timed: ask each node for its time in the same write. Without it the time is 0.
        """
        nodes = [await self.owner(slot) for slot, _ in commands]
        connections = {node: node.live or await node.connection() for node in set(nodes)}
        pack = self._wire.pack
        for connection in connections.values():
            if connection.unsent_bytes > self._wire.most_unsent:
                raise StoreUnavailable(
                    f"{connection.peer}: does not read; {connection.unsent_bytes} bytes wait"
                )
        sent = self._wire.clock.now()
        clocks = {node: c.send(pack(("TIME",))) for node, c in connections.items()} if timed else {}
        asked = [
            connections[node].send(pack(words)) for node, (_, words) in zip(nodes, commands, strict=True)
        ]
        times = {node: node.measured(await clock, sent) for node, clock in clocks.items()}
        replies: list[tuple[Any, Node, float]] = []
        for node, future, command in zip(nodes, asked, commands, strict=True):
            try:
                reply: Any = await future
            except StoreUnavailable:
                raise
            except Exception as error:  # an error reply; the library's class is the driver's business
                reply, node = await self._follow(error, command, node)
                if timed and node not in times:
                    times[node] = (await node.timed()).latest(self._wire.clock.now())
            replies.append((reply, node, times.get(node, 0.0)))
        return replies

    async def close(self) -> None:
        if self._mapping is not None and not self._mapping.done():
            self._mapping.cancel()
            await asyncio.wait([self._mapping])
        self._mapping = None
        for node in self._by_address.values():
            await node.close()

    async def owner(self, slot: int) -> Node:
        if not self.cluster:
            return self.seed
        if not self._owners:
            await self._map()
        node = self._owners[slot]
        if node is None:
            raise StoreUnavailable(f"redis cluster of {self.seed.address}: nobody owns slot {slot}")
        return node

    async def _follow(self, error: Exception, command: Command, node: Node) -> tuple[Any, Node]:
        """The reply after following a redirection, or the error itself."""
        for _ in range(_MOST_HOPS):
            word, _, rest = str(error).partition(" ")
            if word == "NOSCRIPT":
                connection = await node.connection()
                for words in self._wire.prelude:
                    await connection.send(self._wire.pack(words))
                futures = [connection.send(self._wire.pack(command[1]))]
            elif self.cluster and word in ("MOVED", "ASK"):
                host, _, port = rest.split()[1].rpartition(":")
                node = self._node(host, int(port))
                connection = await node.connection()
                asking = [connection.send(self._wire.pack(("ASKING",)))] if word == "ASK" else []
                futures = [*asking, connection.send(self._wire.pack(command[1]))]
                if word == "MOVED":
                    self._owners[command[0]] = node
                    self._remap()
            else:
                return error, node
            try:
                for future in futures:
                    reply = await future
            except StoreUnavailable:
                raise
            except Exception as next_error:
                error = next_error
            else:
                return reply, node
        return error, node

    def _node(self, host: str, port: int) -> Node:
        host = host or self.seed.address.host  # a node that does not know its own name leaves it out
        node = self._by_address.get((host, port))
        if node is None:
            node = self._by_address[host, port] = Node(self.seed.address.at(host, port), self._wire)
        return node

    def _remap(self) -> None:
        if self._mapping is None or self._mapping.done():
            self._mapping = asyncio.get_running_loop().create_task(self._fetch_map())
            self._mapping.add_done_callback(_look_at)

    async def _map(self) -> None:
        if self._mapping is not None and self._mapping.get_loop() is not asyncio.get_running_loop():
            self._mapping = None
        self._remap()
        assert self._mapping is not None  # noqa: S101 (made by the line before)
        await asyncio.shield(self._mapping)

    async def _fetch_map(self) -> None:
        failure: Exception | None = None
        for node in list(self._by_address.values()):
            try:
                connection = await node.connection()
                ranges = await connection.send(self._wire.pack(("CLUSTER", "SLOTS")))
            except Exception as error:  # the next node may know
                failure = error
                continue
            owners: list[Node | None] = [None] * 16_384
            for low, high, master, *_ in ranges:
                owner = self._node((master[0] or b"").decode(), master[1])
                owners[low : high + 1] = [owner] * (high - low + 1)
            self._owners = owners
            return
        raise StoreUnavailable(f"redis cluster of {self.seed.address}: no node tells its slots") from failure
