"""Invalidation messages between processes, by Redis' publish and subscribe.

They are sent over the store's connection, behind the invalidation that they tell of. They are received over a
connection of their own, because one that has subscribed answers nothing else:

    connecting --subscribed--> listening --silence--> asked whether it lives --silence--> lost

Invariant: a connection that brings nothing any more, announced or not, is given up within twice `ping_after`.
Whoever listens then connects again, and takes everything for changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fairlead.cache.redis_connection import Connection
from fairlead.cache.redis_nodes import enter, open_transport
from fairlead.calls.bounds import check_number
from fairlead.errors import StoreUnavailable

if TYPE_CHECKING:
    from fairlead.cache.redis import RedisStore

__all__ = ["RedisBackplane"]


class RedisBackplane:
    """Messages between the processes of one namespace, by publish and subscribe.

    They are sent over the store's connection, behind the invalidation that they tell of, and received over one
    of their own. In a cluster the nodes pass them on to each other.
    """

    def __init__(self, store: RedisStore, *, ping_after: float = 5.0) -> None:
        """ping_after: seconds without a message after which the connection is asked whether it lives: a cut
        that nobody announces is noticed within twice that."""
        check_number("RedisBackplane.ping_after", ping_after, above=0.0, high=3600.0)
        self._store = store
        self._channel = f"{store.namespace}:invalidations"
        self._ping_after = ping_after

    async def publish(self, messages: Sequence[bytes]) -> None:
        """Sends them to every process that listens."""
        await self._store._ask([(0, ("PUBLISH", self._channel, message)) for message in messages])

    async def listen(self, on_message: Callable[[bytes], object], on_connected: Callable[[], object]) -> None:
        """Receives until cancelled or until the connection is lost; then raises StoreUnavailable."""
        wire, address, clock = self._store._wire, self._store._nodes.seed.address, self._store._clock
        heard_at = clock.now()

        def take(reply: Any) -> None:
            nonlocal heard_at
            heard_at = clock.now()
            if isinstance(reply, Exception):
                raise reply
            if reply[0] == b"message":
                on_message(reply[2])
            elif reply[0] == b"subscribe":
                on_connected()

        connection = Connection(
            f"redis at {address}",
            wire.new_reader,
            patience=wire.reply_timeout,
            most_bytes=wire.most_bytes,
            on_message=take,
        )
        try:
            async with asyncio.timeout(wire.connect_timeout):
                await open_transport(connection, address)
                await enter(connection, address, wire)
            connection.send_unanswered(wire.pack(("SUBSCRIBE", self._channel)))
            while connection.is_open:
                await asyncio.wait([connection.closed], timeout=self._ping_after)
                silence = clock.now() - heard_at
                if silence > 2 * self._ping_after:
                    break
                if silence > self._ping_after:
                    connection.send_unanswered(wire.pack(("PING",)))
            raise StoreUnavailable(f"redis at {address}: the connection that brings messages is lost")
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"redis at {address}: cannot listen: {error or 'timeout'}") from error
        finally:
            connection.abort(ConnectionAbortedError("closed"))
            await asyncio.shield(connection.closed)
