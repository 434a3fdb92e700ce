"""A writer that may be away: what is written goes to disk first and is handed on from there.

A sink whose broker is down has three ways out: wait (an outage by logging), forget, or keep within a bound.
This one keeps, and keeps always: every line is appended to a segment on disk, and a thread hands the segments
on in order. So there is no second mode that is only tried when the broker is down, and a broker that hangs
never stands in the way of the thread that writes.

    write → segment on disk → [thread] to.write, in order → cursor → delete segment
              ↓ bound reached       ↓ fails: keep, pause 0.1 … 5 s, again
            NoSpace (newest lost)   ↓ refuses the line for good (InvalidInput): dead letter

What is on disk survives SIGKILL and a restart: a process that starts takes over the backlogs below its
directory whose processes are gone. Handed on at least once; `event_id` makes it once. Per process, but for
the directory.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Literal

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, NoSpace
from fairlead.telemetry.backlog import Backlog, abandoned
from fairlead.telemetry.bounds import check_number, check_whole
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.sink import EventWriter

__all__ = ["Spool", "SpoolStats"]

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LOOK_AROUND = 10.0  # seconds between looks for backlogs whose processes are gone
_MOST_TAKEN_OVER = 16  # backlogs at a time: each is three open files
_GRACE = 1.0
_SEGMENTS = 8  # that a full spool consists of, at least


@dataclass(frozen=True, kw_only=True, slots=True)
class SpoolStats:
    """Counts since the spool was made, or since this process was forked."""

    forwarded: int
    """Lines that `to` took."""
    refused: int
    """Lines that `to` will never take; they are with the dead letters, if there is a file for them."""
    failures: int
    """Attempts to hand on that failed and were, or will be, made again."""
    truncated: int
    """Lines that a crash had cut short."""
    backlog_bytes: int
    """On disk now, in this process's backlog and in those that it took over."""


class Spool:
    """An EventWriter in front of another that may be slow, hang or be away for hours.

    >>> import tempfile
    >>> from fairlead.telemetry import JsonLinesSegments
    >>> target = JsonLinesSegments(tempfile.mkdtemp())
    >>> spool = Spool(tempfile.mkdtemp(), to=target)
    >>> spool.write([b'{"event":"x"}']), spool.drain(), spool.close()
    (1, True, None)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        to: EventWriter,
        max_bytes: int = 256 * 2**20,
        batch: int = 256,
        drain_timeout: float = 2.0,
        fsync: Literal["never", "rotate", "batch"] = "rotate",
        dead_letters: DeadLetterFile | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """Takes `to` over; its thread starts with the first write, or with `drain`.

        directory: shared by all processes of a service on one machine; each keeps its backlog in a folder there.
        to: raises when it could take nothing, and is asked again; InvalidInput says that the first line can never
            be taken.
        max_bytes: of segments on disk, per process, those taken over included; from 65,536. What does not fit is
            refused with NoSpace: the newest are lost and what was accepted is kept, as in a full buffer.
        batch: lines handed on at a time.
        drain_timeout: seconds that `close` goes on handing on; what is left waits on disk for the next process.
        fsync: as for JsonLinesSegments; `rotate` and `never` survive a SIGKILL as well, `batch` also a power cut.
        dead_letters: takes the lines that `to` refuses for good.
        rng: spreads the pauses between attempts.
        """
        check_whole("max_bytes", max_bytes, low=65_536, high=2**60)
        check_whole("batch", batch, low=1, high=100_000)
        check_number("drain_timeout", drain_timeout, low=0.0, high=3600.0)
        if fsync not in ("never", "rotate", "batch"):
            raise InvalidInput(f"fsync = {fsync!r}: expected 'never', 'rotate' or 'batch'")
        self.directory = Path(directory)
        self._to = to
        self._max_bytes = max_bytes
        self._batch = batch
        self._drain_timeout = drain_timeout
        self._fsync = fsync
        self._dead_letters = dead_letters
        self._clock = clock
        self._rng = rng or random.Random()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"{directory}: cannot be used as a directory for a spool: {error.strerror}"
            ) from error
        self._start_afresh()
        _live.add(self)

    def _start_afresh(self) -> None:
        self._own: Backlog | None = None
        self._adopted: tuple[Backlog, ...] = ()
        self._unreadable: set[Path] = set()
        self._segments: JsonLinesSegments | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._drained: list[threading.Event] = []
        self._closing_by: float | None = None
        self._forwarded = self._refused = self._failures = self._truncated = 0
        self._failure: BaseException | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        """Puts leading lines on disk; returns how many.

        Raises NoSpace when the spool is full, or the disk.
        """
        segments = self._started()
        room = self._max_bytes - self._size()
        count = 0
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            count += 1
        if not count:
            raise NoSpace(
                f"{self.directory}: the spool holds its {self._max_bytes} bytes, so the newest events are lost: "
                f"{'what it hands them to is slow' if self._failure is None else self._failure}"
            )
        taken = segments.write(lines[:count])
        self._wake.set()
        return taken

    def tend(self) -> float:
        """Ends a segment that is old enough, so that it can be deleted."""
        return inf if self._segments is None else self._segments.tend()

    def drain(self, timeout: float = 5.0) -> bool:
        """Waits until all that is in this process's spool, and in abandoned ones, is handed on or refused.

        Blocks at most `timeout` seconds; returns whether that was enough. From any thread.
        """
        self._started()
        done = threading.Event()
        self._drained.append(done)
        self._wake.set()
        self._hurry.set()
        return done.wait(timeout)

    def close(self) -> None:
        """Hands on what it can within `drain_timeout`, closes `to`, and leaves the rest on disk."""
        try:
            if self._segments is not None:
                self._segments.close()
        finally:
            thread = self._thread
            if thread is None:
                self._finish()
            else:
                self._closing_by = time.monotonic() + self._drain_timeout
                self._wake.set()
                self._hurry.set()
                thread.join(
                    self._drain_timeout + _GRACE
                )  # one that hangs in `to` is left behind, as a daemon

    @property
    def stats(self) -> SpoolStats:
        return SpoolStats(
            forwarded=self._forwarded,
            refused=self._refused,
            failures=self._failures,
            truncated=self._truncated,
            backlog_bytes=self._size(),
        )

    @property
    def failure(self) -> BaseException | None:
        """Why the latest attempt to hand on failed; None when it went well."""
        return self._failure

    def export(self, registry: MetricRegistry, *, name: str = "events") -> None:
        """Shows the counts as `fairlead_spool_total{spool,what}` and the backlog in bytes, read at each scrape."""
        counter = registry.counter(
            "fairlead_spool_total",
            "What a spool did with lines on disk, in this process.",
            labels=("spool", "what"),
        )
        for what in ("forwarded", "refused", "failures", "truncated"):
            counter.labels(spool=name, what=what).track(partial(getattr, self, f"_{what}"))
        registry.gauge(
            "fairlead_spool_backlog_bytes",
            "On disk: waiting, or handed on and not yet deleted.",
            labels=("spool",),
        ).labels(spool=name).track(self._size)

    def _size(self) -> int:
        backlogs = self._adopted if self._own is None else (self._own, *self._adopted)
        return sum(backlog.size() for backlog in backlogs)

    def _started(self) -> JsonLinesSegments:
        segments, thread = self._segments, self._thread
        if segments is not None and thread is not None and thread.is_alive():
            return segments
        with self._starting:
            if self._segments is None or self._own is None:
                now = datetime.fromtimestamp(self._clock.utc(), UTC)
                self._own = Backlog.created(self.directory, now.strftime("%Y%m%dT%H%M%SZ"))
                self._segments = JsonLinesSegments(
                    self._own.directory,
                    prefix="spool",
                    max_bytes=min(4 * 2**20, self._max_bytes // _SEGMENTS),
                    max_age=60.0,
                    fsync=self._fsync,
                    clock=self._clock,
                )
            if self._thread is None or not self._thread.is_alive():
                self._closing_by = None
                self._hurry.clear()
                thread = threading.Thread(
                    target=self._run, args=(self._own,), name="fairlead-spool", daemon=True
                )
                try:
                    thread.start()
                except (
                    RuntimeError
                ) as error:  # no more threads: keep the lines, and let the next write try again
                    self._failure = error.with_traceback(None)
                else:
                    self._thread = thread
            return self._segments

    def _run(self, own: Backlog) -> None:
        pause, looked = _FIRST_PAUSE, -_LOOK_AROUND
        while True:
            # Cleared before the rest is looked at, so that what comes later rings again.
            self._wake.clear()
            waiting, closing_by = list(self._drained), self._closing_by
            try:
                moved = 0
                if waiting or time.monotonic() - looked >= _LOOK_AROUND:
                    looked = time.monotonic()
                    moved += self._take_over(own)
                moved += sum([self._forward(backlog) for backlog in (own, *self._adopted)])
            except Exception as error:  # the edge of the thread: recorded, and tried again
                self._failures += 1
                self._failure = error.with_traceback(None)
                if closing_by is not None and time.monotonic() + pause >= closing_by:
                    break
                self._hurry.clear()
                if self._closing_by == closing_by:
                    self._hurry.wait(pause * (0.5 + self._rng.random()))
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            pause, self._failure = _FIRST_PAUSE, None
            if moved:
                if closing_by is not None and time.monotonic() >= closing_by:
                    break
                continue
            for done in waiting:
                done.set()
                self._drained.remove(done)
            if closing_by is not None:
                break
            self._wake.wait(_LOOK_AROUND)
        self._finish()

    def _finish(self) -> None:
        try:
            self._to.close()
        except Exception as error:  # the edge of the thread: recorded
            self._failure = error.with_traceback(None)
        backlogs = self._adopted if self._own is None else (self._own, *self._adopted)
        self._own, self._adopted, self._segments, self._thread = None, (), None, None
        for backlog in backlogs:
            with contextlib.suppress(OSError):  # then the lock goes with the process
                backlog.close()

    def _forward(self, backlog: Backlog) -> int:
        try:
            lines = backlog.read(self._batch)
        except OSError as error:
            if backlog is self._own:
                raise
            self._failures += 1
            self._failure = error.with_traceback(None)
            self._unreadable.add(backlog.directory)
            self._let_go(backlog)
            return 0
        self._truncated += backlog.truncated
        backlog.truncated = 0
        if not lines:
            if backlog is not self._own and backlog.is_empty():
                self._let_go(backlog)
                return 1  # there is room for another
            return 0
        try:
            taken = min(max(self._to.write(lines), 1), len(lines))
        except InvalidInput as error:
            self._refused += 1
            self._failure = error.with_traceback(None)
            if self._dead_letters is not None:
                self._dead_letters.put(lines[0], reason=str(error), source=str(backlog.directory))
            backlog.advance(1)
            return 1
        self._forwarded += taken
        backlog.advance(taken)
        return taken

    def _take_over(self, own: Backlog) -> int:
        known = {*self._unreadable, *(backlog.directory for backlog in (own, *self._adopted))}
        found = abandoned(self.directory, known, _MOST_TAKEN_OVER - len(self._adopted))
        self._adopted = (*self._adopted, *found)
        return len(found)

    def _let_go(self, backlog: Backlog) -> None:
        self._adopted = tuple(each for each in self._adopted if each is not backlog)
        backlog.close()


_live: weakref.WeakSet[Spool] = weakref.WeakSet()


def _forget_parent() -> None:
    for spool in list(_live):
        for backlog in (spool._own, *spool._adopted):
            if backlog is not None:
                backlog.forget()
        if spool._segments is not None:
            spool._segments.forget()
        spool._start_afresh()


os.register_at_fork(after_in_child=_forget_parent)
