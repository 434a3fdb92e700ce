"""What workers and their aggregator say to each other, over a Unix socket in a directory of their own.

    worker      Hello → Welcome, then Taken → Ack, by itself once a second and whenever it gets an Ask
    scraper     Scrape → Page

A frame is its length in four bytes and a MessagePack map. Who can open the directory (mode 0700) is trusted to be this
service, not to be in order: lengths are bounded before anything is read, snapshots are checked before they are added.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.snapshot import LARGEST_SNAPSHOT

__all__ = [
    "HEAD",
    "Ack",
    "Ask",
    "Hello",
    "Message",
    "Page",
    "Scrape",
    "Taken",
    "Welcome",
    "decode",
    "encode",
    "frame_length",
    "lock_path",
    "log_path",
    "private_directory",
    "readable",
    "receive",
    "send",
    "socket_path",
]

HEAD = 4
_LARGEST_FRAME = 16 * LARGEST_SNAPSHOT  # a page of many workers
_LONGEST_PATH = 107  # bytes of a Unix socket's address

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Number = Annotated[int, msgspec.Meta(ge=0)]
_M = TypeVar("_M")


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A worker is here, perhaps again."""

    incarnation: _Id
    """Of this life of the worker; another after a restart."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The aggregator, and what it has of this incarnation."""

    aggregator: _Id
    """Of this life of the aggregator."""
    taken: _Number
    """Number of the last snapshot that it has; 0: none."""


class Taken(msgspec.Struct, frozen=True, tag=True):
    """All that the worker has counted in this incarnation."""

    number: _Number
    snapshot: bytes


class Ack(msgspec.Struct, frozen=True, tag=True):
    number: _Number


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Somebody scrapes: send a snapshot now."""


class Scrape(msgspec.Struct, frozen=True, tag=True):
    """All workers together, please: as Prometheus text, or else as an encoded snapshot."""

    text: bool = True


class Page(msgspec.Struct, frozen=True, tag=True):
    body: bytes


Message = Hello | Welcome | Taken | Ack | Ask | Scrape | Page

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    body = _encoder.encode(message)
    return struct.pack(">I", len(body)) + body


def frame_length(head: bytes) -> int:
    """The length of the frame that begins so. Raises BrokenDocument for one that nobody would send."""
    length = int.from_bytes(head, "big")
    if not 0 < length <= _LARGEST_FRAME:
        raise BrokenDocument(f"frame of {length:,} bytes: expected 1 to {_LARGEST_FRAME:,}")
    return length


def decode(body: bytes) -> Message:
    """Raises BrokenDocument for what is no message."""
    try:
        message: Message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BrokenDocument(f"no message between workers and aggregator: {error}") from error
    return message


def send(connection: socket.socket, message: Message, timeout: float) -> None:
    """Blocks for `timeout` seconds at most, then raises TimeoutError."""
    connection.settimeout(timeout)
    connection.sendall(encode(message))


def receive(connection: socket.socket, kind: type[_M], timeout: float) -> _M:
    """The next message, which is a `kind`. Raises OSError (TimeoutError, EOF) or BrokenDocument."""
    until = time.monotonic() + timeout
    message = decode(_exactly(connection, frame_length(_exactly(connection, HEAD, until)), until))
    if not isinstance(message, kind):
        raise BrokenDocument(f"expected {kind}, got {type(message).__name__}")
    return message


def _exactly(connection: socket.socket, count: int, until: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        left = until - time.monotonic()
        if left <= 0.0 or not readable((connection,), left):
            raise TimeoutError(f"{count - len(parts):,} bytes did not come in time")
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError("the other side closed the connection")
        parts += part
    return bytes(parts)


def readable(connections: Iterable[socket.socket], timeout: float) -> list[socket.socket]:
    """Those that have something to read, after `timeout` seconds at most; unlike select, beside 1,024 open files."""
    by_number = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(ceil(1000.0 * timeout))]


def private_directory(directory: str | os.PathLike[str]) -> Path:
    """The directory, made if it is missing. Raises InvalidInput unless it is ours alone, and short enough."""
    path = Path(directory).absolute()
    if len(os.fsencode(socket_path(path))) > _LONGEST_PATH:
        raise InvalidInput(
            f"{path}: a Unix socket's path has at most {_LONGEST_PATH} bytes: choose a shorter one"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be made a directory for metrics: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InvalidInput(
            f"{path}: is not a directory that this user alone may enter (owner {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o}): remove it, or name another"
        )
    return path


def socket_path(directory: Path) -> Path:
    return directory / "socket"


def lock_path(directory: Path) -> Path:
    """Locked by the aggregator that lives; holds its process id."""
    return directory / "lock"


def log_path(directory: Path) -> Path:
    return directory / "aggregator.log"
