"""A request and its response, kept as they pass between a server and an application, and nothing held up.

The copy is handed over once: when the last part of the response has been sent, when it cannot be kept, or when the
application ends. What passes is the server's and the application's to judge: nothing of the copy is raised into them.
Its time is the application's own: what it waited for the client, to send or to take, is not in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator

from fairlead.clock import Clock
from fairlead.shadow.comparison import error_name
from fairlead.shadow.mirror import MirrorDrop
from fairlead.telemetry.asgi_types import Message, Receive, Scope, Send

__all__ = ["Client", "Copy", "has_body", "is_encoded"]


class Copy:
    """One request and its response, kept as they pass, each up to a bound."""

    __slots__ = (
        "_began",
        "_clock",
        "_given_up",
        "_most",
        "_on_end",
        "_receive",
        "_send",
        "_waited",
        "_waited_until",
        "error",
        "headers",
        "request",
        "request_whole",
        "response",
        "seconds",
        "status",
        "whole",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        most: int,
        clock: Clock,
        on_end: Callable[[Copy], object] | None = None,
    ) -> None:
        self._receive = receive
        self._send = send
        self._most = most
        self._clock = clock
        self._on_end = on_end
        self._began = clock.now()
        self._waited = 0.0
        """Seconds that the application waited for its client, which are not its own."""
        self._waited_until = self._began
        self._given_up: MirrorDrop | None = None
        self.request_whole = True
        self.request = bytearray()
        self.response = bytearray()
        self.status = 0
        self.headers: Collection[tuple[bytes, bytes]] = ()
        self.error = ""
        self.seconds = 0.0
        self.whole = False

    async def receive(self) -> Message:
        asked = self._clock.now()
        message = await self._receive()
        if message["type"] == "http.request":
            self._has_waited(asked)
            self._note(self._received, message)
        elif message["type"] == "http.disconnect" and not self.whole:
            # What an application makes of that (an error, an end before its time) was never meant for a client.
            self._give_up("incomplete")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and isinstance(message.get("headers"), Iterator):
            # What can be read once only is the server's to read.
            message = {**message, "headers": list(message["headers"])}
        last = self._note(self._sent, message)
        asked = self._clock.now()
        if last:
            self.seconds = asked - self._began - self._waited
        await self._send(message)
        self._has_waited(asked)
        if last:
            self.whole = True
            self.end()

    def raised(self, error: Exception) -> None:
        """The application raised; before its response, that is its answer: its server makes a 500 of it."""
        if not (self.whole or self.status):
            self.error = error_name(error)
            self.seconds = self._clock.now() - self._began - self._waited

    def end(self) -> None:
        """Hands the copy over, once."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    def unfit(self) -> MirrorDrop | None:
        """Why it cannot be compared; None if it can."""
        if self._given_up is not None:
            return self._given_up
        return None if (self.whole or self.error) and self.request_whole else "incomplete"

    def take(self) -> tuple[bytes, bytes]:
        """The bodies of request and response, which are no longer kept."""
        taken = bytes(self.request), bytes(self.response)
        self._forget()
        return taken

    def _note(self, look: Callable[[Message], bool], message: Message) -> bool:
        try:
            return self._most >= 0 and look(message)
        except Exception:  # a message that is none is the server's to refuse, not ours
            self._give_up("broken")
            return False

    def _received(self, message: Message) -> bool:
        self.request_whole = not message.get("more_body", False)
        self._keep(self.request, message.get("body", b""))
        return False

    def _sent(self, message: Message) -> bool:
        """Whether it is the last part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = message.get("headers", ())
            if is_encoded(self.headers):
                self._give_up("encoded")
        elif message["type"] == "http.response.body":
            self._keep(self.response, message.get("body", b""))
            return self._given_up is None and not message.get("more_body", False)
        return False

    def _keep(self, kept: bytearray, part: bytes) -> None:
        if len(kept) + len(part) > self._most:
            self._give_up("too_large")
        else:
            kept += part

    def _give_up(self, reason: MirrorDrop) -> None:
        self._given_up = reason
        self._forget()
        self.end()

    def _forget(self) -> None:
        self._most = -1
        self.request = bytearray()
        self.response = bytearray()

    def _has_waited(self, asked: float) -> None:
        # An application may receive and send at once, so only what lies behind the end of the last wait counts.
        now = self._clock.now()
        self._waited += now - max(asked, self._waited_until)
        self._waited_until = now


def is_encoded(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body is compressed."""
    return any(
        name.lower() == b"content-encoding" and value.strip().lower() not in (b"", b"identity")
        for name, value in headers
    )


def has_body(scope: Scope) -> bool:
    """Whether the request announces a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class Client:
    """Sends its body, takes what comes, and leaves when it is told to."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = asyncio.Event()

    def leave(self, _: object = None) -> None:
        self._left.set()

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        # A socket that is full makes the sender wait. Without, one that never ends would hold the loop for ever.
        await asyncio.sleep(0)
        if self._left.is_set():
            raise OSError("the client has left")  # as servers do
