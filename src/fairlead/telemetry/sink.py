"""Where events go without the request waiting for them.

A handler that writes its own event waits for the disk, and a full disk becomes an outage. Here `emit` appends
to a bounded buffer and returns; one thread, owned by the sink, encodes and writes in batches. When the buffer
is full the newest event is dropped and counted; when the writer fails, the first failure is kept, what it
cost is counted, and the service goes on.

Every line gets an `event_id` on the thread, so that what a broker or a reader meets twice counts once.

Invariant, whenever nothing is moving: emitted = written + dropped + lost + pending.

    emit → buffer (bounded) → [thread] encode → EventWriter
             ↓ full or closed              ↓ failed
           dropped                        lost

The buffer, its limit and its counters belong to one process. A forked child starts with an empty buffer, zero
counters and, once it emits, a thread of its own; what the parent had buffered, the parent writes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, runtime_checkable

from fairlead.errors import InvalidInput
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.event import Event, encode_event
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.schema import EVENTS, EventRegistry

if TYPE_CHECKING:
    from fairlead.telemetry.metrics import MetricRegistry
    from fairlead.telemetry.redact import Redactor

__all__ = ["BufferedSink", "EventSink", "EventWriter", "MemorySink", "NullSink", "SinkStats", "TendedWriter"]

_EventKind = TypeVar("_EventKind", bound=Event)

_LONGEST_PAUSE = 1e6  # seconds; more is for ever
_EXIT_TIMEOUT = 5.0  # seconds that a forgotten sink may hold up the interpreter's exit


class EventSink(Protocol):
    """Takes facts from the request path."""

    def emit(self, event: Event) -> None:
        """Accepts the event. Never blocks, never raises."""
        ...


class EventWriter(Protocol):
    """Puts encoded events somewhere that lasts. Called from one thread at a time."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Writes leading lines, each one JSON object without a line end; returns how many, at least one.

        Raises when it could write none; the sink then counts them as lost and tries again with later ones.
        """
        ...

    def close(self) -> None:
        """Makes what was written durable, as far as it promises that, and lets go of its resources."""
        ...


@runtime_checkable
class TendedWriter(EventWriter, Protocol):
    """A writer with something to do also while nothing is written: a segment to end, a backlog to send."""

    def tend(self) -> float:
        """Does what is due; returns seconds until it wants to be asked again, inf for not before a write.

        Called after each write and then as asked for, from the thread that writes, and never at the same time.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkStats:
    """Counts since the sink was made, or since this process was forked."""

    written: int
    """Handed to the writer, which took them."""
    dropped: int
    """Turned away by `emit`: the buffer was full, or the sink closed."""
    lost: int
    """Accepted, and then not written: the writer failed, or the event could not be encoded or was too large.
    """
    pending: int
    """Accepted and still on their way."""

    @property
    def emitted(self) -> int:
        return self.written + self.dropped + self.lost + self.pending


class NullSink:
    """Forgets everything."""

    __slots__ = ()

    def emit(self, event: Event) -> None:
        pass


class MemorySink:
    """Keeps everything in a list, without bound: for tests and short runs."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[_EventKind]) -> list[_EventKind]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


class BufferedSink:
    """An EventSink in front of a writer that may be slow, hang or fail.

    Close it, or use it as a context manager. One that was forgotten is closed when the interpreter exits
    normally; a process that dies of a signal loses what was emitted within the last `flush_interval`, up to
    `capacity` events.
    """

    def __init__(
        self,
        writer: EventWriter,
        *,
        capacity: int = 10_000,
        batch: int = 512,
        flush_interval: float = 0.1,
        max_event_bytes: int = 65_536,
        registry: EventRegistry | None = EVENTS,
        dead_letters: DeadLetterFile | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """Takes the writer over; its thread starts with the first event.

        writer: owned by the sink from now on, and closed by it.
        capacity: events held while they wait, 1 or more; with the default interval that is 100,000 a second.
        batch: events per write, 1 or more. Encoding 512 holds the interpreter lock for about 0.3 ms in all.
        flush_interval: seconds that events wait for company, > 0 and at most 60.
        max_event_bytes: a longer encoded event is counted as lost; one runaway string must not fill the disk.
        registry: an event that it could not read back (an unregistered kind, a field of another type, NaN) is
            counted as lost, here instead of a month later; None writes it unseen. Costs the thread one decoding each.
        dead_letters: takes the lines of such events, and of those too long, with the reason.
        redactor: takes personal data out of every event before it is encoded; None writes events as they are.
        """
        for name, number in (("capacity", capacity), ("batch", batch), ("max_event_bytes", max_event_bytes)):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 2**31:
                raise InvalidInput(f"{name} = {number!r}: expected a whole number from 1 to {2**31}")
        if isinstance(flush_interval, bool) or not 0 < flush_interval <= 60:
            raise InvalidInput(
                f"flush_interval = {flush_interval!r}: expected seconds, above 0 and at most 60"
            )
        self._writer = writer
        self._tended = writer if isinstance(writer, TendedWriter) else None
        self._capacity = capacity
        self._batch = batch
        self._flush_interval = flush_interval
        self._max_event_bytes = max_event_bytes
        self._registry = registry
        self._dead_letters = dead_letters
        self._redactor = redactor
        self._closed = False
        self._finished = False
        self._start_afresh()
        _live.add(self)

    def _start_afresh(self) -> None:
        self._buffer: deque[Event] = deque()
        self._moving = 0
        self._written = 0
        self._dropped = 0
        self._lost = 0
        self._failure: BaseException | None = None
        self._numbering = Numbering()
        self._flushes: deque[threading.Event] = deque()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        # True while nobody looks at the buffer unasked: there is no thread, or it sleeps without a limit.
        self._idle = True
        # A binary semaphore, held while there is nothing to tell the thread. Unlike threading.Event it may be
        # used from a signal handler that interrupts its own user.
        self._bell = threading.Lock()
        self._bell.acquire()

    def emit(self, event: Event) -> None:
        """Accepts the event, or counts it as dropped. Costs below 0.1 µs.

        The first event also starts the thread. Safe from any thread and, after the first event, from signal
        handlers. Threads that emit at the same instant may exceed `capacity` by one event each.
        """
        buffer = self._buffer
        if len(buffer) >= self._capacity:
            self._dropped += 1
            return
        buffer.append(event)
        # After the append, never before: the thread sets the flag and then looks at the buffer once more, so
        # that one of the two always sees the other.
        if self._idle:
            self._rouse()

    @property
    def stats(self) -> SinkStats:
        """The counts. While events are moving, `pending` may miss or double those in motion."""
        return SinkStats(
            written=self._written,
            dropped=self._dropped,
            lost=self._lost,
            pending=len(self._buffer) + self._moving,
        )

    @property
    def failure(self) -> BaseException | None:
        """The first thing that went wrong behind `emit`, or None; NoSpace for a full disk."""
        return self._failure

    def export(self, registry: MetricRegistry, *, name: str = "events") -> None:
        """Shows the counts as `fairlead_events_total{sink,what}` and what is pending, read at each scrape."""
        counter = registry.counter(
            "fairlead_events_total", "What became of events, in this process.", labels=("sink", "what")
        )
        for what in ("written", "dropped", "lost"):
            counter.labels(sink=name, what=what).track(partial(getattr, self, f"_{what}"))
        registry.gauge(
            "fairlead_events_pending", "Events accepted and not yet written.", labels=("sink",)
        ).labels(sink=name).track(lambda: self.stats.pending)

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until everything emitted before this call was written or counted as lost.

        Blocks at most `timeout` seconds; returns whether that was enough. Call it from a thread, not from the
        loop.
        """
        thread = self._thread
        if not self._buffer and (thread is None or (self._closed and not thread.is_alive())):
            return True
        done = threading.Event()
        self._flushes.append(done)
        self._rouse()
        return done.wait(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Turns new events away, writes what is buffered, and closes the writer. May be called again.

        Blocks at most `timeout` seconds; returns whether that was enough. When it was not, the writer hangs:
        its thread is left behind, as a daemon, and `stats.pending` says how many events wait for it.
        """
        self._capacity = 0
        self._closed = True
        if not self._finished and not self._finish(timeout):
            return False
        self._finished = True
        while self._buffer:  # an emit that had passed its check when the capacity went to zero
            self._buffer.popleft()
            self._dropped += 1
        _live.discard(self)
        return True

    def _finish(self, timeout: float) -> bool:
        # With a limit: a signal that ended a start half-way may have left the lock held for ever.
        if self._starting.acquire(timeout=max(0.0, timeout)):
            try:
                if self._thread is None and self._buffer:
                    self._start_thread()
                if self._thread is None:  # never used, or no thread to be had: what is left is done here
                    self._run()
                    return True
            finally:
                self._starting.release()
        thread = self._thread
        self._ring()
        if thread is None or thread is threading.current_thread():
            return False
        thread.join(max(0.0, timeout))
        return not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _rouse(self) -> None:
        self._idle = False
        if self._thread is None:
            if self._starting.acquire(blocking=False):
                try:
                    if self._thread is None:
                        self._start_thread()
                finally:
                    self._starting.release()
        else:
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody else rang first
            self._bell.release()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="fairlead-telemetry", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads: keep the events, and let the next emit try again
            self._remember(error)
            self._thread = None
            self._idle = True

    def _run(self) -> None:
        while True:
            # Both are read before the buffer's length, so that what was emitted before them is in this pass.
            closing = self._closed
            waiting = [self._flushes.popleft() for _ in range(len(self._flushes))]
            self._drain(len(self._buffer))
            for done in waiting:
                done.set()
            if closing:
                break
            pause = self._tend()
            if not self._bell.acquire(timeout=min(self._flush_interval, pause)) and not self._buffer:
                self._idle = True
                if not (self._buffer or self._flushes or self._closed):
                    pause -= self._flush_interval
                    self._bell.acquire(timeout=-1 if pause > _LONGEST_PAUSE else max(0.0, pause))
                self._idle = False
        try:
            self._writer.close()
        except Exception as error:  # the edge of the thread: recorded, and the service goes on
            self._remember(error)

    def _tend(self) -> float:
        try:
            pause = inf if self._tended is None else self._tended.tend()
        except Exception as error:  # the edge of the thread: recorded, and the service goes on
            self._remember(error)
            return inf
        return max(0.0, pause)

    def _drain(self, count: int) -> None:
        buffer = self._buffer
        while count > 0:
            size = min(count, self._batch)
            count -= size
            self._moving = size
            lines = [
                line for line in (self._encode(buffer.popleft()) for _ in range(size)) if line is not None
            ]
            self._moving = len(lines)
            self._write(lines)

    def _encode(self, event: Event) -> bytes | None:
        line = b""
        try:
            if self._redactor is not None:
                event = self._redactor.event(event)
            line = encode_event(event)
            if len(line) > self._max_event_bytes:
                raise InvalidInput(
                    f"{type(event).__name__} of {len(line)} bytes: an event may have {self._max_event_bytes}"
                )
            if self._registry is not None:
                self._registry.decode(line)
        except Exception as error:  # whatever a foreign value raises must not stop the events behind it
            self._lost += 1
            self._remember(error)
            if self._dead_letters is not None:
                self._dead_letters.put(
                    line or _shown(event), reason=f"{type(error).__name__}: {error}", source="sink"
                )
            return None
        return self._numbering.stamp(line)

    def _write(self, lines: list[bytes]) -> None:
        while lines:
            try:
                taken = self._writer.write(lines)
            except Exception as error:  # the edge of the thread: recorded, and the service goes on
                self._moving = 0
                self._lost += len(lines)
                self._remember(error)
                return
            taken = min(max(taken, 1), len(lines))  # a writer that claims less would be asked for ever
            self._moving -= taken
            self._written += taken
            lines = lines[taken:]

    def _remember(self, error: BaseException) -> None:
        if self._failure is None:
            # Without its traceback: the frames would keep a whole batch alive for as long as the sink lives.
            self._failure = error.with_traceback(None)


def _shown(event: Event) -> bytes:
    """What a person can read of an event that JSON cannot hold."""
    try:
        return repr(event).encode("utf-8", "backslashreplace")
    except Exception:  # a foreign value's repr; the kind is then all there is
        return type(event).__name__.encode()


_live: weakref.WeakSet[BufferedSink] = weakref.WeakSet()


def _close_forgotten() -> None:
    end = time.monotonic() + _EXIT_TIMEOUT
    for sink in list(_live):
        sink.close(max(0.0, end - time.monotonic()))


def _forget_parent() -> None:
    for sink in list(_live):
        sink._start_afresh()


atexit.register(_close_forgotten)
os.register_at_fork(after_in_child=_forget_parent)
