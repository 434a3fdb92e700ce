"""One socket to a server that answers in order, shared by every caller of the process.

Awaiting a reply on a borrowed connection ties the connection to the caller: one that is cancelled between
command and reply leaves the reply behind for the next, so clients drop the connection instead, and a wave of
timeouts becomes a wave of reconnects. Here the transport belongs to the event loop. A caller waits on a future
of its own; when it leaves, the reply is read all the same and thrown away.

    connecting --> open: what is sent in one turn of the loop leaves in one write --> lost: all waiting fail

Invariant: replies meet commands in the order in which these were sent. A head of the line that waits longer
than `patience`, and a reply longer than `most_bytes`, end the connection: neither can be skipped. A stall of the
event loop is no patience of ours: after one, the head of the line gets a moment to be read.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from fairlead.errors import StoreUnavailable

__all__ = ["Connection", "Reader"]

_NOTHING_YET = object()
_PROMPT = 0.002  # seconds by which a timer of an idle loop may be late: some sleep in whole milliseconds
_left_behind: list[
    asyncio.Transport
] = []  # a parent's, in its fork; collected, they would warn of themselves


class Reader(Protocol):
    """The parser of the server's protocol."""

    def feed(self, data: bytes, /) -> None: ...

    def gets(self) -> Any: ...


class Connection(asyncio.Protocol):
    """Sends packed commands and hands out their replies, for one event loop."""

    def __init__(
        self,
        peer: str,
        new_reader: Callable[[object], Reader],
        *,
        patience: float,
        most_bytes: int,
        on_message: Callable[[list[Any]], object] | None = None,
    ) -> None:
        """peer: the server, in errors. new_reader: makes a parser that returns its argument for "not yet".

        patience: seconds that the oldest command may wait. most_bytes: received without completing a reply.
        on_message: takes every reply that no command waits for; without it such a reply is an error.
        """
        self.peer = peer
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._gets: Callable[[], Any]
        reader = new_reader(_NOTHING_YET)
        self._feed = reader.feed
        self._gets = reader.gets
        self._patience = patience
        self._most_bytes = most_bytes
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._unparsed = 0
        self._watch: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._spared: asyncio.Future[Any] | None = None
        self._lost: BaseException | None = None
        self.closed = self._loop.create_future()
        """Done once the transport is gone; its owner awaits it."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and self._lost is None

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the kernel has not taken: what a hung server leaves here."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Sends one packed command with this turn's others; the future of its reply.

        A future that its caller cancels costs the connection nothing. An error reply, and the loss of the
        connection, are its exception.
        """
        future = self._loop.create_future()
        if self._lost is not None:
            future.set_exception(self._failure())
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._waiting.append((future, self._loop.time() + self._patience))
        if self._watch is None:
            self._look_again(self._waiting[0][1])
        return future

    def send_unanswered(self, packed: bytes) -> None:
        """Sends a command whose replies, if any, go to `on_message`."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)

    def abort(self, why: BaseException) -> None:
        """Ends the connection now; everything that waits fails with `why` as the cause."""
        if self._lost is None:
            self._lose(why)
        if self._transport is not None and os.getpid() == self._pid:
            self._transport.abort()
            return
        if self._transport is not None:
            # A fork shares the poll of its parent's loop: to take the socket out there would deafen the parent.
            _left_behind.append(self._transport)
            self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's are no asyncio.Transport, and do what one does.
        self._transport = cast(asyncio.Transport, transport)
        if self._lost is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._feed(data)
        self._unparsed += len(data)
        gets, waiting = self._gets, self._waiting
        try:
            while (reply := gets()) is not _NOTHING_YET:
                self._unparsed = 0
                if self._on_message is not None and not waiting:
                    self._on_message(reply)
                    continue
                future, _ = waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (
            Exception
        ) as error:  # not the protocol, or a reply that nobody asked for: no later one can be trusted
            self.abort(error)
            return
        if self._unparsed > self._most_bytes:
            self.abort(StoreUnavailable(f"{self.peer}: a reply is longer than {self._most_bytes} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost is None:
            self._lose(error or ConnectionResetError("the server closed the connection"))
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            out, self._out = self._out, []
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _look(self) -> None:
        self._watch = None
        waiting = self._waiting
        if not waiting:
            return
        head, due = waiting[0]
        now = self._loop.time()
        late = now - self._look_at
        if now < due:
            self._look_again(due)
        elif late > _PROMPT and self._spared is not head:
            self._spared = head
            self._look_again(now + min(late, self._patience))
        else:
            self.abort(TimeoutError(f"no reply within {self._patience:g} s"))

    def _look_again(self, at: float) -> None:
        self._look_at = at
        self._watch = self._loop.call_at(at, self._look)

    def _lose(self, why: BaseException) -> None:
        self._lost = why
        self._out.clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(self._failure())
                # Whoever sent several at once reads the first failure and leaves.
                future.exception()

    def _failure(self) -> StoreUnavailable:
        lost = self._lost
        what = str(lost) or type(lost).__name__
        error = StoreUnavailable(f"{self.peer}: the connection is lost: {what}; it is made anew when needed")
        error.__cause__ = lost
        return error
