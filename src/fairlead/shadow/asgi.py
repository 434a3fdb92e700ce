"""Shows a candidate the requests of any ASGI 3 application, without the application or its clients noticing.

The request's body and the response are copied as they pass, each up to a bound; nothing waits for the copy. When the
last part of the response has been handed over, the copy goes to the mirror, which asks the candidate, an
`AsgiCandidate` in this process or an upstream (`fairlead.shadow.httpx`), and compares status, chosen headers and body.

Only requests that may be repeated are mirrored: GET, HEAD and OPTIONS, or what you say. A mirrored request carries
`x-fairlead-shadow: 1`, and one that carries it is not mirrored again. What signs a client in (`authorization`,
`cookie`, `x-api-key`) is withheld from the candidate unless you allow it.

Websockets and lifespan pass untouched; a candidate in this process needs its own start-up run by yours.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from fairlead.calls.bounds import check_whole
from fairlead.calls.http_semantics import FAILURES
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.deadline import TIMEOUT_HEADER
from fairlead.errors import FailedStatus, InvalidInput
from fairlead.shadow.capture import Client, Copy, has_body
from fairlead.shadow.comparison import Answer
from fairlead.shadow.diff import RawJson
from fairlead.shadow.mark import SHADOW_HEADER, shadow_context
from fairlead.shadow.mirror import Mirror
from fairlead.telemetry.asgi_types import Application, Receive, Scope, Send

__all__ = [
    "AsgiCandidate",
    "MirrorMiddleware",
    "MirroredRequest",
    "MirroredResponse",
    "ShadowedMiddleware",
]

_MARK = SHADOW_HEADER.encode()
_TIMEOUT = TIMEOUT_HEADER.encode()
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_WITHOUT_BODY = frozenset({204, 304})
_RAISED = 500  # what servers make of an application that raises before it answers
_CREDENTIALS = frozenset({b"authorization", b"cookie", b"proxy-authorization", b"x-api-key"})
# Of one connection, not of the request (RFC 9110, 7.6.1); and what is written anew for the copy.
_NOT_COPIED = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer"),
        *(
            b"transfer-encoding",
            b"upgrade",
            b"expect",
            b"content-length",
            b"accept-encoding",
            _TIMEOUT,
            _MARK,
        ),
    }
)
_LARGEST = 1024 * 1024  # to decode two takes some 30 ms of the loop

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MirroredRequest:
    """A request as a candidate is asked it."""

    method: str
    path: str
    """Decoded, as in an ASGI scope."""
    target: str
    """Path and query as they came, percent-encoded."""
    headers: Headers
    """Lower-case names; without those of the connection, with the mark, and without credentials unless allowed."""
    body: bytes
    scope: Mapping[str, Any]
    """Of the original, as it came in."""
    compared: frozenset[str] = frozenset({"content-type"})
    """Lower-case names of the headers of the response that are compared."""
    body_bytes: int = 65_536
    """Of a response whose body is larger, nothing is compared."""

    def answer(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        seconds: float | None = None,
    ) -> Answer:
        """A response as it is compared.

        A body that HTTP does not carry (of an answer to HEAD, of a 204 or 304) is left out, as servers do. A 500 is
        compared by its status alone: its page is whose server made it of what the application raised.
        """
        if len(body) > self.body_bytes:
            return Answer(whole=False)
        return _answer(self.method, status, headers, body, self.compared, seconds)


@dataclass(frozen=True, slots=True)
class MirroredResponse:
    """What of an answer is compared: `status`, `headers.…` and `body.…` are the names of its fields."""

    status: int
    headers: Mapping[str, str]
    body: RawJson | str


Candidate = Callable[[MirroredRequest], Awaitable[object]]
"""Answers a mirrored request, by its `answer`."""


class MirrorMiddleware:
    """Mirrors requests to `app`. Put it inside what compresses, admits and signs in; outside what answers.

    With Starlette and FastAPI: `app.add_middleware(MirrorMiddleware, mirror=mirror, candidate=…)`. Close the mirror
    at shutdown.

    mirror: compares, and says how much.
    candidate: an AsgiCandidate, an HttpxCandidate, or any function that returns the `answer` of a MirroredRequest.
    idempotent: whether a request may be served twice, by its scope; None: GET, HEAD and OPTIONS may.
    headers: of the response, which to compare.
    credentials: whether the candidate gets `authorization`, `cookie`, `proxy-authorization` and `x-api-key`. Without
        them it answers as to a stranger. Control's second run always has them: they were sent to it.
    unit: what the mirror's share is drawn by (user, device), by the scope; None: the context's targeting key, else
        by lot.
    body_bytes: kept of a request and of a response each, 0 to 1 MiB; larger ones are not compared. 64 KiB.
    copies: requests that are copied at once, 1 to 100,000: what bounds the memory. 256.
    """

    def __init__(
        self,
        app: Application,
        *,
        mirror: Mirror,
        candidate: Candidate,
        idempotent: Callable[[Scope], bool] | None = None,
        headers: Collection[str] = ("content-type",),
        credentials: bool = False,
        unit: Callable[[Scope], str] | None = None,
        body_bytes: int = 65_536,
        copies: int = 256,
    ) -> None:
        check_whole("MirrorMiddleware.body_bytes", body_bytes, low=0, high=_LARGEST)
        check_whole("MirrorMiddleware.copies", copies, low=1, high=100_000)
        if isinstance(headers, str):
            raise InvalidInput(f"MirrorMiddleware.headers: {headers!r} is one string; pass a tuple of names")
        self.app = app
        self._mirror = mirror
        self._candidate = candidate
        self._again = _Again(app, clock=mirror.clock)
        self._idempotent = idempotent or _safe
        self._compared = frozenset(name.lower() for name in headers)
        self._credentials = credentials
        self._unit = unit
        self._body_bytes = body_bytes
        self._copies = copies
        self._copied = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._enters(scope):
            await self.app(scope, receive, send)
            return
        copy = Copy(
            receive, send, self._body_bytes, self._mirror.clock, partial(self._offer, _as_it_came(scope))
        )
        copy.request_whole = not has_body(scope)
        self._copied += 1
        try:
            await self.app(scope, copy.receive, copy.send)
        except Exception as error:
            copy.raised(error)
            raise
        finally:
            copy.end()

    def _enters(self, scope: Scope) -> bool:
        mirror = self._mirror
        try:
            unit = self._unit(scope) if self._unit is not None else current().targeting_key
            if not mirror.enters(unit):
                return False
            if any(name == _MARK for name, _ in scope["headers"]):
                mirror.drop("marked")
            elif not self._idempotent(scope):
                mirror.drop("not_idempotent")
            elif self._copied >= self._copies:
                mirror.drop("full")
            else:
                return True
        except Exception:  # a function of others: the request goes on without being mirrored
            mirror.drop("broken")
        return False

    def _offer(self, scope: Scope, copy: Copy) -> None:
        self._copied -= 1
        reason = copy.unfit()
        if reason is None:
            try:
                self._compare(scope, copy)
            except Exception:  # a header or a scope that is none: never the application's loss
                reason = "broken"
        if reason is not None:
            self._mirror.drop(reason)

    def _compare(self, scope: Scope, copy: Copy) -> None:
        body, answered = copy.take()
        control = _of(copy, scope["method"], answered, self._compared)
        self._mirror.offer(
            control,
            partial(self._ask, self._candidate, scope, body, credentials=self._credentials),
            partial(self._ask, self._again, scope, body, credentials=True),
        )

    async def _ask(self, arm: Candidate, scope: Scope, body: bytes, *, credentials: bool) -> object:
        # In the mirror's task: what need not be done on the request's way is not.
        return await arm(self._request(scope, body, credentials=credentials))

    def _request(self, scope: Scope, body: bytes, *, credentials: bool) -> MirroredRequest:
        named = {
            part.strip().lower()
            for name, value in scope["headers"]
            if name == b"connection"
            for part in value.split(b",")
        }
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name not in _NOT_COPIED and name not in named and (credentials or name not in _CREDENTIALS)
        ]
        timeout = str(math.ceil(self._mirror.timeout * 1000)).encode()  # none at all would be refused
        # A compressed answer would have to be unpacked to be compared.
        headers += [(b"accept-encoding", b"identity"), (_TIMEOUT, timeout), (_MARK, b"1")]
        if body or any(name == b"content-length" for name, _ in scope["headers"]):
            headers.append((b"content-length", str(len(body)).encode()))
        raw = scope.get("raw_path") or quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
        query = scope.get("query_string", b"")
        return MirroredRequest(
            method=scope["method"],
            path=scope["path"],
            target=(raw + b"?" + query if query else raw).decode("latin-1"),
            headers=tuple(headers),
            body=body,
            scope=scope,
            compared=self._compared,
            body_bytes=self._body_bytes,
        )


class AsgiCandidate:
    """An ASGI application of this process as a candidate, or as control's second run.

    It shares the loop, the memory and the caches with the service: what it computes, it computes in front of real
    requests. Its lifespan is not run here. What it does after its answer is within the mirror's timeout, too.
    """

    def __init__(self, app: Application, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, request: MirroredRequest) -> Answer:
        """Its answer, timed to its last byte; raises what breaks the response off."""
        client = Client(request.body)
        copy = Copy(client.receive, client.send, request.body_bytes, self._clock, client.leave)
        try:
            await self._app(self._scope(request), copy.receive, copy.send)
        except Exception as error:  # as control's, its answer stands if it fails only afterwards
            copy.raised(error)
            if copy.unfit() == "incomplete":
                raise
        if (reason := copy.unfit()) in ("too_large", "encoded"):
            return Answer(whole=False)
        if reason is not None:
            raise FailedStatus(
                f"{request.method} {request.path[:100]}: the application did not end its response",
                status=copy.status,
            )
        _, body = copy.take()
        return _of(copy, request.method, body, request.compared)

    def _scope(self, request: MirroredRequest) -> dict[str, Any]:
        """Only what a server would say: not what middleware of the service has put in for its own application."""
        path, _, query = request.target.encode("latin-1").partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scope.get("scheme", "http"),
            "path": request.path,
            "raw_path": path,
            "query_string": query,
            "root_path": request.scope.get("root_path", ""),
            "headers": list(request.headers),
            "client": request.scope.get("client"),
            "server": request.scope.get("server"),
        }
        if "state" in request.scope:
            # What the lifespan made; a copy, so that nothing is put there for others.
            scope["state"] = dict(request.scope["state"])
        return scope


class _Again(AsgiCandidate):
    """Control's second run, of what lies inside the middleware: it needs what lies outside has put into the scope."""

    def _scope(self, request: MirroredRequest) -> dict[str, Any]:
        # Extensions would let it answer in ways that are not copied.
        return {**request.scope, **super()._scope(request), "extensions": {}}


class ShadowedMiddleware:
    """Marks what a candidate's own process does for mirrored requests, so that `is_shadow()` says so there, too.

    For a service that only mirrors reach. Where users reach it, whoever sends `x-fairlead-shadow` would pass for a
    shadow: strip the header at the edge.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == _MARK for name, _ in scope["headers"]):
            with shadow_context():
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _as_it_came(scope: Scope) -> Scope:
    """Out of reach of the application, which puts into it what its second run must find out anew."""
    kept = {**scope, "headers": tuple(scope["headers"])}
    if isinstance(scope.get("state"), dict):
        kept["state"] = dict(scope["state"])
    return kept


def _of(copy: Copy, method: str, body: bytes, compared: Collection[str]) -> Answer:
    status = _RAISED if copy.error else copy.status
    return _answer(method, status, copy.headers, body, compared, copy.seconds, copy.error)


def _answer(
    method: str,
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    compared: Collection[str],
    seconds: float | None,
    error: str = "",
) -> Answer:
    chosen: dict[str, str] = {}
    shown: RawJson | str = ""
    if status != _RAISED:
        kind = b""
        for raw, value in headers:
            name = raw.lower()
            if name == b"content-type":
                kind = value.lower()
            if (text := name.decode("latin-1")) in compared:
                read = value.decode("latin-1")
                chosen[text] = f"{chosen[text]}, {read}" if text in chosen else read
        if method == "HEAD" or status in _WITHOUT_BODY:
            body = b""
        shown = RawJson(body) if b"json" in kind else body.decode("utf-8", "backslashreplace")
    response = MirroredResponse(status, chosen, shown)
    return Answer(value=response, seconds=seconds, error=error, failed=status in FAILURES)


def _safe(scope: Scope) -> bool:
    return scope["method"] in _SAFE
