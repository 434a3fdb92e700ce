"""AdmissionMiddleware before small ASGI applications, without a server."""

from __future__ import annotations

import asyncio
import json
import math
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.admission import LoadShedder, RateDecision, RateLimit, RateLimiter
from fairlead.admission.asgi import AdmissionMiddleware, forwarded_client, peer_address
from fairlead.calls import Bulkhead
from fairlead.clock import ManualClock, settle
from fairlead.context import Priority, RequestContext, current
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, Overloaded, RateLimited

OK = {"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]}
END = {"type": "http.response.body", "body": b"hello"}


@dataclass
class Exchange:
    """What one request got."""

    sent: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        assert self.headers["content-length"] == str(len(body))
        return json.loads(body)


def scope_of(path: str = "/", *, client: tuple[str, int] | None = ("192.0.2.1", 5000), **headers: str):
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "client": client,
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()
        ],
    }


async def ask(middleware: AdmissionMiddleware, path: str = "/", **headers: str) -> Exchange:
    exchange = Exchange()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        exchange.sent.append(dict(message))

    await middleware(scope_of(path, **headers), receive, send)
    return exchange


class App:
    """Answers; or does first what it was made for."""

    def __init__(self, *, fails: BaseException | None = None, hangs: bool = False) -> None:
        self.fails = fails
        self.hangs = hangs
        self.contexts: list[RequestContext] = []
        self.release = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.contexts.append(current())
        if self.fails is not None:
            raise self.fails
        if self.hangs:
            await self.release.wait()
        await send(OK)
        await send(END)


def shedder_of(clock: ManualClock, places: int = 1, **settings: Any) -> LoadShedder:
    return LoadShedder(
        "svc", limit=Bulkhead("svc", calls=places), clock=clock, rng=random.Random(1), **settings
    )


async def test_an_answer_passes_untouched(clock: ManualClock) -> None:
    exchange = await ask(AdmissionMiddleware(App(), shedder=shedder_of(clock), clock=clock))
    assert exchange.sent == [OK, END]


async def test_the_context_holds_id_priority_and_the_callers_deadline(clock: ManualClock) -> None:
    app = App()
    middleware = AdmissionMiddleware(app, priority=lambda scope: Priority.CRITICAL, clock=clock)
    await ask(middleware, x_request_timeout_ms="250", x_request_id="r-1")
    (context,) = app.contexts
    assert context.request_id == "r-1"
    assert context.priority is Priority.CRITICAL
    assert context.deadline.remaining() == pytest.approx(0.25)
    assert current().request_id == ""


async def test_a_deadline_is_bounded_by_the_servers_own(clock: ManualClock) -> None:
    app = App()
    middleware = AdmissionMiddleware(app, timeout=2.0, clock=clock)
    await ask(middleware)
    await ask(middleware, x_request_timeout_ms="86400000")
    assert [context.deadline.remaining() for context in app.contexts] == [2.0, 2.0]


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "r\xe9", "a\x1bb"])
async def test_a_request_id_that_would_spoil_a_log_line_is_replaced(clock: ManualClock, value: str) -> None:
    app = App()
    await ask(AdmissionMiddleware(app, clock=clock), x_request_id=value)
    assert len(app.contexts[0].request_id) == 16


async def test_a_deadline_that_has_passed_is_504_without_calling_the_application(clock: ManualClock) -> None:
    app = App()
    exchange = await ask(AdmissionMiddleware(app, clock=clock), x_request_timeout_ms="0")
    assert exchange.problem["status"] == exchange.status == 504
    assert app.contexts == []


async def test_a_deadline_that_is_no_number_is_400_and_named(clock: ManualClock) -> None:
    app = App()
    exchange = await ask(AdmissionMiddleware(app, clock=clock), x_request_timeout_ms="soon")
    assert exchange.status == 400
    assert "x-request-timeout-ms" in exchange.problem["detail"]
    assert app.contexts == []


async def test_a_full_service_answers_503_with_retry_after_and_a_problem_document(clock: ManualClock) -> None:
    app = App(hangs=True)
    middleware = AdmissionMiddleware(app, shedder=shedder_of(clock, queue=0), clock=clock)
    first = asyncio.create_task(ask(middleware))
    await settle()
    refused = await ask(middleware)
    assert refused.status == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    assert refused.problem == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "The service is at its limit. Nothing was done.",
    }
    app.release.set()
    assert (await first).status == 200


async def test_health_checks_always_pass(clock: ManualClock) -> None:
    app = App(hangs=True)
    middleware = AdmissionMiddleware(
        app,
        shedder=shedder_of(clock, queue=0),
        rate_limiter=RateLimiter(RateLimit(rate=0.001, burst=1), clock=clock),
        health=("/up",),
        clock=clock,
    )
    first = asyncio.create_task(ask(middleware))
    await settle()
    app.hangs = False
    for _ in range(3):
        assert (await ask(middleware, "/up", x_request_timeout_ms="soon")).status == 200
    app.release.set()
    await first


async def test_a_request_without_priority_passes_without_a_permit(clock: ManualClock) -> None:
    app = App()
    middleware = AdmissionMiddleware(
        app,
        shedder=shedder_of(clock, queue=0),
        priority=lambda scope: None if scope["path"] == "/events" else Priority.NORMAL,
        clock=clock,
    )
    app.hangs = True
    stream = asyncio.create_task(ask(middleware, "/events"))
    await settle()
    app.hangs = False
    assert (await ask(middleware)).status == 200
    app.release.set()
    assert (await stream).status == 200
    assert [context.priority for context in app.contexts] == [Priority.NORMAL] * 2


async def test_the_clients_word_about_its_priority_is_not_read(clock: ManualClock) -> None:
    app = App()
    await ask(AdmissionMiddleware(app, clock=clock), x_priority="critical", priority="u=0")
    assert app.contexts[0].priority is Priority.NORMAL


async def test_a_client_over_its_rate_is_429_with_headers(clock: ManualClock) -> None:
    app = App()
    middleware = AdmissionMiddleware(
        app, rate_limiter=RateLimiter(RateLimit(rate=0.5, burst=1), clock=clock), clock=clock
    )
    allowed, limited = await ask(middleware), await ask(middleware)
    assert allowed.status == 200
    assert allowed.headers == {
        "x-app": "1",
        "ratelimit-policy": '"default";q=1;w=2',
        "ratelimit": '"default";r=0;t=2',
    }
    assert limited.status == limited.problem["status"] == 429
    assert limited.headers["retry-after"] == "2"
    assert limited.headers["ratelimit"] == '"default";r=0;t=2'
    assert len(app.contexts) == 1


async def test_a_limiter_that_has_to_ask_elsewhere_is_awaited(clock: ManualClock) -> None:
    class Elsewhere:
        def __init__(self) -> None:
            self._limiter = RateLimiter(RateLimit(rate=1.0, burst=1), clock=clock)

        async def check(self, client: str, cost: float = 1.0) -> RateDecision:
            await asyncio.sleep(0)
            return self._limiter.check(client, cost)

    middleware = AdmissionMiddleware(App(), rate_limiter=Elsewhere(), clock=clock)
    assert [(await ask(middleware)).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (DeadlineExceeded("late"), 504, None),
        (Overloaded("full", retry_after=1.2), 503, "2"),
        (CircuitOpen("open", retry_after=0.0), 503, "1"),
        (Overloaded("full"), 503, None),
        (RateLimited("quota", retry_after=7.0), 429, "7"),
    ],
)
async def test_a_refusal_that_escapes_the_application_is_answered(
    clock: ManualClock, error: Exception, status: int, retry_after: str | None
) -> None:
    shedder = shedder_of(clock)
    exchange = await ask(AdmissionMiddleware(App(fails=error), shedder=shedder, clock=clock))
    assert exchange.status == status
    assert exchange.headers.get("retry-after") == retry_after
    assert str(error) not in json.dumps(exchange.problem)  # what lies behind is nobody's business
    assert shedder.in_flight == 0


@pytest.mark.parametrize("error", [ValueError("bug"), TimeoutError("not ours"), InvalidInput("theirs")])
async def test_other_errors_are_the_applications_own(clock: ManualClock, error: Exception) -> None:
    shedder = shedder_of(clock)
    with pytest.raises(type(error)):
        await ask(AdmissionMiddleware(App(fails=error), shedder=shedder, clock=clock))
    assert shedder.in_flight == 0


async def test_a_response_that_has_begun_is_not_rewritten(clock: ManualClock) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        raise Overloaded("in the middle")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    shedder = shedder_of(clock)
    with pytest.raises(Overloaded, match="in the middle"):
        await AdmissionMiddleware(app, shedder=shedder, clock=clock)(scope_of(), None, send)  # type: ignore[arg-type]
    assert sent == [OK]
    assert shedder.in_flight == 0


async def test_an_application_that_hangs_is_ended_at_the_deadline(clock: ManualClock) -> None:
    shedder = shedder_of(clock)
    middleware = AdmissionMiddleware(App(hangs=True), shedder=shedder, clock=clock)
    task = asyncio.create_task(ask(middleware, x_request_timeout_ms="500"))
    await clock.run_for(0.4)
    assert not task.done()
    await clock.run_for(0.2)
    assert task.result().status == 504
    assert shedder.in_flight == 0


async def test_a_response_that_has_begun_may_take_longer_than_the_deadline(clock: ManualClock) -> None:
    release = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        await release.wait()
        await send(END)

    shedder = shedder_of(clock)
    middleware = AdmissionMiddleware(stream, shedder=shedder, clock=clock)
    task = asyncio.create_task(ask(middleware, x_request_timeout_ms="500"))
    await clock.run_for(60.0)
    assert not task.done()
    assert shedder.in_flight == 1  # the place is held until the end
    release.set()
    assert (await task).sent == [OK, END]
    assert shedder.in_flight == 0


async def test_an_answer_given_while_being_ended_stands(clock: ManualClock) -> None:
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await send({**OK, "status": 202})
            await send(END)

    middleware = AdmissionMiddleware(stubborn, shedder=shedder_of(clock), clock=clock)
    task = asyncio.create_task(ask(middleware, x_request_timeout_ms="500"))
    await clock.run_for(0.6)
    assert task.result().status == 202
    assert task.cancelling() == 0


async def test_a_cancelled_request_is_cancelled_and_gives_its_place_back(clock: ManualClock) -> None:
    shedder = shedder_of(clock)
    middleware = AdmissionMiddleware(App(hangs=True), shedder=shedder, clock=clock)
    running, waiting = (asyncio.create_task(ask(middleware)) for _ in range(2))
    await settle()
    assert (shedder.in_flight, shedder.waiting) == (1, 1)
    for task in (running, waiting):
        task.cancel()
    await settle()
    assert running.cancelled()
    assert waiting.cancelled()
    assert (shedder.in_flight, shedder.waiting) == (0, 0)


@pytest.mark.parametrize(("status", "moved"), [(200, 1), (304, 1), (404, 0), (500, 0), (503, -1), (504, -1)])
async def test_the_status_tells_the_limit_how_it_went(clock: ManualClock, status: int, moved: int) -> None:
    outcomes: list[str] = []
    shedder = shedder_of(clock)
    shedder.limit.succeeded = lambda *a: outcomes.append("+")  # type: ignore[method-assign]
    shedder.limit.dropped = lambda *a: outcomes.append("-")  # type: ignore[method-assign]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "status": status})
        await send(END)

    await ask(AdmissionMiddleware(app, shedder=shedder, clock=clock))
    assert outcomes == {1: ["+"], 0: [], -1: ["-"]}[moved]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_pass_untouched(clock: ManualClock, kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope, receive, send = {"type": kind}, object(), object()
    await AdmissionMiddleware(app, shedder=shedder_of(clock), clock=clock)(scope, receive, send)  # type: ignore[arg-type]
    assert seen == [(scope, receive, send)]


@pytest.mark.parametrize(
    ("peer", "bucket"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.1", 1), "192.0.2.1"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("testclient", 1), "testclient"),
        (None, ""),
    ],
)
def test_a_client_is_the_address_that_connected(peer: Any, bucket: str) -> None:
    assert peer_address(scope_of(client=peer)) == bucket


@pytest.mark.parametrize(
    ("header", "proxies", "bucket"),
    [
        ("203.0.113.7", 1, "203.0.113.7"),
        ("10.9.9.9, 203.0.113.7", 1, "203.0.113.7"),  # the left one is the client's own word
        ("10.9.9.9, 203.0.113.7, 198.51.100.1", 2, "203.0.113.7"),
        ("203.0.113.7:61234", 1, "203.0.113.7"),
        ("[2001:db8::1]:443", 1, "2001:db8::/64"),
        ("203.0.113.7", 2, "192.0.2.1"),
        ("", 1, ""),
    ],
)
def test_behind_proxies_a_client_is_what_the_outermost_of_ours_saw(
    header: str, proxies: int, bucket: str
) -> None:
    assert forwarded_client(proxies)(scope_of(x_forwarded_for=header)) == bucket


def test_several_forwarding_headers_count_as_one() -> None:
    scope = scope_of()
    scope["headers"] = [(b"x-forwarded-for", b"10.9.9.9"), (b"x-forwarded-for", b"203.0.113.7, 198.51.100.1")]
    assert forwarded_client(2)(scope) == "203.0.113.7"
    assert forwarded_client(1)(scope) == "198.51.100.1"


@pytest.mark.parametrize(
    ("settings", "field"), [({"timeout": 0.0}, "timeout"), ({"health": "/up"}, "health")]
)
def test_a_setting_outside_its_bounds_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^AdmissionMiddleware\.{field}: "):
        AdmissionMiddleware(App(), **settings)


async def test_an_application_that_swallows_its_end_and_says_nothing_is_answered_504(
    clock: ManualClock,
) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    shedder = shedder_of(clock)
    task = asyncio.create_task(
        ask(AdmissionMiddleware(silent, shedder=shedder, clock=clock), x_request_timeout_ms="500")
    )
    await clock.run_for(0.6)
    assert task.result().status == 504
    assert shedder.in_flight == 0


async def test_a_request_that_comes_too_late_is_counted_and_takes_no_token(clock: ManualClock) -> None:
    shedder, limiter = shedder_of(clock), RateLimiter(RateLimit(rate=1.0, burst=1), clock=clock)
    middleware = AdmissionMiddleware(App(), shedder=shedder, rate_limiter=limiter, clock=clock)
    assert (await ask(middleware, x_request_timeout_ms="0")).status == 504
    assert shedder.stats.refused == {(Priority.NORMAL, "deadline"): 1}
    assert len(limiter) == 0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(math.nan, "1"), (math.inf, "86400"), (-5.0, "1"), (1e300, "86400"), (2.1, "3")]
)
async def test_a_refusal_with_any_number_of_seconds_is_503(
    clock: ManualClock, seconds: float, shown: str
) -> None:
    app = App(fails=CircuitOpen("dep: open", retry_after=seconds))
    exchange = await ask(AdmissionMiddleware(app, clock=clock))
    assert (exchange.status, exchange.headers["retry-after"]) == (503, shown)
