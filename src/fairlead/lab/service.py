"""What a topology is told about one program: how to start it, when it is ready, how long it may stop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.errors import InvalidInput
from fairlead.lab.limits import number_within, whole_number_within
from fairlead.lab.readiness import HttpReady, Ready, TcpReady

__all__ = ["Service"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One program of a topology.

    In `argv` and the values of `env`: {fd} is the descriptor of a listening socket on the service's port;
    {port} the port; {url} http://127.0.0.1:port; {port:NAME} the port of that name from `more_ports`.
    {other.port}, {other.url} and {other.port:NAME} are those of another service. Other braces are left alone.
    """

    name: str
    """Lower-case letters, digits, _ and -; names the log file and the errors."""
    argv: Sequence[str]
    """The program and its arguments; never given to a shell."""
    ready: Ready = field(default_factory=HttpReady)
    """When it counts as started. Not TcpReady with {fd}: that socket accepts before the program runs."""
    port: int = 0
    """1–65535, or 0 to have a free one chosen."""
    more_ports: tuple[str, ...] = ()
    """Names of further ports it listens on, such as one for gRPC; each gets a free one."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of this process."""
    cwd: Path | None = None
    """Working directory; None: this process's."""
    grace: float = 3.0
    """Seconds between SIGTERM and SIGKILL, 0–60."""
    ready_within: float = 30.0
    """Seconds from launch until it must be ready, (0, 600]. 30: loading a model on a busy machine."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"name: {self.name!r} is not made of lower-case letters, digits, _ and - (up to 63)"
            )
        if (
            isinstance(self.argv, str)
            or not self.argv
            or not all(isinstance(word, str) for word in self.argv)
        ):
            raise InvalidInput(
                f"argv of {self.name}: {self.argv!r} is not a list of words; split it, no shell will"
            )
        if any("\0" in word for word in (*self.argv, *self.env, *self.env.values())):
            raise InvalidInput(
                f"argv, env of {self.name}: hold a NUL character, which no program can receive"
            )
        whole_number_within(f"port of {self.name}", self.port, 0, 65535)
        number_within(f"grace of {self.name}", self.grace, 0.0, 60.0)
        number_within(f"ready_within of {self.name}", self.ready_within, 0.0, 600.0, above=True)
        if self.takes_socket and isinstance(self.ready, TcpReady):
            raise InvalidInput(
                f"ready of {self.name}: the socket passed as {{fd}} accepts before the program runs, so "
                "TcpReady would prove nothing; use HttpReady"
            )

    @property
    def takes_socket(self) -> bool:
        """Whether it takes over a listening socket instead of binding its port itself."""
        return any("{fd}" in word for word in self.argv)

    @property
    def picks_port(self) -> bool:
        """Whether it binds a port that was picked for it, and so may find it taken."""
        return bool(self.more_ports) or not self.takes_socket
