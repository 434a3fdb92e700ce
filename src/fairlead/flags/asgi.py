"""A flag document for a fleet, by HTTP: an ASGI 3 application without a framework.

    GET                              200 and the document, with a strong ETag; 304 to whoever has it
    GET, Accept: text/event-stream   a stream that names each new version: `id` is its ETag, so that a client that was
                                     away says with Last-Event-ID what it has; a comment every `heartbeat` seconds

The stream carries names, not documents: a subscriber who is slow has one name outstanding, the newest, and costs no
memory. One who takes nothing for `send_timeout` seconds is dropped. Above `max_subscribers` a client gets the document
in place of the stream, and asks again later. Who has the token may read; everything else (address, TLS, who may
write) is the business of whoever runs it.

What is served is what a `FlagDelivery` holds, so a broken or older document is never handed on, and an endpoint whose
delivery follows another one is a relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
from collections.abc import Collection

import msgspec

from fairlead.calls import Policy
from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.flags.delivery import FlagDelivery
from fairlead.flags.delivery_status import DeliveryNotice
from fairlead.flags.document_version import DocumentVersion
from fairlead.telemetry.asgi_types import Message, Receive, Scope, Send

__all__ = ["FlagsEndpoint"]

_log = logging.getLogger(__name__)

_COMMON = [(b"cache-control", b"no-cache"), (b"vary", b"accept"), (b"x-content-type-options", b"nosniff")]
_TAG = re.compile(rb'(?:W/)?("[^"]*")')


class FlagsEndpoint:
    """Serves the document of `delivery` at any path it is mounted at.

    Run by itself (`uvicorn app:endpoint`), it enters the delivery in its lifespan; mounted in another application,
    that one does. For a file: `FlagDelivery(FlagSet.from_file(path), FlagFile(path))`.

    tokens: of which a client must send one, as `Authorization: Bearer`; several, so that one can be replaced. Empty:
        everybody may read.
    heartbeat: seconds between two signs of life on a stream, 0.1 to 60.
    max_subscribers: open streams, 0 to 100,000.
    send_timeout: seconds, above 0 up to 60.
    """

    def __init__(
        self,
        delivery: FlagDelivery,
        *,
        tokens: Collection[str] = (),
        heartbeat: float = 5.0,
        max_subscribers: int = 1_000,
        send_timeout: float = 5.0,
    ) -> None:
        check_number("FlagsEndpoint.heartbeat", heartbeat, low=0.1, high=60.0)
        check_whole("FlagsEndpoint.max_subscribers", max_subscribers, low=0, high=100_000)
        check_number("FlagsEndpoint.send_timeout", send_timeout, above=0.0, high=60.0)
        if isinstance(tokens, str) or any(not token for token in tokens):
            raise InvalidInput("FlagsEndpoint.tokens: pass a list of tokens, none of them empty")
        self._delivery = delivery
        # Compared by their hashes: of one length, so that not even that is told by the time it takes.
        self._tokens = [_hashed(token.encode()) for token in tokens]
        self._heartbeat = heartbeat
        self._max_subscribers = max_subscribers
        self._send_timeout = send_timeout
        self._sending = Policy(name="flag subscriber", timeout=send_timeout, clock=delivery.clock)
        self._subscribers: set[_Subscriber] = set()
        self._page = _Page(b"")
        delivery.listen(self._changed)

    @property
    def subscribers(self) -> int:
        """Streams that are open."""
        return len(self._subscribers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise InvalidInput(f"FlagsEndpoint answers http, not {scope['type']}")
        elif scope["method"] not in ("GET", "HEAD"):
            await _respond(scope, send, 405, b"", [(b"allow", b"GET, HEAD")])
        elif not self._admits(_header(scope, b"authorization")):
            await _respond(scope, send, 401, b"", [(b"www-authenticate", b"Bearer")])
        elif not self._has_document():
            await _respond(scope, send, 503, b"no document yet\n", [(b"retry-after", b"1")])
        elif (
            scope["method"] == "GET"
            and b"text/event-stream" in _header(scope, b"accept")
            and len(self._subscribers) < self._max_subscribers
        ):
            await self._stream(scope, receive, send)
        else:
            await self._answer(scope, send)

    def _admits(self, authorization: bytes) -> bool:
        if not self._tokens:
            return True
        scheme, _, token = authorization.partition(b" ")
        given = _hashed(token.strip())
        # All of them, always: how long it takes says nothing.
        matches = [hmac.compare_digest(given, known) for known in self._tokens]
        return any(matches) and scheme.lower() == b"bearer"

    def _has_document(self) -> bool:
        # A relay that has heard nothing yet must not hand its own empty document to the fleet.
        return self._delivery.source is None or self._delivery.status.source != "initial"

    def _present(self) -> _Page:
        data = self._delivery.flags.data
        if data is not self._page.data:
            self._page = _Page(data)
        return self._page

    async def _answer(self, scope: Scope, send: Send) -> None:
        page = self._present()
        headers = [(b"etag", page.tag), *_COMMON]
        asked = _header(scope, b"if-none-match")
        if asked.strip() == b"*" or page.tag in _TAG.findall(asked):
            await _respond(scope, send, 304, None, headers)
        else:
            await _respond(scope, send, 200, page.data, [(b"content-type", b"application/json"), *headers])

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        leaving = asyncio.create_task(subscriber.wait_for_end(receive))
        clock = self._delivery.clock
        try:
            headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"), *_COMMON]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            told = _header(scope, b"last-event-id").strip()
            while not subscriber.left:
                page = self._present()
                body = b": alive\n\n" if page.tag == told else page.event(self._delivery)
                told = page.tag
                await self._sending.call(
                    send, {"type": "http.response.body", "body": body, "more_body": True}
                )
                timer = clock.call_at(clock.now() + self._heartbeat, subscriber.wake.set)
                await subscriber.wake.wait()
                subscriber.wake.clear()
                timer.cancel()
        except DeadlineExceeded:
            # Without an end to its response, the server closes the connection.
            _log.info("a subscriber of flags took nothing for %g s and was dropped", self._send_timeout)
        except OSError:
            pass  # ASGI 2.4: the client has left
        finally:
            self._subscribers.discard(subscriber)
            leaving.cancel()
            await asyncio.wait([leaving])

    def _changed(self, notice: DeliveryNotice) -> None:
        if notice.kind == "changed":
            for subscriber in tuple(self._subscribers):
                with contextlib.suppress(RuntimeError):  # its loop has closed
                    subscriber.loop.call_soon_threadsafe(subscriber.wake.set)

    async def _live(self, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    await stack.enter_async_context(self._delivery)
                    await send({"type": "lifespan.startup.complete"})
                elif message["type"] == "lifespan.shutdown":
                    await stack.aclose()
                    await send({"type": "lifespan.shutdown.complete"})
                    return


class _Page:
    """A document with its tag."""

    __slots__ = ("data", "tag")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tag = b'"' + hashlib.sha256(data).hexdigest().encode() + b'"'

    def event(self, delivery: FlagDelivery) -> bytes:
        epoch, version = DocumentVersion.of(delivery.flags.document)
        about = msgspec.json.encode({"epoch": epoch, "version": version})
        return b"id: %b\nevent: version\ndata: %b\n\n" % (self.tag, about)


class _Subscriber:
    __slots__ = ("left", "loop", "wake")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.wake = asyncio.Event()
        self.left = False

    async def wait_for_end(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self.wake.set()


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _header(scope: Scope, name: bytes) -> bytes:
    return b", ".join(value for key, value in scope["headers"] if key == name)


async def _respond(
    scope: Scope, send: Send, status: int, body: bytes | None, headers: list[tuple[bytes, bytes]]
) -> None:
    """body: None for a 304, which has neither a body nor its length."""
    if body is not None:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    sent = b"" if body is None or scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": sent})
