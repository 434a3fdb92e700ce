"""The file from which a service starts when its database is down.

A configuration service that needs its database to start turns a restart during an outage into an outage of everything.
So the shared layers are written to a file whenever they have changed, and read from it before the database is asked.

Written whole or not at all: to a new file, flushed to the disk, then renamed over the old one, and the folder flushed
too. Read with suspicion: schema, checksum and size are checked, and a file that fails is one error, as if there were
none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead_systems.remote_config.table import Entry

__all__ = ["LastKnownGood", "read_last_known_good", "write_last_known_good"]

_SCHEMA = "remote_config.last_known_good/1"
_LARGEST = 16 * 1024 * 1024


class LastKnownGood(msgspec.Struct, frozen=True, kw_only=True):
    """The shared layers as they were last read."""

    version: int
    at_utc_seconds: float
    """When they were read."""
    entries: tuple[Entry, ...]


class _File(msgspec.Struct, frozen=True, kw_only=True):
    schema: str
    sha256: str
    """Of the bytes of `kept`."""
    kept: msgspec.Raw


def write_last_known_good(path: Path, kept: LastKnownGood) -> None:
    """Replaces the file; a reader, and a power cut, sees the old one or the new. Blocks for a flush or two.

    Raises NoSpace or InvalidInput; then the old file stands.
    """
    body = msgspec.json.encode(kept)
    data = msgspec.json.encode(
        _File(schema=_SCHEMA, sha256=hashlib.sha256(body).hexdigest(), kept=msgspec.Raw(body))
    )
    if len(data) > _LARGEST:
        raise InvalidInput(f"{path}: {len(data)} bytes, at most {_LARGEST} are kept; the old file stands")
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # without it, the name may be back at the old file after a power cut
            finally:
                os.close(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
    except OSError as error:
        raise NoSpace(f"{path}: {error.strerror}; the old file stands") from error


def read_last_known_good(path: Path) -> LastKnownGood | None:
    """None where there is no file. Raises BrokenDocument for one that cannot be relied on."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokenDocument(f"{path}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise BrokenDocument(f"{path}: larger than {_LARGEST} bytes")
    try:
        found = msgspec.json.decode(data, type=_File)
        if found.schema != _SCHEMA:
            raise BrokenDocument(f"{path}: schema {found.schema[:64]!r}, this version reads {_SCHEMA!r}")
        body = bytes(found.kept)
        if hashlib.sha256(body).hexdigest() != found.sha256:
            raise BrokenDocument(f"{path}: its contents do not fit its checksum")
        return msgspec.json.decode(body, type=LastKnownGood)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BrokenDocument(f"{path}: {error}") from error
