"""What the front service of either arm does around an answer: reads the request, says how it came about, records it.

`GET /config?user=U` answers `{"segment", "values"}`; `/page` is a page that reads it (page.py). Headers tell how an
answer came about: `x-degraded` (0 or 1), `x-staleness-seconds`, `x-age-seconds`, `x-cache` (hit or miss). `/beacon/`
takes what the page's browser measured, `/healthz` is for probes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from fairlead.errors import InvalidInput
from fairlead.telemetry import (
    BeaconEndpoint,
    BufferedSink,
    JsonLinesSegments,
    MetricRegistry,
    NullSink,
    RequestFinished,
)
from fairlead_systems.remote_config.documents import Document, matches
from fairlead_systems.remote_config.instrument import Instrument
from fairlead_systems.remote_config.page import page_html
from fairlead_systems.remote_config.schema import check_user

__all__ = ["Answer", "Front", "NoAnswer"]

_SERVICE = "remote_config"


class NoAnswer(Exception):
    """There is no document; `status` is what the client gets."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Answer:
    """A document and how it came about."""

    __slots__ = ("age", "degraded_by", "document", "hit", "staleness", "version")

    def __init__(
        self,
        document: Document,
        *,
        degraded_by: str = "",
        staleness: float = 0.0,
        age: float | None = None,
        hit: bool = False,
        version: int | None = None,
    ) -> None:
        self.document = document
        self.degraded_by = degraded_by
        self.staleness = staleness
        self.age = age
        self.hit = hit
        self.version = version

    def headers(self) -> dict[str, str]:
        headers = {
            "etag": self.document.etag,
            "cache-control": "private, no-cache",  # kept by the browser, and asked about each time: a 304 is cheap
            "x-degraded": "1" if self.degraded_by else "0",
            "x-staleness-seconds": f"{self.staleness:.6f}",
            "x-cache": "hit" if self.hit else "miss",
        }
        if self.age is not None:
            headers["x-age-seconds"] = f"{self.age:.6f}"
        if self.version is not None:
            headers["x-config-version"] = str(self.version)
        return headers


class Front:
    """The front of one process. `find` makes the answer for a user."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Answer]],
        *,
        instance: str,
        variant: str,
        instrument: Instrument,
        registry: MetricRegistry,
        events: Path | None = None,
    ) -> None:
        self._find = find
        self._instance = instance
        self._variant = variant
        self._instrument = instrument
        self._numbers = itertools.count(1)
        self._sink = (
            BufferedSink(JsonLinesSegments(events, prefix="config"), capacity=50_000) if events else None
        )
        self._degraded = registry.counter(
            "remote_config_degraded_answers_total", "Answers without what the table says now."
        )

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/config", self.answer),
            Route("/page", self._page),
            Mount("/beacon", BeaconEndpoint(self._sink or NullSink())),
            Route("/healthz", self._healthz),
            Route("/lab/events", self._events, methods=["POST"]),
        ]

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()

    async def answer(self, request: Request) -> Response:
        began = time.monotonic()
        self._instrument.requests += 1
        try:
            user = check_user(request.query_params.get("user", ""))
        except InvalidInput as error:
            self._finish(400, began, None, error)
            return JSONResponse({"error": str(error)}, status_code=400)
        try:
            answer = await self._find(user)
        except NoAnswer as error:
            self._finish(error.status, began, None, error.__cause__ or error)
            headers = {"retry-after": "1"} if error.status == 503 else {}
            return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)
        except Exception as error:  # a defect: the server answers 500 and logs it, and the record says so too
            self._finish(500, began, None, error)
            raise
        known = matches(request.headers.get("if-none-match"), answer.document.etag)
        status = 304 if known else 200
        self._finish(status, began, answer, None)
        if known:
            return Response(status_code=304, headers=answer.headers())
        return Response(answer.document.body, media_type="application/json", headers=answer.headers())

    def _finish(self, status: int, began: float, answer: Answer | None, error: BaseException | None) -> None:
        latency = time.monotonic() - began
        degraded = answer is not None and bool(answer.degraded_by)
        if degraded:
            self._degraded.add()
        if self._sink is None:
            return
        self._sink.emit(
            RequestFinished(
                at_utc_seconds=time.time(),
                request_id=f"{self._instance}-{next(self._numbers)}",
                service=_SERVICE,
                route="/config",
                status=status,
                latency_seconds=latency,
                degraded=degraded,
                stale=answer is not None and answer.staleness > 0,
                staleness_seconds=answer.staleness if answer is not None else 0.0,
                age_seconds=(answer.age or 0.0) if answer is not None else 0.0,
                error=type(error).__name__ if error is not None else "",
                variant=self._variant,
                attributes={"degraded_by": answer.degraded_by} if answer is not None and degraded else {},
            )
        )

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(page_html(self._variant))

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "instance": self._instance})

    async def _events(self, request: Request) -> Response:
        if self._sink is None:
            return JSONResponse({"missing": 0, "failure": ""})
        stats = self._sink.stats
        return JSONResponse({"missing": stats.dropped + stats.lost, "failure": str(self._sink.failure or "")})
