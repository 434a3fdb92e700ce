"""A real NATS server with JetStream of one's own, on a private port, that can be hung, killed and brought back.

What a broker loses and doubles when it dies between a write and its receipt is not in any double of it.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--kill (SIGKILL)--> dead --restart--> running, with its streams, on the same port

How it runs and ends is `ServerProcess`. Streams lie in its own folder and outlive `kill`, not `stop`.
"""

from __future__ import annotations

import socket

from fairlead.testing.server_process import ServerProcess

__all__ = ["NatsServer"]


class NatsServer(ServerProcess):
    """One nats-server process with JetStream; a context manager, started on entry and ended on exit.

    >>> with NatsServer() as server:
    ...     server.url == f"nats://127.0.0.1:{server.port}"
    True
    """

    name = "nats-server"
    package = "nats-server (Debian, Ubuntu)"

    def __init__(self, *arguments: str, program: str = "nats-server") -> None:
        """arguments: added to the command line, as `"--auth", "token"`. program: name or path."""
        super().__init__(*arguments, program=program)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _words(self, port: int, folder: str) -> list[str]:
        return ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder, *self._arguments]

    def _answers(self, port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
            received = b""
            while b"PONG\r\n" not in received and b"-ERR" not in received:
                data = connection.recv(65_536)
                if not data:
                    return False
                received += data
            return received.startswith(b"INFO ") and b'"jetstream":true' in received
