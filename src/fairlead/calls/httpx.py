"""httpx calls that keep a Policy: one line at the client, no change where the calls are made.

    httpx.AsyncClient(transport=PolicyTransport(policy=...))

An attempt lasts until the answer's headers are here, and its body too where `Content-Length` promises at most
`read_ahead` bytes. So an answer that breaks off counts, is tried again, and holds no connection while a retry
waits. A longer body streams to the caller after the call has ended well for breaker and limit; its last byte is
due when the call is: `timeout`, or the request's deadline.

A failing status is a FailedStatus to retry, breaker and limit, and to the caller the answer that came last.
What the policy raises is an httpx.TransportError as well, so code that survived a failing network still does.

Invariant: whatever ends a request, each answer that the caller does not get is closed.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from math import inf
from types import TracebackType

from fairlead.calls.bounds import check_whole
from fairlead.calls.by_origin import PoliciesByOrigin
from fairlead.calls.error_family import Family, in_family
from fairlead.calls.http_exchange import Exchange
from fairlead.calls.http_semantics import (
    FAILURES,
    IDEMPOTENCY_KEY,
    REQUEST_ID_HEADER,
    declared_length,
    idempotent_method,
    is_passing_status,
    request_id_for,
    timeout_for,
)
from fairlead.calls.policy import Policy
from fairlead.context import current
from fairlead.deadline import TIMEOUT_HEADER
from fairlead.errors import (
    CircuitOpen,
    DeadlineExceeded,
    FailedStatus,
    InvalidInput,
    MissingExtra,
    Overloaded,
    Refused,
)

try:
    import httpx
except ImportError as missing:
    raise MissingExtra(missing.name or "httpx", "http") from missing

__all__ = ["PolicyTransport", "transient"]

_PORTS = {"http": 80, "https": 443}


def transient(error: Exception) -> bool:
    """For `Retry(on=transient)`: a timeout, a broken or refused connection, 429, 502, 503 or 504."""
    kinds = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, TimeoutError)
    return isinstance(error, kinds) or is_passing_status(error)


class PolicyTransport(httpx.AsyncBaseTransport):
    """Sends each request of an `httpx.AsyncClient` through a Policy.

    transport: what sends. None: a new `httpx.AsyncHTTPTransport()`, which this one closes.
    policy: for all requests, or a function that makes one for each origin, "host:port".
    failures: statuses that count against the server. 429 and every 5xx but 501 and 505.
    read_ahead: bytes, 0 to 16 MiB; an answer that promises at most so many is read within its attempt. 64 KiB.
    max_origins: policies kept when they are made by origin; the one unused for longest goes first. 256.

    Tried again are requests whose method is idempotent or that carry an `Idempotency-Key`, or
    `extensions={"idempotent": True}`; False there forbids it. A request body that can be read only once forbids it
    too. Any request is tried again if it did not get as far as a connection.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        policy: Policy | Callable[[str], Policy],
        failures: Collection[int] = FAILURES,
        read_ahead: int = 65_536,
        max_origins: int = 256,
    ) -> None:
        check_whole("PolicyTransport.read_ahead", read_ahead, low=0, high=16 * 1024 * 1024)
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport
        self._policies = PoliciesByOrigin(policy, max_origins)
        self._failures = frozenset(failures)
        self._read_ahead = read_ahead

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        policy = self._policies.of(f"{url.host}:{url.port or _PORTS.get(url.scheme, 0)}")
        policy = policy.replayable if _may_repeat(request) else policy.once
        exchange: Exchange[httpx.Response] = Exchange(policy, self._failures, url.host)
        response = None
        try:
            response = await policy.call(partial(self._attempt, exchange), request)
            if not isinstance(response, httpx.Response):
                raise InvalidInput(
                    f"{policy.name}: its fallback answered {response!r:.100}, not an httpx.Response"
                )
        except FailedStatus:
            response = exchange.failed
            if response is None:
                raise
        except _NotTheirFault as ours:
            raise ours.error from ours.error.__cause__
        except httpx.TransportError:
            raise
        except (Refused, DeadlineExceeded) as error:
            raise in_family(error, _FAMILY) from error.__cause__
        finally:
            await _close_all_but(response, exchange)
        body = _streamed(response)
        if body is not None and exchange.due != inf:
            response.stream = _DueBody(body, policy, exchange.due)
        return response

    async def _attempt(self, exchange: Exchange[httpx.Response], request: httpx.Request) -> httpx.Response:
        if exchange.failed is not None:
            exchange.failed = None
            await _close_all_but(None, exchange)
        try:
            response = await self._transport.handle_async_request(_with_headers(request))
            body = _streamed(response)
            length = declared_length(response.headers.get("content-length"))
            if body is not None and length is not None and length <= self._read_ahead:
                response.stream = httpx.ByteStream(await _read(body))
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            raise _told_apart(error) from error.__cause__
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise _NotTheirFault(error) from error
        return exchange.judge(response, response.status_code, response.headers)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> PolicyTransport:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)


def _with_headers(request: httpx.Request) -> httpx.Request:
    # A request of its own for each attempt: hedges run at the same time, and the caller's stays as it was.
    headers = request.headers
    context = current()
    request_id = request_id_for(context)
    timeout = timeout_for(context.deadline, headers.get(TIMEOUT_HEADER))
    if request_id is not None and REQUEST_ID_HEADER in headers:
        request_id = None
    if timeout is None and request_id is None:
        return request
    headers = headers.copy()
    if timeout is not None:
        headers[TIMEOUT_HEADER] = timeout
    if request_id is not None:
        headers[REQUEST_ID_HEADER] = request_id
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


async def _close_all_but(kept: httpx.Response | None, exchange: Exchange[httpx.Response]) -> None:
    while exchange.open:
        response = exchange.open.pop()
        if response is not kept:
            await response.aclose()


class _DueBody(httpx.AsyncByteStream):
    """A body whose last byte is due at a moment; reading on after it raises DeadlineExceeded."""

    def __init__(self, body: httpx.AsyncByteStream, policy: Policy, due: float) -> None:
        self._body = body
        self._policy = policy
        self._due = due

    async def __aiter__(self) -> AsyncIterator[bytes]:
        expiries = self._policy.expiries
        chunks = self._body.__aiter__()
        while True:
            if self._policy.clock.now() >= self._due:
                raise self._late()
            expiry = expiries.add(self._due, None, 0, None, inf)
            try:
                chunk = await anext(chunks)
            except StopAsyncIteration:
                expiries.close(expiry)
                return
            except BaseException as error:
                if expiries.close(expiry) and isinstance(error, CancelledError):
                    raise self._late() from error
                raise
            expiries.close(expiry)
            yield chunk

    def _late(self) -> DeadlineExceeded:
        self._policy.count_late()
        return _DeadlineExceeded(
            f"{self._policy.name}: the answer began in time, its body did not end in time"
        )

    async def aclose(self) -> None:
        await self._body.aclose()


def _streamed(response: httpx.Response) -> httpx.AsyncByteStream | None:
    """The body, if it still has to come over a connection."""
    body = response.stream
    return (
        body if isinstance(body, httpx.AsyncByteStream) and not isinstance(body, httpx.ByteStream) else None
    )


async def _read(body: httpx.AsyncByteStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in body])
    finally:
        await body.aclose()


def _may_repeat(request: httpx.Request) -> bool:
    told = request.extensions.get("idempotent")
    if told is None:
        told = idempotent_method(request.method) or IDEMPOTENCY_KEY in request.headers
    return bool(told) and isinstance(request.stream, httpx.ByteStream)


class _NotTheirFault(BaseException):
    """Carries a mistake of the caller past retry and breaker: it says nothing about the server."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


# What the policy raises, in two families at once: for code that knows Fairlead, and for `except httpx.HTTPError`.


class _CircuitOpen(CircuitOpen, httpx.TransportError):
    pass


class _Overloaded(Overloaded, httpx.TransportError):
    pass


class _DeadlineExceeded(DeadlineExceeded, httpx.TimeoutException):
    def __init__(self, message: str) -> None:
        # TimeoutError stands before httpx in the order of bases and hands nothing on.
        httpx.TimeoutException.__init__(self, message)


_FAMILY: Family = (_CircuitOpen, _Overloaded, _DeadlineExceeded)


# What httpx raises, with what it means to a policy: nothing was sent, or time ran out. Named as in httpx, because
# events and counts carry the name.


class ConnectError(httpx.ConnectError, Refused):
    pass


class ConnectTimeout(httpx.ConnectTimeout, Refused, TimeoutError):
    pass


class PoolTimeout(httpx.PoolTimeout, Refused, TimeoutError):
    pass


class ReadTimeout(httpx.ReadTimeout, TimeoutError):
    pass


class WriteTimeout(httpx.WriteTimeout, TimeoutError):
    pass


_MEANING: dict[type[Exception], type[httpx.TransportError]] = {
    httpx.ConnectError: ConnectError,
    httpx.ConnectTimeout: ConnectTimeout,
    httpx.PoolTimeout: PoolTimeout,
    httpx.ReadTimeout: ReadTimeout,
    httpx.WriteTimeout: WriteTimeout,
}


def _told_apart(error: httpx.TransportError) -> httpx.TransportError:
    kind = _MEANING.get(type(error))
    return error if kind is None else kind(str(error))
