"""The open-loop engine: every request leaves at its moment, whatever the answers do.

A closed loop, where each of N workers waits for its answer, sends nothing while the service stands still, and
so records one slow request where users had hundreds (coordinated omission). Here an alarm walks the schedule
and starts a task per request. No answer, timeout or error can delay the next send; only this process being
out of breath can, and that is recorded for each request as its lag. Latency counts from the moment the
request was due.

Per request: due → sent → answered | failed | timed out; or due → not sent, when `max_in_flight` are already
waiting or the moment passed `max_send_lag` ago. Each ends as exactly one row of `Samples`. Memory is bounded
by the schedule's length, sockets by `max_in_flight`.

The engine lives in real time: it takes no Clock, because the kernel's timer rings it. Best under uvloop.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.lab.alarm import Alarm
from fairlead.lab.limits import number_within, whole_number_within
from fairlead.lab.samples import Ending, Failure, Samples
from fairlead.lab.schedule import Schedule

try:
    import numpy as np
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing
try:
    import aiohttp
    from yarl import URL
except ImportError as missing:
    raise MissingExtra("aiohttp", "lab") from missing

__all__ = ["Progress", "RequestSpec", "drive"]

_LEAD = 0.02  # seconds between opening the session and offset 0, so that the first requests are not late
_BURST = (
    64  # sends per turn of the loop: after a stall of our own, answers are still read between the late sends
)
_BROKE_CONNECTION = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientPayloadError,
    aiohttp.ClientOSError,
    OSError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSpec:
    """One request, where a path alone does not say it all."""

    path: str
    """Path and query, appended to the base URL; or an absolute URL, which replaces it."""
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class Progress:
    """A live view of a run. Stays readable afterwards, with what a cancelled run had recorded."""

    __slots__ = ("_run",)

    def __init__(self, run: _Run) -> None:
        self._run = run

    @property
    def elapsed(self) -> float:
        """Seconds since offset 0."""
        return max(0.0, self._run.now())

    @property
    def total(self) -> int:
        """Requests in the schedule."""
        return self._run.total

    @property
    def due(self) -> int:
        """Requests whose moment has come."""
        return self._run.due

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet ended."""
        return len(self._run.tasks)

    def samples(self) -> Samples:
        """A copy of the rows so far; what is in flight is UNFINISHED, with the time it has waited."""
        return self._run.samples()


async def drive(
    schedule: Schedule,
    request: Callable[[int], str | RequestSpec],
    *,
    base_url: str = "",
    timeout: float = 2.0,
    max_in_flight: int = 2_000,
    max_send_lag: float = 1.0,
    read_headers: Mapping[str, str] | None = None,
    on_start: Callable[[float], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    progress_every: float = 0.25,
) -> Samples:
    """Sends the whole schedule and returns a row for every request, when the last has ended.

    request: called with the row number as the request is sent; returns its path, URL or RequestSpec. It
        runs in the loop and its cost counts as lag: look the answer up. What it raises ends the run.
    base_url: http:// or https://, put before every path.
    timeout: seconds from the due moment, (0, 3600]; the request is given up then.
    max_in_flight: 1–60,000 requests, one socket each; one more is recorded as NOT_SENT.
    max_send_lag: seconds, (0, 3600]; a request later than that is recorded as NOT_SENT, so that a suspended
        machine does not wake up to a burst.
    read_headers: {"staleness": "x-staleness-seconds"} fills `samples.headers["staleness"]`.
    on_start: called once, shortly before offset 0, with its moment in `time.monotonic()`: what is to happen
        at a moment of the schedule counts from here.
    on_progress: called every `progress_every` seconds and once more at its end, also on a cancel
        or a failure; the `Progress` it was given keeps the rows recorded until then.

    On cancel: requests in flight are cancelled, the session is closed, CancelledError goes on. Redirects are
    not followed. A kept connection that the service had closed while idle is replaced once, as browsers do,
    without being a failure.
    """
    run = _Run(
        schedule,
        request,
        base_url=_checked_base(base_url),
        timeout=number_within("timeout", timeout, 0.0, 3600.0, above=True),
        max_in_flight=whole_number_within("max_in_flight", max_in_flight, 1, 60_000),
        max_send_lag=number_within("max_send_lag", max_send_lag, 0.0, 3600.0, above=True),
        read_headers=dict(read_headers or {}),
    )
    progress_every = number_within("progress_every", progress_every, 0.01, 3600.0)
    with _old_heap_left_alone():
        await _drive(run, Progress(run), on_start, on_progress, progress_every)
    if run.failure is not None:
        raise run.failure
    return run.samples()


async def _drive(
    run: _Run,
    progress: Progress,
    on_start: Callable[[float], object] | None,
    on_progress: Callable[[Progress], object] | None,
    progress_every: float,
) -> None:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding",),
    ) as session:
        try:
            began = run.start(session)
            if on_start is not None:
                on_start(began)
            while not run.ended.is_set():
                await _wait(run.ended, progress_every)
                if on_progress is not None and not run.ended.is_set():
                    on_progress(progress)
        finally:
            await run.stop()
            if on_progress is not None:
                on_progress(progress)


@contextmanager
def _old_heap_left_alone() -> Iterator[None]:
    """Keeps the garbage collector to what the run itself makes.

    A full collection walks every object of the process: with numpy and aiohttp loaded it stops the loop for 50 ms.
    """
    # Unfreezing what an application froze at its start would undo its tuning.
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _checked_base(base_url: str) -> str:
    if base_url and not base_url.startswith(("http://", "https://")):
        raise InvalidInput(f"base_url: {base_url!r} does not begin with http:// or https://")
    return base_url.rstrip("/")


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        pass


class _Run:
    """The state of one `drive`: columns filled in place, one task per request in flight."""

    def __init__(
        self,
        schedule: Schedule,
        request: Callable[[int], str | RequestSpec],
        *,
        base_url: str,
        timeout: float,
        max_in_flight: int,
        max_send_lag: float,
        read_headers: dict[str, str],
    ) -> None:
        self.total = n = len(schedule)
        self.due = 0
        self.tasks: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self.ended = asyncio.Event()
        self.failure: BaseException | None = None
        self._schedule = schedule
        self._offsets: list[float] = schedule.offsets.tolist()  # a list hands out floats three times faster
        self._request = request
        self._base_url = base_url
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._max_send_lag = max_send_lag
        self._read_headers = tuple(read_headers.items())
        self._lag = np.zeros(n)
        self._latency = np.zeros(n)
        self._status = np.zeros(n, dtype=np.int16)
        self._ending = np.full(n, Ending.UNFINISHED, dtype=np.uint8)
        self._failure = np.zeros(n, dtype=np.uint8)
        self._headers = {name: np.full(n, np.nan) for name in read_headers}
        self._peak = 0
        self._stopped_at: float | None = None
        self._alarm: Alarm | None = None

    def now(self) -> float:
        """Seconds since offset 0."""
        return time.monotonic() - self._start if self._stopped_at is None else self._stopped_at

    def start(self, session: aiohttp.ClientSession) -> float:
        """The moment of offset 0."""
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._start = time.monotonic() + _LEAD
        if self.total == 0:
            self.ended.set()
            return self._start
        self._alarm = Alarm(self._send_due)
        self._alarm.set(self._start + self._offsets[0])
        return self._start

    async def stop(self) -> None:
        """Sends nothing more and waits until every request in flight has let go of its socket."""
        if self._stopped_at is None:
            self._stopped_at = self.now()
        if self._alarm is not None:
            self._alarm.close()
        interrupted: asyncio.CancelledError | None = None
        while self.tasks:
            for task in self.tasks:
                task.cancel()
            try:
                await asyncio.wait(self.tasks)
            except asyncio.CancelledError as error:
                interrupted = error  # the tasks are ours: leave only when they have ended
        if interrupted is not None:
            raise interrupted

    def _send_due(self) -> float | None:
        now = self.now()
        burst = min(self.total, self.due + _BURST)
        while self.due < burst and (due := self._offsets[self.due]) <= now:
            row = self.due
            self.due += 1
            if len(self.tasks) >= self._max_in_flight or now - due > self._max_send_lag:
                self._lag[row] = now - due
                self._end(row, Ending.NOT_SENT, self._timeout)
                continue
            task = self._loop.create_task(self._send(row, due))
            left = max(0.0, due + self._timeout - now)
            self.tasks[task] = self._loop.call_later(left, self._give_up, row, due, task)
            task.add_done_callback(self._finished)
        self._peak = max(self._peak, len(self.tasks))
        if self.due < self.total:
            return self._start + self._offsets[self.due]
        if not self.tasks:
            self.ended.set()
        return None

    def _give_up(self, row: int, due: float, task: asyncio.Task[None]) -> None:
        # uvloop's timers may ring up to a millisecond early by this clock.
        self._end(row, Ending.TIMEOUT, max(self.now() - due, self._timeout))
        task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task).cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = self.failure or error
            self.ended.set()
        elif self.due == self.total and not self.tasks:
            self.ended.set()

    def _end(
        self, row: int, ending: Ending, latency: float, status: int = 0, failure: Failure = Failure.NONE
    ) -> None:
        if self._ending[row] != Ending.UNFINISHED:
            return  # given up a moment ago: an answer after that has no reader
        self._ending[row] = ending
        self._latency[row] = latency
        self._status[row] = status
        self._failure[row] = failure

    async def _send(self, row: int, due: float) -> None:
        self._lag[row] = self.now() - due
        target = self._request(row)
        spec = RequestSpec(path=target) if isinstance(target, str) else target
        url = URL(spec.path if spec.path.startswith(("http://", "https://")) else self._base_url + spec.path)
        try:
            async with self._session.request(
                spec.method, url, headers=spec.headers, data=spec.body, allow_redirects=False
            ) as response:
                async for _ in response.content.iter_any():
                    pass  # to the last byte, keeping none: a huge answer must not fill our memory
            latency = self.now() - due
            # In a busy loop the timer rings late; a user who waits `timeout` would not have seen this answer.
            ending = Ending.TIMEOUT if latency > self._timeout else _classify(response.status)
            self._end(row, ending, latency, response.status)
            for name, header in self._read_headers:
                self._headers[name][row] = _number(response.headers.get(header))
            return
        except aiohttp.InvalidURL:
            raise  # `request` made it up; no service can answer it
        except aiohttp.ClientConnectorError:
            failure = Failure.CONNECT
        except _BROKE_CONNECTION:
            failure = Failure.DISCONNECT
        except aiohttp.ClientError:
            failure = Failure.PROTOCOL
        self._end(row, Ending.ERROR, self.now() - due, failure=failure)

    def samples(self) -> Samples:
        rows = slice(0, self.due)
        ending = self._ending[rows].copy()
        latency = self._latency[rows].copy()
        waiting = ending == Ending.UNFINISHED
        latency[waiting] = np.maximum(0.0, self.now() - self._schedule.offsets[rows][waiting])
        return Samples(
            offset=self._schedule.offsets[rows],
            lag=self._lag[rows].copy(),
            latency=latency,
            status=self._status[rows].copy(),
            ending=ending,
            failure=self._failure[rows].copy(),
            key=self._schedule.keys[rows],
            user=self._schedule.users[rows],
            headers={name: values[rows].copy() for name, values in self._headers.items()},
            peak_in_flight=self._peak,
        )


def _classify(status: int) -> Ending:
    if status < 400:
        return Ending.OK
    return Ending.REFUSED if status in (429, 503) else Ending.ERROR


def _number(text: str | None) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
