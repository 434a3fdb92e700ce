"""Ports of this machine: taking one, asking whether it is free, and naming whoever has it."""

from __future__ import annotations

import contextlib
import errno
import socket

from fairlead.errors import InvalidInput, MissingExtra, PortInUse
from fairlead.lab.guard import descendants

try:
    import psutil
except ImportError as missing:
    raise MissingExtra("psutil", "lab") from missing

__all__ = ["bind_port", "is_free", "listens", "port_in_use"]


def bind_port(name: str, port: int) -> socket.socket:
    """A socket bound to 127.0.0.1:`port` (0: any free one), not yet listening.

    Raises PortInUse, or InvalidInput for a port that this user may not bind.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Without it, the port stays taken for a minute by the closed connections of the run before.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise InvalidInput(
                f"{name}: port {port} cannot be bound: {error.strerror}; choose another"
            ) from error
        raise port_in_use(name, port) from error
    return listener


def is_free(port: int) -> bool:
    """Whether a server could bind 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(pid: int, port: int) -> bool:
    """Whether process `pid`, or one below it, listens on TCP `port`."""
    for each in (pid, *descendants(pid)):
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(each).net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


def port_in_use(name: str, port: int) -> PortInUse:
    """The error for service `name`, naming the process that listens on `port` where that can be seen."""
    owner = "another process"
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                owner = f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
                break
    return PortInUse(
        f"{name}: port {port} is taken by {owner}; stop it, or give {name} another port (0: any free one)"
    )
