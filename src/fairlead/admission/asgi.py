"""Admission in front of any ASGI 3 application: Starlette, FastAPI, Litestar, Quart, a bare function.

A request passes: health check? → deadline (`x-request-timeout-ms`, at most `timeout`) → rate limit of its
client → permit of the load shedder → the application, in a RequestContext with its id, priority and deadline.
It is answered here, before any work began, with 400 (a deadline that is none), 429, 503 or 504; and if the
application raises RateLimited, another Refused, or DeadlineExceeded before its response begins.

Invariants: a permit is given back when the application returns, raises or is cancelled, whatever the client
does. Once a response has begun, nothing here touches it. What a client says of its own priority is not read.

Websockets and lifespan pass untouched: a permit for the hours of a websocket would measure nothing. Use
`LoadShedder.admit` around the work of a message instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv6Address
from math import ceil, inf

import msgspec

from fairlead.admission.load_shedding import Admission, LoadShedder, Outcome
from fairlead.admission.rate_limit import ClientLimiter, RateDecision
from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.expiry import Expiries
from fairlead.calls.retry import asked_to_wait
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import Priority, RequestContext, request_context
from fairlead.deadline import TIMEOUT_HEADER, Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, RateLimited, Refused
from fairlead.telemetry.asgi_types import Application, Message, Receive, Scope, Send

__all__ = ["AdmissionMiddleware", "forwarded_client", "peer_address"]


_TIMEOUT_HEADER = TIMEOUT_HEADER.encode()
_LONGEST_REQUEST_ID = 128
_LONGEST_WAIT = 86_400.0


class AdmissionMiddleware:
    """Lets requests into `app` as the shedder and the rate limiter allow, each until its deadline. Per process.

    With Starlette and FastAPI: `app.add_middleware(AdmissionMiddleware, shedder=LoadShedder("feed"))`; wrapped
    around the whole application instead, it sees only the 500 that their outermost layer makes of an error.

    shedder: None admits everything.
    rate_limiter: a RateLimiter, or a RedisRateLimiter. None: no limit.
    priority: of a request, by its scope; None instead of a priority lets it pass without a permit (streams
        that stay open). NORMAL for all by default.
    client: whose bucket a request takes from, by its scope. By default the address that connected, which
        behind a proxy is the proxy's, the same for all: see forwarded_client.
    health: paths that always pass, without permit, rate limit or deadline. Exact, as in scope["path"].
    timeout: seconds, above 0 up to a day. The deadline of a caller that names none, and the latest that one
        may name. Bounds the time until the response begins: then the application is cancelled, and 504 sent.
    request_id_header: whose value becomes the request id; a random one if it is missing or odd.
    """

    def __init__(
        self,
        app: Application,
        *,
        shedder: LoadShedder | None = None,
        rate_limiter: ClientLimiter | None = None,
        priority: Callable[[Scope], Priority | None] | None = None,
        client: Callable[[Scope], str] | None = None,
        health: Iterable[str] = ("/healthz", "/livez", "/readyz"),
        timeout: float = 30.0,
        request_id_header: str = "x-request-id",
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        check_number("AdmissionMiddleware.timeout", timeout, above=0.0, high=86_400.0)
        if isinstance(health, str):
            raise InvalidInput(f"AdmissionMiddleware.health: {health!r} is one string; pass a tuple of paths")
        self.app = app
        self._shedder = shedder
        self._rate_limiter = rate_limiter
        self._priority = priority
        self._client = client or peer_address
        self._health = frozenset(health)
        self._timeout = timeout
        self._request_id_header = request_id_header.lower().encode("latin-1")
        self._clock = clock
        self._rng = rng or random.SystemRandom()  # workers forked later must not share its state
        self._expiries = Expiries(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._health:
            await self.app(scope, receive, send)
            return
        response = _Response(send)
        try:
            await self._enter(scope, receive, response)
        except (Refused, DeadlineExceeded, _BadDeadline) as error:
            if response.begun:
                raise
            await _answer(error, send, response.headers)

    async def _enter(self, scope: Scope, receive: Receive, response: _Response) -> None:
        deadline, request_id = self._read(scope)
        priority = self._priority(scope) if self._priority is not None else Priority.NORMAL
        shedder = self._shedder if priority is not None else None
        if deadline.expired():
            if shedder is not None:
                async with shedder.admit(priority, deadline):
                    pass  # it raises, and counts
            deadline.check(_named(scope))
        if self._rate_limiter is not None:
            decision = self._rate_limiter.check(self._client(scope))
            if not isinstance(decision, RateDecision):
                decision = await decision
            response.headers = [(name.lower().encode(), value.encode()) for name, value in decision.headers()]
            decision.require()
        context = RequestContext(
            request_id=request_id,
            deadline=deadline,
            priority=Priority.NORMAL if priority is None else priority,
        )
        with request_context(context):
            if shedder is None:
                await self._run(scope, receive, response, deadline)
                return
            async with shedder.admit(priority, deadline) as admission:
                response.admission = admission
                await self._run(scope, receive, response, deadline)
                if not response.begun:
                    admission.measure("unknown")

    async def _run(self, scope: Scope, receive: Receive, response: _Response, deadline: Deadline) -> None:
        expiries = self._expiries
        expiry = expiries.add(deadline.at, None, 0, None, inf)
        open_expiry = [expiry]

        def begun() -> None:
            # An application that answers in its clean-up after our cancellation is still to be ended by it.
            if not expiry.expired:
                expiries.close(open_expiry.pop())

        response.on_begin = begun
        try:
            await self.app(scope, receive, response.send)
        except BaseException as error:
            if open_expiry and expiries.close(open_expiry.pop()):
                raise _no_response(scope) from error
            raise
        if open_expiry and expiries.close(open_expiry.pop()) and not response.begun:
            # It swallowed the cancellation and said nothing, which servers answer with 500.
            raise _no_response(scope)

    def _read(self, scope: Scope) -> tuple[Deadline, str]:
        """The deadline and the id that the request comes with."""
        deadline = Deadline.after(self._timeout, self._clock)
        request_id = ""
        for name, value in scope["headers"]:
            if name == _TIMEOUT_HEADER:
                try:
                    named = Deadline.from_header(value.decode("latin-1"), self._clock)
                except InvalidInput as error:
                    raise _BadDeadline(str(error)) from error
                if named is not None and named.at < deadline.at:
                    deadline = named
            elif name == self._request_id_header and not request_id:
                request_id = _fit_for_logs(value)
        return deadline, request_id or f"{self._rng.getrandbits(64):016x}"


def _no_response(scope: Scope) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{_named(scope)}: no response within its deadline; the application was cancelled"
    )


def _named(scope: Scope) -> str:
    return f"{scope['method']} {scope['path'][:100]}"


class _BadDeadline(InvalidInput):
    """The header is not a number of milliseconds."""


class _Response:
    """The application's `send`, watched until the response begins."""

    __slots__ = ("_send", "admission", "begun", "headers", "on_begin")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.headers: list[tuple[bytes, bytes]] = []
        """To be added to whatever is answered."""
        self.admission: Admission | None = None
        self.on_begin: Callable[[], None] | None = None

    async def send(self, message: Message) -> None:
        if not self.begun and message["type"] == "http.response.start":
            self.begun = True
            if self.on_begin is not None:
                self.on_begin()
            if self.admission is not None:
                self.admission.measure(_outcome_of(message["status"]))
            if self.headers:
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        await self._send(message)


def _outcome_of(status: int) -> Outcome:
    if status < 400:
        return "success"
    if status == 503:
        return "refused"
    # A 404 is not what a page costs: a crawler's flood of them must not pass for a fast service.
    return "timeout" if status == 504 else "unknown"


async def _answer(
    error: Refused | DeadlineExceeded | _BadDeadline, send: Send, headers: list[tuple[bytes, bytes]]
) -> None:
    """One small problem document (RFC 9457). Says what to do, and nothing about how the service is built."""
    if isinstance(error, RateLimited):
        status, title, detail = 429, "Too Many Requests", "This client has used up its share."
    elif isinstance(error, Refused):
        status, title, detail = 503, "Service Unavailable", "The service is at its limit. Nothing was done."
    elif isinstance(error, DeadlineExceeded):
        status, title, detail = 504, "Gateway Timeout", "The deadline of the request passed."
    else:
        status, title, detail = 400, "Bad Request", str(error)
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if isinstance(error, Refused) and error.retry_after is not None:
        seconds = min(asked_to_wait(error), _LONGEST_WAIT)  # the application's number may be NaN or infinite
        headers.append((b"retry-after", str(max(1, ceil(seconds))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _fit_for_logs(value: bytes) -> str:
    """A request id that is safe in any log line, or nothing."""
    if 0 < len(value) <= _LONGEST_REQUEST_ID and value.isascii():
        text = value.decode("ascii")
        if text.isprintable() and " " not in text:
            return text
    return ""


def peer_address(scope: Scope) -> str:
    """The address that opened the connection; an IPv6 address counts with its /64, which one customer owns.

    Empty, and so one bucket for all, behind a Unix socket.
    """
    peer = scope.get("client")
    return _bucket_of(peer[0]) if peer else ""


def forwarded_client(proxies: int = 1) -> Callable[[Scope], str]:
    """Reads the client's address from `X-Forwarded-For`, for a service that only its proxies can reach.

    proxies: how many of your own proxies a request passes, each of which appends the address it saw. The
    entries further left are the client's own words and are not read. With fewer entries than that, the
    request did not come through them: it counts by its peer's address.
    """
    check_whole("forwarded_client.proxies", proxies, low=1, high=16)

    def client(scope: Scope) -> str:
        hops = [
            hop.strip()
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
            for hop in value.decode("latin-1").rsplit(",", proxies)[-proxies:]
        ]
        return _bucket_of(hops[-proxies]) if len(hops) >= proxies else peer_address(scope)

    return client


def _bucket_of(address: str) -> str:
    host, bracket, _ = address.removeprefix("[").partition("]")
    if not bracket and address.count(":") == 1:
        host = address.partition(":")[0]  # some proxies append the port, which is another for each connection
    if ":" not in host:
        return host
    try:
        packed = IPv6Address(host.partition("%")[0])
    except AddressValueError:
        return host
    if packed.ipv4_mapped is not None:
        return str(packed.ipv4_mapped)
    return f"{IPv6Address(int(packed) >> 64 << 64)}/64"
