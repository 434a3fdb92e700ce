"""Where a live service spends its time: `/profile` and `/allocations`, for those who may ask.

A profile shows code, paths and names, and costs the service while it runs. So nothing here is on by default: the
endpoint must be mounted, and cannot be made without a check of who may ask. One measurement at a time, at most a
minute long; it ends when the client leaves, and whatever happens its instrument is taken down again.

    GET /profile?seconds=5&format=svg|speedscope|text     samples the event loop's thread every millisecond
    GET /allocations?seconds=5                            what was allocated in that time and is still there, by line

Waiting is shown as waiting: the time in which the loop had nothing to do is under `select` or the like.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from fairlead.diagnosis.flame_graph import Box, flame_graph
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.telemetry.asgi_types import Receive, Scope, Send
from fairlead.telemetry.bounds import check_number

try:
    from pyinstrument import Profiler
    from pyinstrument.renderers import SpeedscopeRenderer
except ImportError as missing:
    raise MissingExtra("pyinstrument", "diagnosis") from missing

if TYPE_CHECKING:
    from pyinstrument.frame import Frame

__all__ = ["DiagnosisEndpoint"]


_TYPES = {
    "svg": "image/svg+xml",
    "speedscope": "application/json",
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
}
_MOST_LINES = 50


class _Wrong(Exception):
    """An answer other than the one asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DiagnosisEndpoint:
    """An ASGI application: `app.mount("/debug", DiagnosisEndpoint(allow=may_ask))`. Per process: with several workers,
    the one that answers is the one that is measured.
    """

    def __init__(self, *, allow: Callable[[Scope], bool], max_seconds: float = 60.0) -> None:
        """allow: by the scope of the request, whether it may be answered; a 403 otherwise. What it raises is a 403 too.

        max_seconds: the longest measurement, above 0 and at most 300.
        """
        if not callable(allow):
            raise InvalidInput("DiagnosisEndpoint.allow: pass a function that says who may ask")
        check_number("DiagnosisEndpoint.max_seconds", max_seconds, above=0.0, high=300.0)
        self._allow = allow
        self._max_seconds = max_seconds
        self._busy = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise InvalidInput(f"DiagnosisEndpoint answers http, not {scope['type']}")
        try:
            kind, body = await self._answered(scope, receive)
        except _Wrong as wrong:
            await _send(send, wrong.status, _TYPES["text"], f"{wrong}\n".encode())
        else:
            if body is not None:
                await _send(send, 200, _TYPES[kind], body)

    async def _answered(self, scope: Scope, receive: Receive) -> tuple[str, bytes | None]:
        """The kind of answer and its body; no body when the client has left."""
        if not self._may(scope):
            raise _Wrong(403, "not allowed")
        if scope["method"] != "GET":
            raise _Wrong(405, "ask with GET")
        asked = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).strip("/")
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), max_num_fields=10))
        seconds = self._seconds(query.get("seconds", "5"))
        kind = query.get("format", "svg" if asked == "profile" else "json")
        if asked not in ("profile", "allocations"):
            raise _Wrong(404, "there are: profile, allocations")
        if asked == "profile" and kind not in ("svg", "speedscope", "text"):
            raise _Wrong(400, f"format {kind[:20]!r} is not one of svg, speedscope, text")
        if self._busy:
            raise _Wrong(409, "a measurement is running: ask again when it has ended")
        self._busy = True
        try:
            if asked == "profile":
                return kind, await self._profile(seconds, kind, receive)
            return "json", await self._allocations(seconds, receive)
        finally:
            self._busy = False

    def _may(self, scope: Scope) -> bool:
        try:
            return bool(self._allow(scope))
        except Exception:  # a check that fails lets nobody in
            return False

    def _seconds(self, text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds <= self._max_seconds:
            raise _Wrong(400, f"seconds = {text[:20]}: expected above 0 and at most {self._max_seconds:g}")
        return seconds

    async def _profile(self, seconds: float, kind: str, receive: Receive) -> bytes | None:
        # disabled: of the thread, whichever task runs. pyinstrument's own mode would follow this one request.
        profiler = Profiler(interval=0.001, async_mode="disabled")
        try:
            profiler.start()
        except RuntimeError as error:
            raise _Wrong(409, "another profiler is running in this process") from error
        try:
            stayed = await _stayed(receive, seconds)
        finally:
            session = profiler.stop()
        if not stayed:
            return None
        if kind == "speedscope":
            return str(SpeedscopeRenderer().render(session)).encode()
        if kind == "text":
            return profiler.output_text(unicode=True, show_all=True).encode()
        frame = session.root_frame()
        box = Box(name="nothing was sampled", seconds=0.0) if frame is None else _box(frame)
        return flame_graph(box, title=f"{session.duration:.1f} s, {session.sample_count} samples").encode()

    async def _allocations(self, seconds: float, receive: Receive) -> bytes | None:
        if tracemalloc.is_tracing():
            raise _Wrong(409, "tracemalloc is running in this process already")
        tracemalloc.start(1)
        try:
            stayed = await _stayed(receive, seconds)
            taken = tracemalloc.take_snapshot() if stayed else None
        finally:
            tracemalloc.stop()
        if taken is None:
            return None
        # Grouping hundreds of thousands of traces takes seconds, which the loop has other work for.
        lines = await asyncio.to_thread(taken.statistics, "lineno")
        return msgspec.json.encode(
            {
                "schema": "fairlead.allocations/1",
                "seconds": seconds,
                "bytes": sum(line.size for line in lines),
                "lines": [
                    {
                        "where": f"{line.traceback[0].filename}:{line.traceback[0].lineno}",
                        "bytes": line.size,
                        "blocks": line.count,
                    }
                    for line in lines[:_MOST_LINES]
                ],
            }
        )


async def _stayed(receive: Receive, seconds: float) -> bool:
    """Waits; False as soon as the client has left."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(left())
    try:
        done, _ = await asyncio.wait([leaving], timeout=seconds)
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    return not done


def _box(root: Frame) -> Box:
    """The stacks, with the calls of one function from one place gathered, the costliest first."""
    top = _gathered([root])
    waiting = [([root], top)]
    while waiting:
        frames, box = waiting.pop()
        by_function: dict[str, list[Frame]] = {}
        for frame in frames:
            for child in frame.children:
                if not child.is_synthetic:
                    by_function.setdefault(child.identifier, []).append(child)
        children = [(each, _gathered(each)) for each in by_function.values()]
        children.sort(key=lambda pair: -pair[1].seconds)
        box.children = [child for _, child in children]
        waiting.extend(children)
    return top


def _gathered(frames: list[Frame]) -> Box:
    first = frames[0]
    return Box(
        name=first.function,
        seconds=sum(frame.time for frame in frames),
        where=f"{first.file_path_short or ''}:{first.line_no or ''}",
    )


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        # An SVG opened by itself is a document: it may run nothing and fetch nothing.
        (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
