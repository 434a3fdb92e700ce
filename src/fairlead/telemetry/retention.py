"""What of the past is kept: by age, by size, and whatever a decision stands on.

A directory of events grows until the disk is full, or a clean-up by age deletes the very file that a decision
of last month rests on. Here the oldest finished files go first, and those that are pinned stay until they are
unpinned, whatever the bounds say.

    pin(file, reason) → `pins.json` beside it, with the file's SHA-256: evidence can be checked against it

A pinned segment is not compacted, and a pinned Parquet file not merged: its bytes stay as they were. Segments
that are being written are never touched. Both bounds belong to the directory, whoever wrote in it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.bounds import check_number, check_whole
from fairlead.telemetry.catalogue import Catalogue, alone, read_catalogue, write_catalogue
from fairlead.telemetry.file_replacement import replace_file
from fairlead.telemetry.jsonl import is_finished

__all__ = ["Pin", "RetentionReport", "pin", "pins", "retain", "unpin"]

_PINS = "pins.json"
_DAY = re.compile(r"-(\d{4}-\d\d-\d\d)-\d{6}\.parquet")
_DAY_SECONDS = 86_400.0


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why one file is kept."""

    file: str
    """Its name in the directory."""
    reason: str
    """What stands on it, as an evidence's id."""
    sha256: str
    """Of its content when it was pinned, in hexadecimal."""
    at_utc_seconds: float
    """When it was pinned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionReport:
    """What `retain` did."""

    deleted: tuple[str, ...]
    """Names of the files that are gone, oldest first."""
    deleted_bytes: int
    kept_bytes: int
    """Of all events that remain, pinned ones and those being written included."""
    spared: tuple[str, ...]
    """Files that are over a bound and were kept because they are pinned."""


def pin(path: str | os.PathLike[str], *, reason: str, clock: Clock = SYSTEM_CLOCK) -> Pin:
    """Keeps a finished segment, or a Parquet file, until it is unpinned. Reads it once, for its hash.

    Pinning it again under the same reason changes nothing; under another, both must be unpinned. Raises
    InvalidInput for a file that is not there, or that is still being written.
    """
    path = Path(path)
    if not reason:
        raise InvalidInput(f"{path}: a pin needs a reason, so that somebody can tell when it may go")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path}: no such file, so there is nothing to pin")
    with alone(path.parent):
        known = _read(path.parent)
        for each in known:
            if (each.file, each.reason) == (path.name, reason):
                return each
        gone = read_catalogue(path.parent).consumed
        if path.name in gone or not path.is_file():
            raise InvalidInput(f"{path}: no such file, so there is nothing to pin")
        if path.suffix == ".jsonl" and not is_finished(path):
            raise InvalidInput(
                f"{path}: still being written, so its hash would not last: pin it when it is finished"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made = Pin(file=path.name, reason=reason, sha256=digest, at_utc_seconds=clock.utc())
        _write(path.parent, [*known, made])
    return made


def unpin(path: str | os.PathLike[str], *, reason: str) -> None:
    """Takes one pin away. Nothing happens when there is none."""
    path = Path(path)
    if path.parent.is_dir():
        with alone(path.parent):
            known = _read(path.parent)
            left = [each for each in known if (each.file, each.reason) != (path.name, reason)]
            if left != known:
                _write(path.parent, left)


def pins(directory: str | os.PathLike[str]) -> tuple[Pin, ...]:
    """The pins of a directory, oldest first."""
    return tuple(_read(Path(directory)))


def retain(
    directory: str | os.PathLike[str],
    *,
    max_age: float | None = None,
    max_bytes: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> RetentionReport:
    """Deletes finished files of events, oldest first, until the directory is within its bounds or only pins are left.

    max_age: seconds since a segment was last written, or since the end of the day that a Parquet file holds.
    max_bytes: of all events in the directory; what is pinned or being written counts and stays.
    clock: the wall clock decides; one that is years ahead deletes what is not pinned.
    """
    if max_age is not None:
        check_number("max_age", max_age, low=0.0)
    if max_bytes is not None:
        check_whole("max_bytes", max_bytes, low=0, high=2**62)
    root = Path(directory)
    if not root.is_dir():
        raise InvalidInput(f"{root}: no such directory, so there are no events to keep")
    with alone(root):
        return _retain(root, max_age, max_bytes, clock.utc())


def _retain(root: Path, max_age: float | None, max_bytes: int | None, now: float) -> RetentionReport:
    catalogue = read_catalogue(root)
    pinned = {each.file for each in _read(root)}
    aged, left = _by_age(root, catalogue)
    deleted: list[str] = []
    spared: list[str] = []
    freed = 0
    for at, size, path in aged:
        over_age = max_age is not None and now - at > max_age
        if not over_age and (max_bytes is None or left <= max_bytes):
            continue
        if path.name in pinned:
            spared.append(path.name)
            continue
        deleted.append(path.name)
        freed += size
        left -= size
    if names := {name for name in deleted if name in catalogue.files}:
        catalogue.files = [name for name in catalogue.files if name not in names]
        catalogue.consumed += sorted(names)
        write_catalogue(root, catalogue)
    for name in deleted:
        (root / name).unlink(missing_ok=True)
    return RetentionReport(deleted=tuple(deleted), deleted_bytes=freed, kept_bytes=left, spared=tuple(spared))


def _by_age(root: Path, catalogue: Catalogue) -> tuple[list[tuple[float, int, Path]], int]:
    """What may be deleted as (moment, bytes, path), oldest first, and the bytes of all events."""
    found = []
    total = 0
    paths = [*root.glob("*.jsonl"), *(root / name for name in catalogue.files)]
    for path in paths:
        if path.name in catalogue.consumed:
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        total += stat.st_size
        if path.suffix == ".parquet" or is_finished(path):
            found.append((_end_of_day(path.name, stat.st_mtime), stat.st_size, path))
    return sorted(found), total


def _end_of_day(name: str, otherwise: float) -> float:
    match = _DAY.search(name)
    if match is None:
        return otherwise
    return datetime.strptime(match[1], "%Y-%m-%d").replace(tzinfo=UTC).timestamp() + _DAY_SECONDS


def _read(directory: Path) -> list[Pin]:
    path = directory / _PINS
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Pin])
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenDocument(f"{path}: not a list of pins: {error}; restore it from a backup") from error


def _write(directory: Path, known: list[Pin]) -> None:
    replace_file(directory / _PINS, msgspec.json.format(msgspec.json.encode(known)) + b"\n", mode=0o600)
