"""A real Redis of one's own, on a private port, that can be hung, killed and brought back.

A double of Redis proves what its author believed of Redis. The failures that matter (a server that accepts
and does not answer, a connection cut between command and reply, a node that comes back empty) are the kernel's
and the server's, so the tests have the real thing.

    stopped --start--> running --pause (SIGSTOP)--> hung --resume--> running
                          |--kill (SIGKILL)--> dead --restart--> running, empty, on the same port

How it runs and ends is `ServerProcess`. It persists nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO

from fairlead.errors import InvalidInput, ProcessDied
from fairlead.testing.server_process import READY_WITHIN, ServerProcess, free_port

__all__ = ["RedisCluster", "RedisServer"]

_SLOTS = 16_384


class RedisServer(ServerProcess):
    """One redis-server process; a context manager, started on entry and ended on exit.

    >>> with RedisServer() as server:
    ...     server.command("SET", "k", "v"), server.command("GET", "k")
    ('OK', b'v')
    """

    name = "redis-server"
    package = "redis-server (Debian, Ubuntu) or redis"

    def __init__(self, *arguments: str, program: str = "redis-server") -> None:
        """arguments: added to the command line, as `"--maxmemory", "10mb"`. program: name or path."""
        super().__init__(*arguments, program=program)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self, *words: str | bytes | int | float) -> Any:
        """The reply to one command, over a connection of its own: str, int, bytes, None or a list of them.

        Blocks. Raises InvalidInput for an error reply, OSError (TimeoutError after 5 s) when there is none.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(_packed(words))
            with connection.makefile("rb") as stream:
                return _reply(stream)

    def _words(self, port: int, folder: str) -> list[str]:
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        return [*words, "--appendonly", "no", "--daemonize", "no", "--databases", "16", *self._arguments]

    def _answers(self, port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(_packed(("PING",)))
            with connection.makefile("rb") as stream:
                try:
                    return bool(_reply(stream) == "PONG")
                except InvalidInput as error:
                    return "NOAUTH" in str(error)  # it wants a password, so it is up


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
        end = time.monotonic() + READY_WITHIN
        for node in self.nodes:
            while True:
                info = node.command("CLUSTER", "INFO").decode()
                if "cluster_state:ok" in info and f"cluster_known_nodes:{count}" in info:
                    break
                if time.monotonic() > end:
                    raise ProcessDied(
                        f"the cluster of {count} was not complete in {READY_WITHIN:g} s: {info}"
                    )
                time.sleep(0.02)


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
