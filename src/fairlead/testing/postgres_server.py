"""A real PostgreSQL of one's own, on a private port, that can be hung, killed and brought back.

SQLite forgives what PostgreSQL does not (a sequence that commits out of order, a connection that died, a notification
that was never sent), so code that runs on both is tried on both.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--kill (SIGKILL)--> dead --restart--> running, with its data, on the same port

PostgreSQL is one process per connection: `pause` stops all of them, and new connections with them. The server refuses
to run as root, so root starts it as the user `postgres`. How it runs and ends is `ServerProcess`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path

from fairlead.errors import ProcessDied
from fairlead.testing.server_process import ServerProcess

__all__ = ["PostgresServer"]

_DEBIAN = Path("/usr/lib/postgresql")  # its programs lie in no PATH there, one folder a version
_INITDB_WITHIN = 60.0
_PROTOCOL_3 = 196_608


class PostgresServer(ServerProcess):
    """One PostgreSQL server with an empty database `postgres`; a context manager, started on entry and ended on exit.

    Its data outlives `kill`, not `stop`. A crash of the machine would lose it: `fsync` is off.

    >>> with PostgresServer() as server:
    ...     server.url == f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    True
    """

    name = "postgres"
    package = "postgresql (Debian, Ubuntu)"

    def __init__(self, *arguments: str, program: str | None = None) -> None:
        """arguments: added to the command line, as `"-c", "max_connections=50"`. program: name or path of `postgres`;
        None finds the newest one that is installed."""
        super().__init__(*arguments, program=program or _newest())

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def pause(self) -> None:
        """SIGSTOP to the server and to the process of each connection."""
        super().pause()  # first: a stopped server starts no further process
        for pid in _children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to all of them."""
        for pid in _children(self._running()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        super().resume()

    def stop(self) -> None:
        if self.pid:
            self.resume()
        super().stop()

    def _launch(self, program: str, port: int) -> None:
        # As root, what is started is `setpriv`, which becomes the server in the same process.
        as_user = _as_other_user()
        self._as_user = [*as_user[1:], program] if as_user else []
        self._initdb = str(Path(program).with_name("initdb"))
        super()._launch(as_user[0] if as_user else program, port)

    def _words(self, port: int, folder: str) -> list[str]:
        data = Path(folder, "data")
        if not data.exists():
            self._make_cluster(data)
        return [
            *self._as_user,
            *("-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", folder),
            *("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40"),
            *("-c", "log_statement=none", "-c", "autovacuum_naptime=60"),
            *self._arguments,
        ]

    def _make_cluster(self, data: Path) -> None:
        as_user = _as_other_user()
        if as_user:
            shutil.chown(data.parent, "postgres", "postgres")
        command = [*as_user, self._initdb, "-D", str(data), "-A", "trust", "-U", "postgres"]
        try:
            subprocess.run(
                [*command, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
                check=True,
                capture_output=True,
                timeout=_INITDB_WITHIN,
                cwd="/",
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            raise ProcessDied(
                f"{self.name}: initdb failed: {said.decode(errors='replace').strip()[-300:] or error}"
            ) from error

    def _answers(self, port: int) -> bool:
        """Whether a login ends in ReadyForQuery; while it starts, the server answers with an error."""
        words = b"user\0postgres\0database\0postgres\0\0"
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">II", 8 + len(words), _PROTOCOL_3) + words)
            with connection.makefile("rb") as stream:
                while head := stream.read(5):
                    kind, length = head[:1], struct.unpack(">I", head[1:])[0]
                    if kind in (b"Z", b"E"):
                        return kind == b"Z"
                    stream.read(length - 4)
        return False


def _children(pid: int) -> list[int]:
    """The processes of the connections, and the server's own workers."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _newest() -> str:
    found = sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return str(found[-1]) if found else "postgres"


def _as_other_user() -> list[str]:
    """What to put before a command so that it does not run as root; empty for others."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ProcessDied("setpriv is not installed: install the package util-linux, or do not run as root")
    # The kernel forgets the signal at a parent's death when the user changes; the guard counts on it.
    return [setpriv, "--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL", "--"]
