"""One worker of many: shows its metrics to the aggregator, and everybody's to a scraper.

A scrape reaches one worker of those that share a port, and each knows a part. `WorkerMetrics` sends what this worker
counted to the aggregator (`fairlead.telemetry.aggregator`), which it starts if there is none, and fetches the sum of
all from there. It does so from a thread of its own: a loop that is held up still shows, and no request waits.

Lost when a worker is killed: what it counted since its last snapshot, `interval` at most, and nothing that a page has
shown. What a forked worker inherits from its parent is its parent's, and not counted again.

Invariant: of one incarnation the aggregator keeps one snapshot, the newest, so nothing is counted twice, whatever was
acknowledged. If it has forgotten this incarnation, or is another, the worker begins a new one from zero.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from fairlead.errors import FairleadError, ScrapeIncomplete
from fairlead.telemetry import worker_protocol as protocol
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.snapshot import RegistrySnapshot, decode_snapshot, encode_snapshot
from fairlead.telemetry.totals import since

__all__ = ["WorkerMetrics"]

_log = logging.getLogger(__name__)

_ANSWER_WITHIN = 5.0
_SPAWN_WITHIN = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class WorkerMetrics:
    """The metrics of all worker processes of a service, seen from one of them.

    registry: of this process. directory: shared by the workers of one service, and by nobody else: `/run/feed/metrics`.
    It is made with mode 0700; a directory that others may enter is refused. interval: seconds between two snapshots,
    0.05 to 60; what a killed worker loses at most. timeout: seconds that a scrape may take, hung workers included.
    spawn: start the aggregator if there is none; False if you run it yourself.

    `start()` in each worker after any fork: in the lifespan, or gunicorn's post_fork. `close()` at its end; a normal
    exit does so too.
    """

    def __init__(
        self,
        registry: MetricRegistry,
        directory: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        timeout: float = 3.0,
        spawn: bool = True,
    ) -> None:
        check_number("WorkerMetrics.interval", interval, low=0.05, high=60.0)
        check_number("WorkerMetrics.timeout", timeout, low=0.05, high=60.0)
        self._registry = registry
        self._directory = protocol.private_directory(directory)
        self._interval = interval
        self._timeout = timeout
        self._spawn = spawn
        self._made_in = os.getpid()
        self._taking = threading.Lock()
        self.failure = ""
        """Why there is no connection to the aggregator now; empty while there is one."""
        self._forget()
        _survive_forks(self)

    def _forget(self) -> None:
        self._thread: threading.Thread | None = None
        self._connection: socket.socket | None = None
        self._closing = threading.Event()
        self._welcomed = threading.Event()
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._incarnation = ""
        self._aggregator = ""
        self._number = 0
        self._acknowledged = 0
        self._sent: RegistrySnapshot | None = None
        self._baseline: RegistrySnapshot | None = None

    def start(self) -> None:
        """Begins to send. Returns at once; safe to call again, and needed again after a fork."""
        if self._thread is not None:
            return
        if os.getpid() != self._made_in:
            self._baseline = self._registry.snapshot()
        self._incarnation = _new_incarnation()
        self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="fairlead-metrics", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self, timeout: float = 2.0) -> None:
        """Sends what was counted since the last snapshot and ends the thread; blocks for `timeout` seconds at most."""
        thread = self._thread
        if thread is None:
            return
        atexit.unregister(self.close)
        self._closing.set()
        self._ring()
        thread.join(timeout)
        if thread.is_alive():
            _log.warning("metrics: the last snapshot was not acknowledged within %g s", timeout)
            return
        for end in self._wake or ():
            end.close()
        self._forget()

    def __enter__(self) -> WorkerMetrics:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def scrape(self) -> str:
        """The metrics of all workers as Prometheus text. Raises ScrapeIncomplete when they cannot be had whole."""
        body = await asyncio.get_running_loop().run_in_executor(None, self._fetch, True)
        return body.decode()

    def merged(self) -> RegistrySnapshot:
        """The metrics of all workers as plain data. Blocks; raises ScrapeIncomplete as `scrape` does."""
        return decode_snapshot(self._fetch(False))

    def _fetch(self, text: bool) -> bytes:
        until = time.monotonic() + self._timeout
        if self._thread is None or not self._welcomed.wait(self._timeout):
            why = self.failure or "start() was not called in this process"
            raise ScrapeIncomplete(
                f"metrics of all workers: this one is not connected to the aggregator: {why}"
            )
        try:
            with _connect(protocol.socket_path(self._directory), self._timeout) as connection:
                protocol.send(connection, protocol.Scrape(text), max(0.01, until - time.monotonic()))
                return protocol.receive(connection, protocol.Page, until - time.monotonic()).body
        except (OSError, FairleadError) as error:
            raise ScrapeIncomplete(
                f"metrics of all workers: the aggregator in {self._directory} did not answer within "
                f"{self._timeout:g} s: {error}"
            ) from error

    def _ring(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(OSError):
                self._wake[1].send(b"x")

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._connected() as connection:
                    pause = _FIRST_PAUSE
                    self._converse(connection)
            except Exception as error:  # the edge of the thread: recorded, and tried again
                self.failure = f"{type(error).__name__}: {error}"
                if not isinstance(error, OSError | FairleadError):
                    _log.exception("metrics: could not be sent")
            if self._closing.wait(pause):
                return
            pause = min(2.0 * pause, _LONGEST_PAUSE)

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        connection = self._reach()
        self._connection = connection
        try:
            protocol.send(connection, protocol.Hello(self._incarnation), _ANSWER_WITHIN)
            welcome = protocol.receive(connection, protocol.Welcome, _ANSWER_WITHIN)
            if self._sent is not None and (
                welcome.aggregator != self._aggregator or welcome.taken < self._acknowledged
            ):
                # What was counted for the one that forgot us would look like a burst to whoever scrapes this one.
                self._baseline, self._sent = self._sent, None
                self._incarnation, self._number, self._acknowledged = _new_incarnation(), 0, 0
                self._aggregator = ""
                raise ConnectionResetError(
                    "the aggregator is another one, or has forgotten this worker: again"
                )
            self._aggregator = welcome.aggregator
            self.failure = ""
            yield connection
        finally:
            self._welcomed.clear()
            self._connection = None
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        """Sends a snapshot every interval, when asked and before the end; returns after the last one."""
        wake = self._wake
        if wake is None:
            return
        due = 0.0
        waits_for_ack_since: float | None = None
        while True:
            closing = self._closing.is_set()
            now = time.monotonic()
            if closing or now >= due:
                self._send_snapshot(connection)
                waits_for_ack_since = waits_for_ack_since or now
                due = now + self._interval
            if closing:
                self._await_ack(connection)
                return
            ready = protocol.readable((connection, wake[0]), max(0.0, due - time.monotonic()))
            if wake[0] in ready:
                wake[0].recv(64)
            if connection in ready:
                message = protocol.receive(connection, object, _ANSWER_WITHIN)
                if isinstance(message, protocol.Ask):
                    due = 0.0
                elif isinstance(message, protocol.Ack):
                    self._acknowledged = max(self._acknowledged, message.number)
                    waits_for_ack_since = None
                    self._welcomed.set()
            if waits_for_ack_since is not None and time.monotonic() - waits_for_ack_since > _ANSWER_WITHIN:
                raise TimeoutError(f"the aggregator took no snapshot within {_ANSWER_WITHIN:g} s")

    def _await_ack(self, connection: socket.socket) -> None:
        while self._acknowledged < self._number:
            message = protocol.receive(connection, object, _ANSWER_WITHIN)
            if isinstance(message, protocol.Ack):
                self._acknowledged = max(self._acknowledged, message.number)

    def _send_snapshot(self, connection: socket.socket) -> None:
        with self._taking:
            whole = self._registry.snapshot()
        own = whole if self._baseline is None else since(self._baseline, whole)
        self._number += 1
        self._sent = whole
        protocol.send(connection, protocol.Taken(self._number, encode_snapshot(own)), _ANSWER_WITHIN)

    def _reach(self) -> socket.socket:
        """A connection to the aggregator, which is started if there is none."""
        path = protocol.socket_path(self._directory)
        try:
            return _connect(path, _ANSWER_WITHIN)
        except (FileNotFoundError, ConnectionRefusedError):
            if not self._spawn or self._closing.is_set():
                raise
        with open(self._directory / "spawn", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # a sibling is at it
            else:
                self._start_aggregator()
            return self._connect_when_there(path)

    def _connect_when_there(self, path: os.PathLike[str]) -> socket.socket:
        until = time.monotonic() + _SPAWN_WITHIN
        while True:
            try:
                return _connect(path, _ANSWER_WITHIN)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > until or self._closing.wait(0.02):
                    raise

    def _start_aggregator(self) -> None:
        # It detaches itself: a grandchild of ours, in a session of its own, that no signal to our group reaches.
        command = [
            sys.executable,
            "-P",
            "-m",
            "fairlead.telemetry.aggregator",
            "--detach",
            str(self._directory),
        ]
        with open(protocol.log_path(self._directory), "wb") as log:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                check=False,
                timeout=_SPAWN_WITHIN,
            )


def _new_incarnation() -> str:
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def _connect(path: os.PathLike[str], timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _survive_forks(worker: WorkerMetrics) -> None:
    """The child gets no thread, no connection and no lock that somebody holds; it may `start()` as a new worker."""
    reference = weakref.ref(worker)

    def before() -> None:
        if (found := reference()) is not None:
            found._taking.acquire()  # our thread is inside no lock of the registry while the process is copied

    def in_parent() -> None:
        if (found := reference()) is not None:
            found._taking.release()

    def in_child() -> None:
        if (found := reference()) is not None:
            found._taking.release()
            for end in (found._connection, *(found._wake or ())):
                if end is not None:
                    end.close()
            found._forget()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
