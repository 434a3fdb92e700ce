"""A real HAProxy of one's own, on a private port, that can be hung, killed, reloaded and brought back.

What a proxy serves in the moment between a map entry, a reload and a request is not in any double of it.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--reload (SIGUSR2)--> running, configuration and maps from disk
                          |--kill (SIGKILL)--> dead --restart--> running, the same, on the same port

How it runs and ends is `ServerProcess`: a master with one worker. Its Runtime API is at `socket`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import InvalidInput, ProcessDied
from fairlead.testing.server_process import READY_WITHIN, ServerProcess

__all__ = ["HaproxyServer"]

_RELOADED_WITHIN = 2.0
_GLOBAL = """global
    stats socket {socket} mode 600 level admin expose-fd listeners
    hard-stop-after 30s
    log stdout format raw daemon
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
"""


class HaproxyServer(ServerProcess):
    """One haproxy; a context manager, started on entry and ended on exit.

    >>> page = "http-request return status 200 content-type text/plain string hello"
    >>> with HaproxyServer(lambda port: f"listen web\\n    bind 127.0.0.1:{port}\\n    {page}\\n") as server:
    ...     server.command("show map")
    ['# id (file) description']
    """

    name = "haproxy"
    package = "haproxy (Debian, Ubuntu)"

    def __init__(
        self, configuration: Callable[[int], str], *arguments: str, program: str = "haproxy"
    ) -> None:
        """configuration: what follows `global` and `defaults`, for the port that it is to listen on.

        arguments: added to the command line, as `"-m", "256"`. program: name or path.
        """
        super().__init__(*arguments, program=program)
        self._configuration = configuration

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket(self) -> str:
        """Path of the Runtime API's socket. Raises ProcessDied before the first start."""
        if self._folder is None:
            raise ProcessDied(f"this {self.name} does not run: start it first")
        return f"{self._folder}/admin.sock"

    @property
    def log(self) -> str:
        """What it has said since it was started, and its log, if its configuration says `log global`."""
        return Path(self._folder, "log").read_text(errors="replace") if self._folder is not None else ""

    def command(self, line: str) -> list[str]:
        """The answer to one line of the Runtime API. Blocks; raises OSError (TimeoutError after 5 s) without one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(self.socket)
            connection.sendall(line.encode() + b"\n")
            with connection.makefile("rb") as stream:
                return [each for each in stream.read().decode().splitlines() if each]

    def workers(self) -> list[int]:
        """Process ids of the worker, and of older ones that still end connections after a reload."""
        running = self._running()
        return [int(pid) for pid in Path(f"/proc/{running}/task/{running}/children").read_text().split()]

    def reload(self) -> None:
        """SIGUSR2: a new worker reads configuration and maps from disk; returns once it answers.

        Raises ProcessDied when it does not come up; the old one goes on.
        """
        before, end, again = self._worker(), time.monotonic() + READY_WITHIN, 0.0
        while (now := time.monotonic()) < end:
            if now >= again:
                # A master that has only just started its worker loses the signal.
                os.kill(self._running(), signal.SIGUSR2)
                again = now + _RELOADED_WITHIN
            with contextlib.suppress(OSError, InvalidInput):
                if self._worker() != before:
                    return
            time.sleep(0.005)
        raise ProcessDied(f"{self.name}: no new worker came up; the old one goes on")

    def pause(self) -> None:
        """SIGSTOP to the master and its workers: connections are accepted, nothing is answered."""
        super().pause()  # first: a stopped master starts no further worker
        self._signal_workers(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to all of them."""
        self._signal_workers(signal.SIGCONT)
        super().resume()

    def kill(self) -> None:
        """SIGKILL to all of them. Returns once they are gone."""
        self._signal_workers(signal.SIGKILL)
        super().kill()

    def stop(self) -> None:
        if self.pid:
            with contextlib.suppress(OSError):
                self.resume()
        super().stop()

    def _signal_workers(self, number: signal.Signals) -> None:
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _words(self, port: int, folder: str) -> list[str]:
        path = Path(folder, "haproxy.cfg")
        path.write_text(_GLOBAL.format(socket=f"{folder}/admin.sock") + self._configuration(port))
        return ["-W", "-db", "-f", str(path), *self._arguments]

    def _answers(self, port: int) -> bool:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        return self._worker() > 0

    def _worker(self) -> int:
        found = re.search(r"^Pid: (\d+)$", "\n".join(self.command("show info")), re.MULTILINE)
        if found is None:
            raise InvalidInput(f"{self.name}: no process id in its answer")
        return int(found[1])
