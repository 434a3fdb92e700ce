"""aiohttp calls that keep a Policy: one middleware at the session, no change where the calls are made.

    aiohttp.ClientSession(middlewares=[PolicyMiddleware(policy=...)])

An attempt lasts until the answer's headers are here, and its body too where `Content-Length` promises at most
`read_ahead` bytes. So an answer that breaks off counts, is tried again, and holds no connection while a retry
waits. A longer body comes to the caller after the call has ended well for breaker and limit; its last byte is due
when the call is: `timeout`, or the request's deadline.

A failing status is a FailedStatus to retry, breaker and limit, and to the caller the answer that came last.
What the policy raises is an aiohttp.ClientError as well.

Trap: aiohttp by itself sends an idempotent request once more when its connection broke, and knows no budget. It
would run this middleware twice, so what it would do that for is raised as a plain ClientConnectionError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from functools import partial
from math import inf
from weakref import ReferenceType, ref

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
    import aiohttp
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
    from aiohttp.payload import BytesPayload
except ImportError as missing:
    raise MissingExtra(missing.name or "aiohttp", "aiohttp") from missing

__all__ = ["PolicyMiddleware", "transient"]

_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# What aiohttp holds in memory of a body that nobody reads: beyond it, waiting for the end would wait for ever.
_MOST_AHEAD = 65_536


def transient(error: Exception) -> bool:
    """For `Retry(on=transient)`: a timeout, a broken or refused connection, 429, 502, 503 or 504."""
    kinds = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
    return isinstance(error, kinds) or is_passing_status(error)


class PolicyMiddleware:
    """Sends each request of an `aiohttp.ClientSession` through a Policy.

    policy: for all requests, or a function that makes one for each origin, "host:port".
    failures: statuses that count against the server. 429 and every 5xx but 501 and 505.
    read_ahead: bytes, 0 to 64 KiB; an answer that promises at most so many, and is not compressed, is received
        within its attempt. 64 KiB: what aiohttp holds of a body that nobody reads yet.
    max_origins: policies kept when they are made by origin; the one unused for longest goes first. 256.

    Tried again are requests whose method is idempotent or that carry an `Idempotency-Key`, if their body is bytes,
    text, JSON or nothing. Any request is tried again if it did not get as far as a connection.
    """

    def __init__(
        self,
        *,
        policy: Policy | Callable[[str], Policy],
        failures: Collection[int] = FAILURES,
        read_ahead: int = _MOST_AHEAD,
        max_origins: int = 256,
    ) -> None:
        check_whole("PolicyMiddleware.read_ahead", read_ahead, low=0, high=_MOST_AHEAD)
        self._policies = PoliciesByOrigin(policy, max_origins)
        self._failures = frozenset(failures)
        self._read_ahead = read_ahead

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        policy = self._policies.of(f"{request.url.host}:{request.url.port}")
        policy = policy.replayable if _may_repeat(request) else policy.once
        exchange: Exchange[ClientResponse] = Exchange(policy, self._failures, request.url.host or "")
        response = None
        try:
            response = await policy.call(partial(self._attempt, exchange, handler), request)
            if not isinstance(response, ClientResponse):
                raise InvalidInput(
                    f"{policy.name}: its fallback answered {response!r:.100}, not an aiohttp.ClientResponse; put the "
                    f"fallback around the call instead"
                )
        except FailedStatus:
            response = exchange.failed
            if response is None:
                raise
        except Unsent as unsent:
            raise unsent.error from unsent.error.__cause__
        except (Refused, DeadlineExceeded) as error:
            if isinstance(error, aiohttp.ClientError):  # from a policy further in
                raise
            raise in_family(error, _FAMILY) from error.__cause__
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise aiohttp.ClientConnectionError(str(error)) from error
        finally:
            _close_all_but(response, exchange)
        _let_body_end(response, policy, exchange.due)
        return response

    async def _attempt(
        self, exchange: Exchange[ClientResponse], handler: ClientHandlerType, request: ClientRequest
    ) -> ClientResponse:
        if exchange.failed is not None:
            exchange.failed = None
            _close_all_but(None, exchange)
        try:
            response = await handler(_with_headers(request))
        except _UNSENT as error:
            raise Unsent(error) from error
        try:
            await self._receive(response)
        except BaseException:
            response.close()
            raise
        return exchange.judge(response, response.status, response.headers)

    async def _receive(self, response: ClientResponse) -> None:
        length = declared_length(response.headers.get("Content-Length"))
        if length is None or length > self._read_ahead or "Content-Encoding" in response.headers:
            return
        if not response.content.is_eof():
            await response.content.wait_eof()


def _with_headers(request: ClientRequest) -> ClientRequest:
    # aiohttp reads the headers after it has connected: attempts that run at once (hedges) need a request each.
    request = copy(request)
    request.headers = headers = request.headers.copy()
    context = current()
    timeout = timeout_for(context.deadline, headers.get(TIMEOUT_HEADER))
    if timeout is not None:
        headers[TIMEOUT_HEADER] = timeout
    request_id = request_id_for(context)
    if request_id is not None:
        headers.setdefault(REQUEST_ID_HEADER, request_id)
    return request


def _close_all_but(kept: ClientResponse | None, exchange: Exchange[ClientResponse]) -> None:
    while exchange.open:
        response = exchange.open.pop()
        if response is not kept:
            response.release()  # keeps the connection if the answer is here whole, drops it if not


def _let_body_end(response: ClientResponse, policy: Policy, due: float) -> None:
    """Breaks the body off at the moment it is due; whoever reads on then gets DeadlineExceeded."""
    content = response.content
    if due == inf or content.is_eof():
        return
    late = _DeadlineExceeded(f"{policy.name}: the answer began in time, its body did not end in time")
    # By a weak reference: one that its caller dropped half read must not live on until the moment.
    timer = policy.clock.call_at(due, partial(_break_off, ref(response), policy, late))
    content.on_eof(timer.cancel)


def _break_off(referred: ReferenceType[ClientResponse], policy: Policy, late: Exception) -> None:
    response = referred()
    if response is not None and not response.content.is_eof() and not response.closed:
        policy.count_late()
        response.content.set_exception(late)
        response.close()


def _may_repeat(request: ClientRequest) -> bool:
    told = idempotent_method(request.method) or IDEMPOTENCY_KEY in request.headers
    return told and (not request.body or isinstance(request.body, BytesPayload))


class Unsent(aiohttp.ClientConnectionError, Refused):
    """Tells the policy that no connection came about, so that nothing began; the caller gets aiohttp's own error."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        super().__init__(str(error))
        self.error = error


# What the policy raises, in two families at once: for code that knows Fairlead, and for `except ClientError`.


class _CircuitOpen(CircuitOpen, aiohttp.ClientConnectionError):
    pass


class _Overloaded(Overloaded, aiohttp.ClientConnectionError):
    pass


class _DeadlineExceeded(DeadlineExceeded, aiohttp.ServerTimeoutError):
    pass


_FAMILY: Family = (_CircuitOpen, _Overloaded, _DeadlineExceeded)
