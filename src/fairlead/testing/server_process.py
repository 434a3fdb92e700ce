"""A real server process of a test's own, on a private port, that can be hung, killed and brought back.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--kill (SIGKILL)--> dead --restart--> running, on the same port

It runs under the guard that the lab uses: it dies with this process, however this process dies. It listens on
127.0.0.1 only and keeps its files in a directory of its own, which `stop` removes.
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
from pathlib import Path
from types import TracebackType
from typing import Self

import fairlead
from fairlead.errors import InvalidInput, ProcessDied

__all__ = ["READY_WITHIN", "ServerProcess", "free_port"]

# By path and not by import: the lab's package wants its extra, the guard is the standard library alone.
_GUARD = Path(fairlead.__file__).parent / "lab" / "guard.py"
READY_WITHIN = 20.0
"""Seconds that a start may take; a busy machine takes one."""
_GRACE = 2.0
_TRIES = 5
_SBIN = "/usr/sbin:/usr/local/sbin"  # which a user's PATH may leave out


class ServerProcess:
    """One process of a server's program; a context manager, started on entry and ended on exit."""

    name = ""
    """How messages call it."""
    package = ""
    """What brings the program, as a person would install it."""

    def __init__(self, *arguments: str, program: str) -> None:
        """arguments: added to the command line. program: name or path."""
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

    def start(self) -> Self:
        """Starts the server and waits until it answers. Blocks for some 50 ms; for a test's setup.

        Raises ProcessDied when the program is not installed, or ends before it answers.
        """
        if self.pid:
            return self
        program = shutil.which(self._program) or shutil.which(self._program, path=_SBIN)
        if program is None:
            raise ProcessDied(f"{self._program} is not installed: install the package {self.package}")
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
        end = time.monotonic() + READY_WITHIN
        while _state(self.pid) != "T" and time.monotonic() < end:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._running(), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: connections are cut, what is only in memory is lost. Returns once the process is gone."""
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
        """Starts it again on the port it had; kills it first when it still runs."""
        if self.pid:
            self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> int:
        if not self.pid:
            raise ProcessDied(f"this {self.name} does not run: start it first")
        return self.pid

    def _words(self, port: int, folder: str) -> list[str]:
        """The command line after the program."""
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        """Whether the server answers; may raise OSError or InvalidInput while it does not."""
        raise NotImplementedError

    def _launch(self, program: str, port: int) -> None:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix=f"fairlead-{self.name}-")
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        told = [str(lifeline), str(status), str(_GRACE), str(os.getpid())]
        words = self._words(port, self._folder)
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
        end = time.monotonic() + READY_WITHIN
        self.pid = self._told_pid(end)
        while self.pid and _state(self.pid) not in ("", "Z"):
            with contextlib.suppress(OSError, InvalidInput):
                if self._answers(port):
                    self.port = port
                    return
            if time.monotonic() >= end:
                break
            time.sleep(0.005)
        self._cut_lifeline()
        self._reap()
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise ProcessDied(f"{self.name} on port {port} did not answer: {' | '.join(last)[-400:]}")

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


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now; another process may take it before you do."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def _state(pid: int) -> str:
    """The state letter of a process, "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""
