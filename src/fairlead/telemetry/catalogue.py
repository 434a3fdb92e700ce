"""Which files of a directory of events count, while others are being made or deleted.

Compaction turns many segments into few files. If it died between writing the one and deleting the other, the
events would be there twice, or not at all. So one small file, `catalogue.json`, says what counts, and is
replaced in one step; everything else happens before that step, without effect, or after it, without loss:

    write new files, sync → replace catalogue.json (the moment) → delete what it names as consumed

Whoever deletes or replaces files holds the directory's lock, so one of them works at a time. Readers take no
lock: they read the catalogue, and then the files that it names and the segments that it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument
from fairlead.telemetry.file_replacement import replace_file

__all__ = ["Catalogue", "alone", "read_catalogue", "write_catalogue"]

_NAME = "catalogue.json"
_LOCK = ".lock"


class Catalogue(msgspec.Struct, forbid_unknown_fields=True):
    """The files that count beside the segments, and those that no longer do."""

    number: int = 0
    """Of the latest new file; each gets a number of its own."""
    files: list[str] = []
    """Parquet files whose events count."""
    consumed: list[str] = []
    """Segments and Parquet files whose events are in `files` now; about to be deleted, and not to be read."""


def read_catalogue(directory: Path) -> Catalogue:
    """What the directory's catalogue says; an empty one when there is none.

    Raises BrokenDocument for one that cannot be read: guessing would double events, or delete them.
    """
    path = directory / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Catalogue)
    except FileNotFoundError:
        return Catalogue()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenDocument(
            f"{path}: not a catalogue of events: {error}; restore it from a backup"
        ) from error


def write_catalogue(directory: Path, catalogue: Catalogue) -> None:
    """Replaces the catalogue in one step that is on disk when this returns."""
    replace_file(directory / _NAME, msgspec.json.format(msgspec.json.encode(catalogue)) + b"\n", mode=0o600)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Holds the directory's lock; waits for whoever has it."""
    file = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
