from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import Ending, Failure, Progress, RequestSpec, Schedule, drive

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(handler: Handler) -> AsyncIterator[str]:
    """A server of keep-alive HTTP/1.1; `handler` is given each request's head and writes the whole answer."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                for line in head.splitlines():
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.partition(":")[2]))
                await handler(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


def _answer(writer: asyncio.StreamWriter, status: int = 200, body: bytes = b"ok", **headers: str) -> None:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body)


def _schedule(n: int, *, gap: float = 0.002) -> Schedule:
    return Schedule(
        offsets=np.arange(n) * gap, keys=np.arange(n), users=np.arange(n) % 7, duration=max(n * gap, gap)
    )


async def test_every_request_is_sent_once_and_ends_as_its_own_row() -> None:
    seen: list[str] = []

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        seen.append(head.split()[1])
        _answer(writer)

    schedule = _schedule(100)
    async with _server(handler) as url:
        samples = await drive(
            schedule, lambda row: f"/feed/{schedule.users[row]}?k={schedule.keys[row]}", base_url=url
        )
    assert sorted(seen) == sorted(f"/feed/{row % 7}?k={row}" for row in range(100))
    assert samples.count(Ending.OK) == len(samples) == 100
    assert samples.key.tolist() == list(range(100))
    assert (samples.latency >= samples.lag).all()
    assert (samples.lag >= 0).all()
    assert set(samples.status.tolist()) == {200}


async def test_no_request_waits_for_the_answer_to_another() -> None:
    arrived = 0
    all_arrived = asyncio.Event()

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 50:
            all_arrived.set()
        await all_arrived.wait()  # a closed loop of fewer than 50 workers would wait here for ever
        _answer(writer)

    async with _server(handler) as url:
        samples = await drive(_schedule(50), lambda row: "/", base_url=url, timeout=30.0)
    assert samples.count(Ending.OK) == 50
    assert samples.peak_in_flight == 50


async def test_a_stall_is_charged_to_every_request_that_fell_into_it() -> None:
    """The lower bound holds on any machine; bench/lab.py measures how close the quantiles come."""
    stall_end = 0.0

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal stall_end
        now = time.monotonic()
        stall_end = stall_end or now + 1.0
        await asyncio.sleep(max(0.0, stall_end - now))
        _answer(writer)

    schedule = _schedule(400, gap=0.005)
    async with _server(handler) as url:
        samples = await drive(schedule, lambda row: "/", base_url=url, timeout=30.0)
    # The stall begins no earlier than the first request is due, and so ends no earlier than a second later.
    waiting = np.maximum(0.0, 1.0 - schedule.offsets)
    assert samples.count(Ending.OK) == len(samples) == 400
    assert (samples.latency >= waiting - 0.002).all()  # the handler's timer may be a millisecond early
    # Half of the arrivals wait, uniformly up to 1 s: quantile q of all is 1 - (1 - q) * 2.
    assert np.quantile(waiting, 0.90) == pytest.approx(0.80, abs=0.005)
    assert np.quantile(samples.latency, 0.90) >= 0.79
    assert np.quantile(samples.latency, 0.99) >= 0.97


async def test_outcomes_tell_refusals_errors_and_broken_connections_apart() -> None:
    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        what = head.split()[1].strip("/")
        if what == "drop":
            writer.transport.abort()
        elif what == "half":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            writer.transport.close()
        elif what == "noise":
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            writer.transport.close()
        else:
            _answer(writer, int(what), location="/elsewhere")

    paths = ["200", "302", "429", "503", "404", "500", "drop", "half", "noise"]
    async with _server(handler) as url:
        samples = await drive(_schedule(len(paths), gap=0.02), lambda row: f"/{paths[row]}", base_url=url)
    ok, refused, error = Ending.OK, Ending.REFUSED, Ending.ERROR
    assert samples.ending.tolist() == [ok, ok, refused, refused, error, error, error, error, error]
    assert samples.status.tolist() == [200, 302, 429, 503, 404, 500, 0, 0, 0]
    assert samples.failure.tolist()[6:] == [Failure.DISCONNECT, Failure.DISCONNECT, Failure.PROTOCOL]
    assert samples.validity(max_lag_p99=10.0).valid


async def test_a_port_where_nobody_listens_is_a_failure_to_connect() -> None:
    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        _answer(writer)

    async with _server(handler) as url:
        pass
    samples = await drive(_schedule(3), lambda row: "/", base_url=url)
    assert samples.ending.tolist() == [Ending.ERROR] * 3
    assert samples.failure.tolist() == [Failure.CONNECT] * 3
    assert np.isfinite(samples.latency).all()


async def test_a_request_that_is_given_up_carries_at_least_its_timeout() -> None:
    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with _server(handler) as url:
        samples = await drive(_schedule(20), lambda row: "/", base_url=url, timeout=0.05)
    assert samples.count(Ending.TIMEOUT) == 20
    assert (samples.latency >= 0.05).all()
    assert set(samples.status.tolist()) == {0}


async def test_a_body_that_stops_half_way_is_given_up_too() -> None:
    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        await asyncio.sleep(60)

    async with _server(handler) as url:
        samples = await drive(_schedule(2), lambda row: "/", base_url=url, timeout=0.1)
    assert samples.count(Ending.TIMEOUT) == 2


async def test_requests_beyond_the_bound_are_recorded_and_void_the_run() -> None:
    release = asyncio.Event()

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        _answer(writer)

    def look(progress: Progress) -> None:
        if progress.due == progress.total:
            release.set()

    async with _server(handler) as url:
        samples = await drive(
            _schedule(10), lambda row: "/", base_url=url, timeout=30.0, max_in_flight=4, on_progress=look,
            progress_every=0.01,
        )  # fmt: skip
    assert samples.ending.tolist() == [Ending.OK] * 4 + [Ending.NOT_SENT] * 6
    assert samples.latency.tolist()[4:] == [30.0] * 6
    assert samples.peak_in_flight == 4
    verdict = samples.validity(max_lag_p99=10.0)
    assert not verdict.valid
    assert "6 of 10 requests were never sent" in verdict.reason


async def test_a_suspended_process_does_not_wake_up_to_a_burst() -> None:
    requests = 0

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        _answer(writer)

    def path(row: int) -> str:
        if row == 0:
            time.sleep(0.3)  # stops the whole loop, as SIGSTOP or a closed lid would
        return "/"

    async with _server(handler) as url:
        samples = await drive(_schedule(100, gap=0.001), path, base_url=url, max_send_lag=0.15)
    assert samples.count(Ending.NOT_SENT) >= 90
    assert requests == len(samples) - samples.count(Ending.NOT_SENT)
    assert "never sent" in samples.validity(max_lag_p99=10.0).reason


async def test_headers_are_read_as_numbers_and_nonsense_as_nan() -> None:
    values = ["0.25", "-3", "", "abc", "inf", "1" * 400]

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        row = int(head.split()[1].strip("/"))
        if row < len(values):
            _answer(writer, x_staleness_seconds=values[row])
        else:
            _answer(writer)

    async with _server(handler) as url:
        samples = await drive(
            _schedule(7),
            lambda row: f"/{row}",
            base_url=url,
            read_headers={"staleness": "X-Staleness-Seconds"},
        )
    staleness = samples.headers["staleness"]
    assert staleness[:2].tolist() == [0.25, -3.0]
    assert np.isnan(staleness[2:]).all()


async def test_method_headers_and_body_reach_the_service() -> None:
    heads: list[str] = []

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        _answer(writer)

    spec = RequestSpec(path="/likes", method="POST", headers={"x-user": "7"}, body=b"{}")
    async with _server(handler) as url:
        samples = await drive(_schedule(1), lambda row: spec, base_url=url)
        # An absolute URL replaces the base, so that one schedule can be spread over the arms of a trial.
        elsewhere = await drive(_schedule(1), lambda row: f"{url}/other", base_url="http://127.0.0.1:1")
    assert samples.count(Ending.OK) == elsewhere.count(Ending.OK) == 1
    assert heads[0].startswith("POST /likes HTTP/1.1\r\n")
    assert "x-user: 7" in heads[0]
    assert heads[1].startswith("GET /other ")


async def test_a_path_cannot_smuggle_a_header() -> None:
    heads: list[str] = []

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        _answer(writer)

    async with _server(handler) as url:
        await drive(_schedule(1), lambda row: "/a b\r\nx-evil: 1", base_url=url)
    assert not any(line.startswith("x-evil") for line in heads[0].splitlines())


async def test_a_cancelled_run_keeps_what_it_had_and_closes_its_connections() -> None:
    answered = asyncio.Event()
    open_connections = 0

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        row = int(head.split()[1].strip("/"))
        if row < 3:
            _answer(writer)
            open_connections -= 1
            return
        if row == 5:
            answered.set()
        try:
            await asyncio.sleep(60)
        finally:
            open_connections -= 1

    seen: list[Progress] = []
    async with _server(handler) as url:
        run = asyncio.create_task(
            drive(
                _schedule(2_000, gap=0.02),
                lambda row: f"/{row}",
                base_url=url,
                timeout=60,
                on_progress=seen.append,
            )
        )
        await answered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        kept = seen[-1].samples()
        assert kept.count(Ending.OK) == 3
        assert kept.count(Ending.UNFINISHED) == len(kept) - 3 >= 3
        assert len(kept) < 2_000
        assert np.isfinite(kept.latency).all()
        assert "unfinished" in kept.validity(max_lag_p99=10.0).reason
        assert seen[-1].in_flight == 0
        assert len(asyncio.all_tasks()) < 20  # this test, and one per connection that the server still holds


async def test_the_garbage_collector_is_as_it_was_after_a_run() -> None:
    frozen: list[int] = []
    schedule = _schedule(20)
    assert gc.get_freeze_count() == 0
    await drive(
        schedule,
        lambda row: "/",
        base_url="http://127.0.0.1:1",
        on_progress=lambda progress: frozen.append(gc.get_freeze_count()),
    )
    assert frozen[-1] > 0
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("broken", ["request", "on_progress"])
async def test_a_mistake_in_a_callback_ends_the_run_and_reaches_the_caller(broken: str) -> None:
    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        _answer(writer)

    def fail(argument: object) -> str:
        raise KeyError("the mistake")

    async with _server(handler) as url:
        with pytest.raises(KeyError, match="the mistake"):
            await drive(
                _schedule(200),
                fail if broken == "request" else lambda row: "/",
                base_url=url,
                on_progress=fail if broken == "on_progress" else None,
                progress_every=0.01,
            )


async def test_an_empty_schedule_ends_at_once_and_proves_nothing() -> None:
    samples = await drive(_schedule(0), lambda row: "/", base_url="http://127.0.0.1:1")
    assert len(samples) == 0
    assert not samples.validity().valid


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("base_url", {"base_url": "127.0.0.1:80"}),
        ("timeout", {"timeout": 0.0}),
        ("timeout", {"timeout": float("nan")}),
        ("max_in_flight", {"max_in_flight": 0}),
        ("max_in_flight", {"max_in_flight": 1_000_000}),
        ("max_send_lag", {"max_send_lag": float("inf")}),
        ("progress_every", {"progress_every": 0.0}),
    ],
)
async def test_a_setting_outside_its_range_is_refused_by_name(
    field: str, settings: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        await drive(_schedule(1), lambda row: "/", **settings)  # type: ignore[arg-type]  # wrong on purpose
