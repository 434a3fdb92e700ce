"""PolicyTransport over transports that do as they are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from fairlead.calls import (
    BreakerState,
    CircuitBreaker,
    ConcurrencyLimit,
    Fallback,
    Policy,
    Retry,
    RetryBudget,
)
from fairlead.calls.httpx import PolicyTransport, transient
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


class Body(httpx.AsyncByteStream):
    """A body that comes in pieces and knows whether it was closed."""

    def __init__(self, *chunks: bytes, hangs: bool = False) -> None:
        self.chunks = chunks
        self.hangs = hangs
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.hangs:
            await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        self.closed += 1


class Origin(httpx.AsyncBaseTransport):
    """Answers with the next of its answers, the last one for ever; raises those that are exceptions."""

    def __init__(self, *answers: int | Exception | Callable[[], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer) if isinstance(answer, int) else answer()

    async def aclose(self) -> None:
        self.closed = True


def policy(clock: ManualClock, **settings: object) -> Policy:
    retry = Retry(on=transient, base=0.0, cap=0.0, budget=RetryBudget(ratio=1.0, clock=clock))
    return Policy(**{"name": "api", "timeout": 10.0, "retry": retry, "clock": clock} | settings)


def client(origin: Origin, guard: Policy, **settings: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=PolicyTransport(origin, policy=guard, **settings), base_url="http://api"
    )


async def test_after_the_last_attempt_the_caller_gets_the_answer_and_not_an_exception(clock: ManualClock):
    origin = Origin(503)
    guard = policy(clock)
    async with client(origin, guard) as http:
        response = await http.get("/")
    assert response.status_code == 503
    assert len(origin.requests) == 3
    assert guard.stats.retried == 2


async def test_answers_that_the_caller_does_not_get_are_closed_before_the_next_attempt(clock: ManualClock):
    bodies = [Body(b"busy"), Body(b"busy"), Body(b"fine")]
    statuses = iter([503, 503, 200])
    left = iter(bodies)
    closed_when_asked: list[list[int]] = []

    def answer() -> httpx.Response:
        closed_when_asked.append([body.closed for body in bodies])
        return httpx.Response(next(statuses), stream=next(left))

    async with client(Origin(answer), policy(clock)) as http:
        response = await http.get("/")
    assert response.content == b"fine"
    assert closed_when_asked == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert bodies[2].closed == 1


async def test_an_internal_error_speaks_against_the_server_and_is_not_tried_again(clock: ManualClock):
    breaker = CircuitBreaker("api", minimum_calls=1, clock=clock)
    origin = Origin(500)
    async with client(origin, policy(clock, breaker=breaker)) as http:
        assert (await http.get("/")).status_code == 500
    assert len(origin.requests) == 1
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("status", [200, 304, 404, 501])
async def test_an_answer_that_is_no_failure_leaves_the_breaker_closed(clock: ManualClock, status: int):
    breaker = CircuitBreaker("api", minimum_calls=1, clock=clock)
    async with client(Origin(status), policy(clock, breaker=breaker)) as http:
        assert (await http.get("/")).status_code == status
    assert breaker.state is BreakerState.CLOSED


async def test_which_statuses_are_failures_can_be_said(clock: ManualClock):
    breaker = CircuitBreaker("api", minimum_calls=1, clock=clock)
    async with client(Origin(404), policy(clock, breaker=breaker), failures={404}) as http:
        assert (await http.get("/")).status_code == 404
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(
    ("method", "arguments", "attempts"),
    [
        ("GET", {}, 3),
        ("HEAD", {}, 3),
        ("PUT", {"content": b"x"}, 3),
        ("DELETE", {}, 3),
        ("POST", {"content": b"x"}, 1),
        ("PATCH", {}, 1),
        ("POST", {"headers": {"Idempotency-Key": "k"}}, 3),
        ("POST", {"extensions": {"idempotent": True}}, 3),
        ("GET", {"extensions": {"idempotent": False}}, 1),
    ],
)
async def test_only_what_may_be_sent_twice_is(
    clock: ManualClock, method: str, arguments: dict, attempts: int
):
    origin = Origin(503)
    async with client(origin, policy(clock)) as http:
        await http.request(method, "/", **arguments)
    assert len(origin.requests) == attempts


async def test_a_request_body_that_can_be_read_only_once_is_sent_once(clock: ManualClock):
    async def upload() -> AsyncIterator[bytes]:
        yield b"x"

    origin = Origin(503)
    async with client(origin, policy(clock)) as http:
        await http.put("/", content=upload())
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.PoolTimeout("no")]
)
async def test_what_never_reached_a_connection_is_tried_again_whatever_the_method(
    clock: ManualClock, error: Exception
):
    origin = Origin(error, 201)
    async with client(origin, policy(clock)) as http:
        assert (await http.post("/", content=b"x")).status_code == 201


async def test_a_broken_connection_is_raised_as_httpx_raises_it(clock: ManualClock):
    async with client(Origin(httpx.ReadError("reset")), policy(clock)) as http:
        with pytest.raises(httpx.ReadError, match="reset") as caught:
            await http.post("/")
    assert caught.value.request.url == "http://api/"


async def test_the_header_says_what_remains_and_the_callers_request_stays_as_it_was(clock: ManualClock):
    origin = Origin(200)
    request = httpx.Request("GET", "http://api/")
    async with client(origin, policy(clock, timeout=None)) as http:
        with request_context(RequestContext(request_id="feed-17", deadline=Deadline.after(0.25, clock))):
            await http.send(request)
    sent = origin.requests[0].headers
    assert (sent["x-request-timeout-ms"], sent["x-request-id"]) == ("250", "feed-17")
    assert "x-request-timeout-ms" not in request.headers
    assert [key for key, _ in sent.multi_items()] == [
        *request.headers,
        "x-request-timeout-ms",
        "x-request-id",
    ]


async def test_a_request_id_that_the_caller_set_is_kept(clock: ManualClock):
    origin = Origin(200)
    async with client(origin, policy(clock)) as http:
        with request_context(RequestContext(request_id="ours")):
            await http.get("/", headers={"x-request-id": "theirs"})
    assert origin.requests[0].headers["x-request-id"] == "theirs"


async def test_a_refusal_is_both_an_httpx_error_and_fairleads_own(clock: ManualClock):
    breaker = CircuitBreaker("api", minimum_calls=1, clock=clock, rng=random.Random(1))
    async with client(Origin(500), policy(clock, breaker=breaker)) as http:
        await http.get("/")
        with pytest.raises(httpx.HTTPError) as caught:
            await http.get("/")
    assert isinstance(caught.value, CircuitOpen)
    assert caught.value.retry_after > 0
    assert str(caught.value).startswith("api: the circuit is open")
    assert caught.value.request.url == "http://api/"


async def test_a_deadline_that_passed_is_both_an_httpx_timeout_and_fairleads_own(clock: ManualClock):
    origin = Origin(200)
    async with client(origin, policy(clock)) as http:
        with (
            request_context(RequestContext(deadline=Deadline.after(-1.0, clock))),
            pytest.raises(httpx.TimeoutException) as caught,
        ):
            await http.get("/")
    assert isinstance(caught.value, DeadlineExceeded)
    assert isinstance(caught.value, TimeoutError)
    assert origin.requests == []


async def test_a_timeout_of_httpx_itself_is_a_drop_for_the_limit(clock: ManualClock):
    limit = ConcurrencyLimit("api", initial=20, clock=clock)

    async def hang_and_time_out(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        raise httpx.ReadTimeout("5 s")

    transport = PolicyTransport(httpx.MockTransport(hang_and_time_out), policy=policy(clock, limit=limit))
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(httpx.ReadTimeout, match="5 s"):
            await http.post("http://api/")
    assert limit.limit < 20
    assert limit.in_flight == 0


async def test_a_mistake_of_the_caller_says_nothing_about_the_server(clock: ManualClock):
    breaker = CircuitBreaker("api", minimum_calls=1, clock=clock)
    async with client(Origin(httpx.LocalProtocolError("bad header")), policy(clock, breaker=breaker)) as http:
        with pytest.raises(httpx.LocalProtocolError, match="bad header"):
            await http.get("/")
    assert breaker.state is BreakerState.CLOSED
    assert breaker.outcomes.counts(clock.now()) == (0, 0)


def streamed(body: Body, length: int | None = None) -> Callable[[], httpx.Response]:
    headers = {} if length is None else {"content-length": str(length)}
    return lambda: httpx.Response(200, headers=headers, stream=body)


async def test_a_short_answer_that_stalls_is_an_attempt_that_timed_out(clock: ManualClock):
    stalled, whole = Body(b"ha", hangs=True), Body(b"half")
    origin = Origin(streamed(stalled, 4), streamed(whole, 4))
    async with client(origin, policy(clock, attempt_timeout=1.0)) as http:
        answer = asyncio.ensure_future(http.get("/"))
        await clock.run_for(1.0)
        assert (await answer).content == b"half"
    assert stalled.closed


async def test_a_long_answer_is_due_when_the_call_is(clock: ManualClock):
    body = Body(b"first", hangs=True)
    limit = ConcurrencyLimit("api", clock=clock)
    guard = policy(clock, timeout=2.0, limit=limit)
    async with (
        client(Origin(streamed(body)), guard) as http,
        http.stream("GET", "/") as response,
    ):
        assert limit.in_flight == 0
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"first"
        rest = asyncio.ensure_future(anext(pieces))
        await clock.run_for(1.9)
        assert not rest.done()
        await clock.run_for(0.2)
        with pytest.raises(DeadlineExceeded, match="api: the answer began in time") as caught:
            await rest
    assert isinstance(caught.value, httpx.TimeoutException)
    assert body.closed == 1
    assert guard.stats.timed_out == 1


async def test_reading_on_after_the_deadline_reads_nothing(clock: ManualClock):
    async with (
        client(Origin(streamed(Body(b"1", b"2"))), policy(clock, timeout=2.0)) as http,
        http.stream("GET", "/") as response,
    ):
        clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await response.aread()


async def test_a_cancelled_reader_of_a_long_answer_stays_cancelled(clock: ManualClock):
    body = Body(hangs=True)
    async with client(Origin(streamed(body)), policy(clock)) as http:
        reading = asyncio.ensure_future(http.get("/"))
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert body.closed


async def test_each_origin_has_a_policy_of_its_own(clock: ManualClock):
    made: list[str] = []

    def make(origin: str) -> Policy:
        made.append(origin)
        return policy(clock, name=origin, breaker=CircuitBreaker(origin, minimum_calls=1, clock=clock))

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500 if request.url.host == "ill" else 200)

    transport = PolicyTransport(httpx.MockTransport(answer), policy=make)
    async with httpx.AsyncClient(transport=transport) as http:
        await http.get("http://ill/")
        assert (await http.get("http://well/")).status_code == 200
        assert (await http.get("https://well:8443/")).status_code == 200
        with pytest.raises(CircuitOpen):
            await http.get("http://ill/")
    assert made == ["ill:80", "well:80", "well:8443"]


async def test_the_origin_not_called_for_longest_is_forgotten(clock: ManualClock):
    made: list[str] = []

    def make(origin: str) -> Policy:
        made.append(origin)
        return policy(clock, name=origin)

    transport = PolicyTransport(
        httpx.MockTransport(lambda request: httpx.Response(200)), policy=make, max_origins=2
    )
    async with httpx.AsyncClient(transport=transport) as http:
        for host in ("a", "b", "a", "c", "a", "b"):
            await http.get(f"http://{host}/")
    assert made == ["a:80", "b:80", "c:80", "b:80"]


async def test_a_function_that_makes_no_policy_is_refused_with_what_it_made(clock: ManualClock):
    transport = PolicyTransport(Origin(200), policy=lambda origin: None)  # type: ignore[arg-type,return-value]
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(InvalidInput, match="returned None for api:80"):
            await http.get("http://api/")


async def test_closing_the_client_closes_the_transport_beneath(clock: ManualClock):
    origin = Origin(200)
    http = client(origin, policy(clock))
    await http.aclose()
    assert origin.closed


async def test_one_policy_counts_for_all_methods(clock: ManualClock):
    guard = policy(clock)
    async with client(Origin(httpx.ConnectError("no")), guard) as http:
        for method in ("GET", "POST"):
            with pytest.raises(httpx.ConnectError):
                await http.request(method, "/")
    assert guard.stats.retried == 4


async def test_a_fallback_makes_its_answer_from_the_failure_and_the_request(clock: ManualClock):
    def spare(error: Exception, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"{type(error).__name__} {request.url.path}")

    guard = policy(clock, fallback=Fallback(answer=spare))
    async with client(Origin(503), guard) as http:
        assert (await http.post("/u1")).text == "FailedStatus /u1"
    assert guard.stats.fell_back == 1


async def test_a_fallback_that_is_no_response_is_named(clock: ManualClock):
    async with client(Origin(503), policy(clock, fallback=Fallback(answer=["spare"]))) as http:
        with pytest.raises(
            InvalidInput, match=r"^api: its fallback answered \['spare'\], not an httpx.Response$"
        ):
            await http.post("/")
