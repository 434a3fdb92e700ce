"""A real Redis of one's own, on a private port, that can be hung, killed and brought back.

A double of Redis proves what its author believed of Redis. The failures that matter (a server that accepts
and does not answer, a connection cut between command and reply, a node that comes back empty) are the kernel's
and the server's, so the tests have the real thing.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--kill (SIGKILL)--> dead --restart--> running, empty, on the same port

Each server runs under the guard that the lab uses: it dies with this process, however this process dies.
It listens on 127.0.0.1 only, keeps its files in a directory of its own and persists nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import fairlead
from fairlead.errors import InvalidInput, ProcessDied

__all__ = ["RedisCluster", "RedisServer"]

# By path and not by import: the lab's package wants its extra, the guard is the standard library alone.
_GUARD = Path(fairlead.__file__).parent / "lab" / "guard.py"
_READY_WITHIN = 20.0  # seconds; a busy machine takes one
_GRACE = 2.0
_TRIES = 5
_SLOTS = 16_384


class RedisServer:
    """One redis-server process; a context manager, started on entry and ended on exit.

    >>> with RedisServer() as server:
    ...     server.command("SET", "k", "v"), server.command("GET", "k")
    ('OK', b'v')
    """

    def __init__(self, *arguments: str, program: str = "redis-server") -> None:
        """arguments: added to the command line, as `"--maxmemory", "10mb"`. program: name or path."""
        self.port = 0
        """On 127.0.0.1; 0 before the first start, the same ever after."""
        self.pid = 0
        """Of the server that runs; 0 when none does."""
        self._arguments = arguments
        self._program = program
        self._folder: str | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._status = -1

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Starts the server and waits until it answers PING. Blocks for some 50 ms; for a test's setup.

        Raises ProcessDied when redis-server is not installed, or ends before it answers.
        """
        if self.pid:
            return self
        program = shutil.which(self._program)
        if program is None:
            raise ProcessDied(
                f"{self._program} is not installed: install the package redis-server (Debian, Ubuntu) or redis"
            )
        for left in reversed(range(_TRIES)):
            try:
                self._launch(program, self.port or free_port())
            except ProcessDied:
                # A port that was free a moment ago may have been taken; one that clients know is kept.
                if not left or self.port:
                    raise
            else:
                break
        return self

    def pause(self) -> None:
        """SIGSTOP: connections stay and are accepted, nothing is answered. Returns once it has stopped."""
        os.kill(self._running(), signal.SIGSTOP)
        end = time.monotonic() + _READY_WITHIN
        while _state(self.pid) != "T" and time.monotonic() < end:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._running(), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: connections are cut, all data is lost. Returns once the process is gone."""
        os.kill(self._running(), signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """Ends the server, paused or not, and removes its files. Does nothing to one that does not run."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        self._cut_lifeline()
        self._reap()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restart(self) -> None:
        """Starts it again, empty, on the port it had; kills it first when it still runs."""
        if self.pid:
            self.kill()
        self.start()

    def command(self, *words: str | bytes | int | float) -> Any:
        """The reply to one command, over a connection of its own: str, int, bytes, None or a list of them.

        Blocks. Raises InvalidInput for an error reply, OSError (TimeoutError after 5 s) when there is none.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(_packed(words))
            with connection.makefile("rb") as stream:
                return _reply(stream)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> int:
        if not self.pid:
            raise ProcessDied("this redis-server does not run: start it first")
        return self.pid

    def _launch(self, program: str, port: int) -> None:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="fairlead-redis-")
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        told = [str(lifeline), str(status), str(_GRACE), str(os.getpid())]
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder, "--save", ""]
        words += ["--appendonly", "no", "--daemonize", "no", "--databases", "16", *self._arguments]
        log = Path(self._folder, "log")
        try:
            with log.open("wb") as output:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), *told, program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(lifeline, status),
                    start_new_session=True,
                )
        finally:
            os.close(lifeline)
            os.close(status)
        end = time.monotonic() + _READY_WITHIN
        self.pid = self._told_pid(end)
        while self.pid and _state(self.pid) not in ("", "Z"):
            with contextlib.suppress(OSError, InvalidInput):
                if _answers(port):
                    self.port = port
                    return
            if time.monotonic() >= end:
                break
            time.sleep(0.005)
        self._cut_lifeline()
        self._reap()
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise ProcessDied(f"redis-server on port {port} did not answer: {' | '.join(last)[-400:]}")

    def _told_pid(self, end: float) -> int:
        received = b""
        while not received.endswith(b"\n"):
            if not select.select([self._status], [], [], max(0.0, end - time.monotonic()))[0]:
                return 0
            data = os.read(self._status, 64)
            if not data:
                return 0
            received += data
        word, _, number = received.splitlines()[0].decode().partition(" ")
        return int(number) if word == "pid" else 0

    def _cut_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _reap(self) -> None:
        """Waits until the guard, which outlives what it guards, has ended."""
        if self._guard is not None:
            try:
                self._guard.wait(_GRACE + 5.0)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
            self._guard = None
        self._cut_lifeline()
        if self._status >= 0:
            os.close(self._status)
            self._status = -1
        self.pid = 0


class RedisCluster:
    """Three masters that share the 16,384 slots, on private ports; a context manager.

    Without replicas: a node that is killed takes its slots with it until it is restarted, and then the
    cluster must be assembled anew (`restart` is not defined for a node of it; `pause` and `resume` are).
    """

    def __init__(self, nodes: int = 3, *, program: str = "redis-server") -> None:
        self.nodes: tuple[RedisServer, ...] = ()
        self._count = nodes
        self._program = program
        self._bus: list[int] = []

    @property
    def url(self) -> str:
        """Of one node; the others are found through it."""
        return self.nodes[0].url

    def start(self) -> RedisCluster:
        """Starts the nodes and waits until each finds the cluster complete. Blocks for a second or two."""
        self._bus = [free_port() for _ in range(self._count)]
        # A cut of 60 s: a test that pauses a node wants a hung node, not a failed cluster.
        common = ("--cluster-enabled", "yes", "--cluster-node-timeout", "60000")
        self.nodes = tuple(
            RedisServer(*common, "--cluster-port", str(bus), program=self._program) for bus in self._bus
        )
        try:
            for node in self.nodes:
                node.start()
            self._assemble()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def node_of(self, slot: int) -> RedisServer:
        """The node that was given `slot` at the start."""
        return self.nodes[slot * self._count // _SLOTS]

    def __enter__(self) -> RedisCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _assemble(self) -> None:
        first, count = self.nodes[0], self._count
        for i, node in enumerate(self.nodes):
            low, high = -(-i * _SLOTS // count), -(-(i + 1) * _SLOTS // count) - 1
            node.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            node.command("CLUSTER", "ADDSLOTSRANGE", low, high)
            if node is not first:
                node.command("CLUSTER", "MEET", "127.0.0.1", first.port, self._bus[0])
        end = time.monotonic() + _READY_WITHIN
        for node in self.nodes:
            while True:
                info = node.command("CLUSTER", "INFO").decode()
                if "cluster_state:ok" in info and f"cluster_known_nodes:{count}" in info:
                    break
                if time.monotonic() > end:
                    raise ProcessDied(
                        f"the cluster of {count} was not complete in {_READY_WITHIN:g} s: {info}"
                    )
                time.sleep(0.02)


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now; another process may take it before you do."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(_packed(("PING",)))
        with connection.makefile("rb") as stream:
            try:
                return bool(_reply(stream) == "PONG")
            except InvalidInput as error:
                return "NOAUTH" in str(error)  # it wants a password, so it is up


def _packed(words: Sequence[str | bytes | int | float]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _reply(stream: BinaryIO) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise InvalidInput(f"redis-server: {rest.decode(errors='replace')}")
    if kind == b"+":
        return rest.decode()
    if kind == b":":
        return int(rest)
    if kind == b"$":
        size = int(rest)
        return None if size < 0 else stream.read(size + 2)[:-2]
    size = int(rest)
    return None if size < 0 else [_reply(stream) for _ in range(size)]


def _state(pid: int) -> str:
    """The state letter of a process, "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""
