"""Where browsers report what their users waited for, and where they get the script that does it.

A server sees the time until its last byte. What a person waits for begins before that and ends after it. Here one
address serves the script (GET) and takes its reports (POST), so that a metric measured at the client has a source.

Nothing that a browser says is trusted: who may post is checked by Origin, a report's size, number of items and every
field are bounded, times are taken as ages and counted back from the server's clock, and an item that does not fit
goes to the dead letters while its neighbours are kept. A report is sent until it is confirmed, so items come twice;
an item is known by its view and number, and dropped when this process has seen it.

Per process: what was seen, and the counters.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput
from fairlead.telemetry.asgi_types import Receive, Scope, Send
from fairlead.telemetry.bounds import check_whole
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.event import Event, PageMeasured, ScriptFailed
from fairlead.telemetry.identity import SeenEvents
from fairlead.telemetry.sink import EventSink

__all__ = ["BeaconEndpoint", "script"]


_DAY = 86_400.0
_BODY_WITHIN = 10.0  # seconds: who sends a byte now and then would hold a request for ever
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Short = Annotated[str, msgspec.Meta(max_length=200)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=3.6e6)]
_View = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
_Number = Annotated[int, msgspec.Meta(ge=1, le=100)]  # the script sends 21 a view; each is remembered


class _Item(msgspec.Struct, tag_field="kind", kw_only=True):
    view: _View
    n: _Number
    at: float
    page: _Short = ""
    key: _Short = ""
    variant: _Short = ""


class _Page(_Item, tag="page", kw_only=True):
    lcp: _Milliseconds | None = None
    ttfb: _Milliseconds | None = None
    inp: _Milliseconds | None = None
    scroll: _Milliseconds | None = None
    cls: Annotated[float, msgspec.Meta(ge=0, le=1_000)] | None = None
    nav: _Short = ""


class _Error(_Item, tag="error", kw_only=True):
    type: Literal["error", "rejection"]
    name: _Short = ""
    message: Annotated[str, msgspec.Meta(max_length=500)] = ""
    where: Annotated[str, msgspec.Meta(max_length=500)] = ""


class _Report(msgspec.Struct):
    sent: float
    items: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=100)]


_report_decoder = msgspec.json.Decoder(_Report)
_item_decoder: msgspec.json.Decoder[_Page | _Error] = msgspec.json.Decoder(_Page | _Error)


@cache
def script() -> bytes:
    """The script as it is served: `beacon.js` without its comments and indentation."""
    source = Path(__file__).with_name("beacon.js").read_text(encoding="utf-8")
    lines = (line.strip() for line in source.splitlines())
    return "\n".join([line for line in lines if line and not line.startswith("//")]).encode()


class BeaconEndpoint:
    """An ASGI application: `app.mount("/beacon", BeaconEndpoint(sink))`, and in each page
    `<script async src="/beacon" data-page="/feed/{user}"></script>`.

    The tag may also say `data-key` (the unit of randomisation) and `data-variant`.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        origins: Iterable[str] = (),
        allow: Callable[[Scope], bool] | None = None,
        max_bytes: int = 65_536,
        dead_letters: DeadLetterFile | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """sink: takes `PageMeasured` and `ScriptFailed`; not closed here.

        origins: of other sites whose pages may report, such as "https://www.example.com"; the site that serves this
            always may.
        allow: asked for each report, by its scope; False answers 429. A rate limit of clients belongs here.
        max_bytes: of a report, 1,024 to 1,048,576; it has ten seconds to come. dead_letters: takes what is no report; a
            file of its own, since strangers can fill it.
        """
        check_whole("BeaconEndpoint.max_bytes", max_bytes, low=1_024, high=2**20)
        if isinstance(origins, str):
            raise InvalidInput(f"BeaconEndpoint.origins: {origins!r} is one string; pass a tuple of origins")
        self._sink = sink
        self._origins = frozenset(origins)
        for origin in self._origins:
            if "://" not in origin or origin.endswith("/") or "*" in origin:
                raise InvalidInput(
                    f"BeaconEndpoint.origins: {origin!r} is no origin such as 'https://www.example.com'"
                )
        self._allow = allow
        self._max_bytes = max_bytes
        self._dead_letters = dead_letters
        self._clock = clock
        self._seen = SeenEvents(most_sources=20_000)
        self._etag = b'"' + hashlib.sha256(script()).hexdigest()[:32].encode() + b'"'
        self.taken = 0
        """Items that became events."""
        self.repeated = 0
        """Items that had been taken before."""
        self.malformed = 0
        """Items, and whole reports, that were none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise InvalidInput(f"BeaconEndpoint answers http, not {scope['type']}")
        headers = dict(scope.get("headers", ()))
        method = scope["method"]
        if method in ("GET", "HEAD"):
            await self._serve(send, headers, with_body=method == "GET")
        elif method == "POST":
            await self._take(scope, headers, receive, send)
        else:
            await _answer(send, 405, [(b"allow", b"GET, HEAD, POST")])

    async def _serve(self, send: Send, headers: dict[bytes, bytes], *, with_body: bool) -> None:
        fields = [
            (b"etag", self._etag),
            (b"cache-control", b"public, max-age=3600"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self._origins:
            fields.append((b"cross-origin-resource-policy", b"cross-origin"))
        known = [each.strip().removeprefix(b"W/") for each in headers.get(b"if-none-match", b"").split(b",")]
        if self._etag in known:
            await _answer(send, 304, fields)
            return
        fields.append((b"content-type", b"text/javascript; charset=utf-8"))
        await _answer(send, 200, fields, script(), with_body=with_body)

    async def _take(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        origin = headers.get(b"origin", b"").decode("latin-1")
        same_site = not origin or (
            origin != "null" and origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1")
        )
        if not same_site and origin not in self._origins:
            await _answer(send, 403)
            return
        # Without it the script could not read the status, and would send the same report for a day.
        fields = (
            []
            if same_site
            else [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        )
        if self._allow is not None and not self._allow(scope):
            await _answer(send, 429, fields)
            return
        try:
            async with asyncio.timeout(_BODY_WITHIN):
                body = await self._body(receive)
        except TimeoutError:
            await _answer(send, 408, fields)
            return
        if body is None:
            await _answer(send, 413, fields)
            return
        bad: list[tuple[bytes, str]] = []
        read = self._read(body, bad)
        if bad and self._dead_letters is not None:
            await asyncio.to_thread(self._put_aside, self._dead_letters, bad)  # it waits for the disk
        await _answer(send, 204 if read else 400, fields)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None when it is too long. A client that leaves in the middle has sent b""."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    def _read(self, body: bytes, bad: list[tuple[bytes, str]]) -> bool:
        received = self._clock.utc()
        try:
            report = _report_decoder.decode(body)
        except _UNREADABLE as error:
            self.malformed += 1
            bad.append((body, str(error)))
            return False
        for raw in report.items:
            try:
                item = _item_decoder.decode(raw)
            except _UNREADABLE as error:
                self.malformed += 1
                bad.append((bytes(raw), str(error)))
                continue
            if not self._seen.add(f"{item.view}-{item.n}"):
                self.repeated += 1
                continue
            # The browser's clock may be wrong by years: what counts is how long before the sending it was.
            age = min(max(0.0, (report.sent - item.at) / 1000), _DAY)
            self._sink.emit(_event(item, received - age))
            self.taken += 1
        return True

    def _put_aside(self, letters: DeadLetterFile, bad: list[tuple[bytes, str]]) -> None:
        for line, reason in bad:
            letters.put(line, reason=reason, source="beacon")


def _event(item: _Page | _Error, at: float) -> Event:
    if isinstance(item, _Page):
        return PageMeasured(
            at_utc_seconds=at,
            page=item.page,
            view_id=item.view,
            navigation=item.nav,
            largest_contentful_paint_seconds=_seconds(item.lcp),
            first_byte_seconds=_seconds(item.ttfb),
            cumulative_layout_shift=item.cls,
            interaction_to_next_paint_seconds=_seconds(item.inp),
            scroll_latency_seconds=_seconds(item.scroll),
            targeting_key=item.key,
            variant=item.variant,
        )
    return ScriptFailed(
        at_utc_seconds=at,
        page=item.page,
        view_id=item.view,
        number=item.n,
        kind=item.type,
        error=item.name,
        message=item.message,
        where=item.where,
        targeting_key=item.key,
        variant=item.variant,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


async def _answer(
    send: Send,
    status: int,
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    *,
    with_body: bool = True,
) -> None:
    fields = list(headers)
    if status not in (204, 304):
        fields.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body if with_body else b""})
