"""The last good document on disk, so that a service starts though its source is down.

One file: a line of JSON that says what follows, then the document's own bytes. It is replaced in one step and flushed,
so a crash leaves the old one or the new one; its hash is checked when it is read, so a damaged one is refused and not
served. It belongs to one service: mode 0600, since a document says what is not out yet.

A file that another account owns, or that every account may write, is refused: whoever writes it chooses the flags.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument
from fairlead.flags.flag import MAX_BYTES, one_line
from fairlead.telemetry.file_replacement import replace_file

__all__ = ["Kept", "keep", "read_kept"]

_FORMAT = "fairlead.flags.last_known_good/1"
_LONGEST_HEAD = 4_096


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A document and where it came from."""

    data: bytes
    at_utc_seconds: float
    """When it was received."""
    place: str


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    sha256: str
    at_utc_seconds: float
    place: str


def keep(path: Path, kept: Kept) -> None:
    """Has it on the disk when this returns. Raises BrokenDocument when it cannot; then the old one stands."""
    head = _Head(
        format=_FORMAT,
        sha256=hashlib.sha256(kept.data).hexdigest(),
        at_utc_seconds=kept.at_utc_seconds,
        place=kept.place[:1_024],
    )
    try:
        replace_file(path, msgspec.json.encode(head) + b"\n" + kept.data, mode=0o600)
    except OSError as error:
        raise BrokenDocument(
            f"{one_line(str(path))}: the last known good cannot be kept ({error.strerror}); make room, or name "
            "a folder that this service may write"
        ) from error


def read_kept(path: Path) -> Kept | None:
    """What was kept; None when nothing was. Raises BrokenDocument for a file that is not to be trusted."""
    name = one_line(str(path))
    try:
        # Non-blocking, so that a named pipe in the file's place cannot hang the start of a service.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise BrokenDocument(f"{name}: not a regular file; name one for the last known good")
            # A group may write: volumes of a cluster are often shared with one, and the hash finds accidents.
            if about.st_uid not in (0, os.geteuid()) or about.st_mode & stat.S_IWOTH:
                raise BrokenDocument(
                    f"{name}: others may write it; remove it, or give it to this account alone"
                )
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_BYTES + _LONGEST_HEAD + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokenDocument(
            f"{name}: the last known good cannot be read ({error.strerror}); correct it or remove it"
        ) from error
    line, _, document = data.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=_Head)
        if head.format != _FORMAT or head.sha256 != hashlib.sha256(document).hexdigest():
            raise BrokenDocument(f"{name}: not what was kept, or of another format; remove it")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenDocument(f"{name}: no last known good ({error}); remove it") from error
    return Kept(data=document, at_utc_seconds=head.at_utc_seconds, place=head.place)
