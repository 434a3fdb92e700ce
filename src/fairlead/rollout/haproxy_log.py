"""Receives the log of running HAProxy processes, and keeps what guardrails beside control count.

A proxy's counters know requests and no units; its log knows both. `haproxy_config(…, log=…)` lets each line begin
with fields of ours, and HAProxy sends it here as one UDP datagram:

    HAProxy ── UDP ──> HaproxyLog ──> exposure, request_finished ──> a sink's folder ──> EventTail, Tally, guardrails

From there on all is as with the events of a service, a restart included: what was received is on the disk.

Nothing in those fields is written by a user: the unit is a keyed hash, the rest are numbers and words of HAProxy's
own. A line that does not begin with them, whole, is counted and passed over. HAProxy waits for no receiver: what
nobody took is gone, and the gap in the numbers of its lines says how much.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput, TrafficUnavailable
from fairlead.metrics import Reading
from fairlead.rollout.facts import EventFacts
from fairlead.rollout.haproxy_config import address_of
from fairlead.rollout.tally import Tally
from fairlead.telemetry import BufferedSink, EventTail, Exposure, RequestFinished

__all__ = ["HaproxyLog", "HaproxyLogFacts", "HaproxyLogStats"]

_LARGEST = 65_536
_BUFFER = 4 * 2**20
"""Bytes that the kernel may hold while this process is busy; it grants `net.core.rmem_max` at most."""
_PAUSE = 0.2  # seconds between two looks at whether it was closed
_LINE = re.compile(
    rb"fairlead/1 time=(?P<time>[0-9]{12,14}) from=(?P<process>[!-~]{1,300}) line=(?P<line>[0-9]{1,10}) "
    rb"request=(?P<request>[0-9]{1,10}) unit=(?P<unit>[0-9A-F]{32}|-) arm=(?P<arm>control|treatment|-) "
    rb"by=(?P<by>draw|audience|-) status=(?P<status>-1|[0-9]{1,3}) "
    rb"timers=(?P<tw>-1|[0-9]{1,10})/(?P<tc>-1|[0-9]{1,10})/(?P<tr>-1|[0-9]{1,10})/\+?(?P<ta>-1|[0-9]{1,10}) "
    rb"end=(?P<end>[A-Za-z-]{4}) \| "
)
_ENDED_BY = {
    b"S": "ServerAborted",
    b"s": "ServerTimedOut",
    b"D": "ServerDown",
    b"R": "ProxyExhausted",
    b"I": "ProxyFailed",
}
"""By the first letter of HAProxy's termination state; who leaves (C, c) is no error, nor what a rule denied (P)."""
_LEFT = 499
"""Status of a request whose client was gone before an answer: not HTTP's, but what proxies write."""
_NO_COUNT = 2**32  # where HAProxy's counters of lines and requests begin anew
_ANEW = 60.0
"""Seconds after which a unit is exposed anew; above `RolloutPlan.settle`, a stage would lack of control who came just
before it."""
_MOST_LOST = 0.05
_FEWEST_LOST = 20  # fewer may only be late
"""Share of the lines between two looks, and their number, up to which figures are taken for whole."""
_MOST_PROCESSES = 1_000
_MOST_REQUESTS = 20_000
"""Of each process, whose numbers are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HaproxyLogStats:
    """Counts of lines since the log was opened; all but `lost` add up to what was received."""

    counted: int
    """Requests of units in an arm: each became an event."""
    unkeyed: int
    """Requests without a key: nobody drew an arm for them."""
    elsewhere: int
    """Requests that neither arm's backend was given: denied, redirected, malformed, sent to another one."""
    duplicates: int
    other: int
    """Of another format, or cut before their end; and what HAProxy says of itself, at a reload."""
    lost: int
    """Lines that HAProxy wrote and that did not arrive, by the numbers it gives them: of each process between the
    first that was received and the last. Those that are only late are counted here until they come."""


@dataclass(slots=True)
class _Process:
    """Lines of one HAProxy process."""

    first: int
    last: int
    received: int = 0
    requests: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """The numbers of the last ones: what comes twice counts once."""

    @property
    def lost(self) -> int:
        # Threads of one HAProxy now and then give two lines one number: never fewer than none are lost.
        return max(0, self.last - self.first + 1 - self.received)


class HaproxyLog:
    """Turns lines into events for a sink, those given to `take` and those that arrive where it listens.

    One thread takes lines at a time. A context manager; the sink stays the caller's.
    """

    def __init__(
        self,
        sink: BufferedSink,
        *,
        flag: str,
        control: str = "control",
        treatment: str = "treatment",
        most_units: int = 100_000,
    ) -> None:
        """sink: with room for two events of each line that the kernel may have held, some 14,000.

        flag, control, treatment: as the rollout's plan names the flag and its variants.
        most_units: beyond it a unit is reported as exposed once more; 200 bytes each. Raises InvalidInput.
        """
        check_whole("most_units", most_units, low=1, high=2**31)
        self._sink = sink
        self._flag = flag
        self._variants = {b"control": control, b"treatment": treatment}
        self._exposed: OrderedDict[bytes, tuple[bytes, bytes, int]] = OrderedDict()
        self._most = most_units
        self._processes: OrderedDict[bytes, _Process] = OrderedDict()
        self._gone = 0
        self._counts = dict.fromkeys(("counted", "unkeyed", "elsewhere", "duplicates", "other"), 0)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self._unwritten = 0
        self._checked = (0, 0)
        self.address = ""
        """Where it listens, host:port; empty before `listen`."""

    @property
    def stats(self) -> HaproxyLogStats:
        lost = self._gone + sum(each.lost for each in list(self._processes.values()))
        return HaproxyLogStats(**self._counts, lost=lost)

    def listen(self, address: str) -> Self:
        """Receives datagrams from now on, in a thread of its own. Whoever can send to it is believed.

        address: host:port, as `haproxy_config` was given it. Raises InvalidInput where it cannot be listened on.
        """
        host, port = address_of(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        receiver = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            receiver.settimeout(_PAUSE)
            receiver.bind((host, port))
        except OSError as error:
            receiver.close()
            raise InvalidInput(
                f"log {address}: cannot be listened on ({error.strerror}); another rollout may be: each takes a "
                "port of its own"
            ) from error
        self._socket, self.address = receiver, address
        self._thread = threading.Thread(target=self._run, args=(receiver,), name="haproxy-log", daemon=True)
        self._thread.start()
        return self

    def take(self, line: bytes) -> None:
        """One line, as HAProxy has sent it: an event or two for the sink, or one more in `stats`."""
        found = _LINE.match(line)
        if found is None:
            self._counts["other"] += 1
            return
        if not self._is_new(found["process"], int(found["line"]), int(found["request"])):
            self._counts["duplicates"] += 1
            return
        arm, by, unit = found["arm"], found["by"], found["unit"]
        if arm not in self._variants:
            self._counts["elsewhere"] += 1
        elif unit == b"-" or by == b"-":
            self._counts["unkeyed"] += 1
        else:
            self._counts["counted"] += 1
            self._emit(found, arm, by, unit)

    def check(self) -> None:
        """Raises TrafficUnavailable where lines were not received, or not kept, since the last call.

        A few may be lost: whichever arm they were of, both lack as many. Of a proportion that was taken from much less
        than all lines, harm could still be shown, and harmlessness not.
        """
        if self._failure is not None:
            raise TrafficUnavailable(f"log {self.address}: no longer received: {self._failure}")
        unwritten = self._sink.stats.lost + self._sink.stats.dropped
        before, self._unwritten = self._unwritten, unwritten
        if unwritten > before:
            raise TrafficUnavailable(
                f"log {self.address}: {unwritten - before} of its events could not be written: "
                f"{self._sink.failure or 'they came faster than the disk takes them'}"
            )

        received, lost = sum(self._counts.values()), self.stats.lost
        before_received, before_lost = self._checked
        self._checked = (received, max(lost, before_lost))
        gone = lost - before_lost
        if gone > max(_FEWEST_LOST, _MOST_LOST * (gone + received - before_received)):
            raise TrafficUnavailable(
                f"log {self.address}: {gone} of {gone + received - before_received} lines did not arrive since the "
                "last look; give this process more processor time, or a larger net.core.rmem_max"
            )

    def close(self) -> None:
        """Stops to listen; what has arrived is taken first. May be called again."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, receiver: socket.socket) -> None:
        try:
            while not self._closed:
                with contextlib.suppress(TimeoutError):
                    self.take(receiver.recv(_LARGEST))
            # What waits already, and no more: while HAProxy serves, there is always a next line.
            receiver.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(_BUFFER // 100):
                    self.take(receiver.recv(_LARGEST))
        except Exception as error:  # the edge of the thread: kept for who asks for facts
            self._failure = error

    def _is_new(self, name: bytes, number: int, request: int) -> bool:
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Process(number, number)
            if len(self._processes) > _MOST_PROCESSES:
                self._gone += self._processes.popitem(last=False)[1].lost
        if request in process.requests:
            return False
        process.requests[request] = None
        if len(process.requests) > _MOST_REQUESTS:
            process.requests.popitem(last=False)
        # Across the end of the counter: what is far below goes on above.
        number += round((process.last - number) / _NO_COUNT) * _NO_COUNT
        process.first, process.last = min(process.first, number), max(process.last, number)
        process.received += 1
        return True

    def _emit(self, found: re.Match[bytes], arm: bytes, by: bytes, unit: bytes) -> None:
        at, key, variant = int(found["time"]) / 1000, unit.decode().lower(), self._variants[arm]
        took = max(0, int(found["ta"])) / 1000
        # It was drawn when the request began: a long one ends in the next stage.
        drawn = at - took
        # Said anew when it changes, as who was let in as an audience in between is drawn again; and in each minute,
        # as a stage has to know who stayed in control, too (decision 0201).
        if self._exposed.get(unit) != (exposure := (arm, by, int(drawn // _ANEW))):
            self._exposed[unit] = exposure
            if len(self._exposed) > self._most:
                self._exposed.popitem(last=False)
            self._sink.emit(
                Exposure(
                    at_utc_seconds=drawn,
                    flag=self._flag,
                    variant=variant,
                    targeting_key=key,
                    reason="SPLIT" if by == b"draw" else "TARGETING_MATCH",
                )
            )
        self._exposed.move_to_end(unit)
        status = int(found["status"])
        if status == -1:
            status = _LEFT if found["end"][:1] in b"Cc" else 0
        error = _ENDED_BY.get(found["end"][:1], "")
        if not error and status >= 500:
            error = "ServerError"
        # In the queue, connecting, and until the answer's head; -1 for what did not come to its end.
        waits = [int(found[each]) for each in ("tw", "tc", "tr")]
        self._sink.emit(
            RequestFinished(
                at_utc_seconds=at,
                service="haproxy",
                route="_unrouted",
                status=status,
                latency_seconds=took,
                first_byte_seconds=sum(waits) / 1000 if min(waits) >= 0 else None,
                error=error,
                variant=variant,
                targeting_key=key,
            )
        )


class HaproxyLogFacts(EventFacts):
    """The events of a `HaproxyLog`, read where its sink keeps them; without figures while it cannot be received."""

    def __init__(
        self,
        log: HaproxyLog,
        tail: EventTail,
        *,
        readings: Mapping[str, Callable[[], Reading]] | None = None,
    ) -> None:
        super().__init__(tail, readings=readings)
        self._log = log

    async def gather(self, tally: Tally) -> None:
        await super().gather(tally)
        self._log.check()
