"""Events as JSON Lines, in segment files that are never rewritten.

One growing file cannot be deleted, shipped or compacted while it is written, and two processes that append to
it mix their lines. Here every process writes segments of its own, appends only, and begins a new one by size
or age; a finished segment never changes. Names sort by the time the segment began:

    events-20260102T030405.678901Z-4711-000001.jsonl        prefix, UTC, process id, number

A segment is locked (flock) while it is written, so that whoever compacts, ships or deletes can tell a finished
one from one at work, also after a SIGKILL: the kernel lets go of the lock.

A crash can cut the last line of a segment, and only that. Readers tolerate and count it. Any other line that
is not an event is reported, not skipped. When the disk is full, the line that did not fit is cut off again,
so that what was recorded before stays readable to its last byte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Literal

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead.telemetry.catalogue import read_catalogue
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.event import Event
from fairlead.telemetry.identity import SeenEvents, event_id
from fairlead.telemetry.schema import EVENTS, EventRegistry, UnknownEvent

__all__ = ["JsonLinesSegments", "ReadReport", "is_cut", "is_finished", "read_events", "segment_lines"]

_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit is reached (ulimit -f)",
}
_NEW_FILE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LONGEST_LINE = 16 * 2**20
_PROBLEMS_KEPT = 10


class JsonLinesSegments:
    """An EventWriter that appends to segment files in one directory."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        prefix: str = "events",
        max_bytes: int = 64 * 2**20,
        max_age: float = 3600.0,
        fsync: Literal["never", "rotate", "batch"] = "rotate",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Makes the directory; segments begin with the first write.

        directory: made if missing, mode 0700; segments get 0600, since events name users.
        prefix: letters, digits, `_` and `.`, so that it cannot leave the directory.
        max_bytes: a batch that would pass it begins a new segment; only a single longer line exceeds it.
        max_age: seconds, > 0; the sink's thread ends a segment at this age, also when nothing more comes.
        fsync: when data is forced to the disk: `never` (the kernel decides; a power cut can cost 30 s),
            `rotate` (when a segment ends; the default, since a process that dies alone loses nothing either
            way), `batch` (each write).
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,63}", prefix):
            raise InvalidInput(f"prefix = {prefix!r}: use 1 to 64 letters, digits, '_' and '.'")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidInput(f"max_bytes = {max_bytes!r}: expected a whole number, 1 or more")
        if isinstance(max_age, bool) or not max_age > 0:
            raise InvalidInput(f"max_age = {max_age!r}: expected seconds, above 0")
        if fsync not in ("never", "rotate", "batch"):
            raise InvalidInput(f"fsync = {fsync!r}: expected 'never', 'rotate' or 'batch'")
        self.directory = Path(directory)
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._fsync = fsync
        self._clock = clock
        self._pid = os.getpid()
        self._number = 0
        self._file: int | None = None
        self._path = self.directory
        self._size = 0
        self._began = 0.0
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._no_space(error) from error
            raise InvalidInput(
                f"{directory}: cannot be used as a directory for events: {error.strerror}"
            ) from error

    def write(self, lines: Sequence[bytes]) -> int:
        """Appends leading lines to the current segment; returns how many.

        Raises NoSpace, with the file's name, when the disk, a quota or the file-size limit stopped the first
        of them.
        """
        try:
            file = self._current_segment(len(lines[0]) + 1)
            count, data = self._fitting(lines)
            done = self._append(file, data)
            if done < len(data):
                count = data.count(b"\n", 0, done)
            if self._fsync == "batch" and self._file is not None:
                os.fsync(file)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._no_space(error) from error
            raise
        return count

    @property
    def current(self) -> Path | None:
        """The segment that is being written; None when none is open in this process."""
        return self._path if self._file is not None and self._pid == os.getpid() else None

    def tend(self) -> float:
        """Ends the segment when it has its age; returns the seconds until then, inf when none is open."""
        if self.current is None:
            return inf
        left = self._began + self._max_age - self._clock.now()
        if left > 0:
            return left
        self.close()
        return inf

    def close(self) -> None:
        """Ends the current segment. A later write begins a new one."""
        try:
            self._end_segment()
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._no_space(error) from error
            raise

    def forget(self) -> None:
        """In a forked child: lets go of the parent's segment, which the parent goes on with."""
        if self._pid != os.getpid():
            if self._file is not None:
                os.close(self._file)
            self._file, self._pid, self._number = None, os.getpid(), 0

    def _current_segment(self, needed: int) -> int:
        if self._pid != os.getpid():
            self.forget()
        if self._file is not None and (
            self._size + needed > self._max_bytes or self._clock.now() - self._began >= self._max_age
        ):
            self._end_segment()
        if self._file is None:
            self._file = self._begin_segment()
        return self._file

    def _begin_segment(self) -> int:
        while True:
            self._number += 1
            stamp = datetime.fromtimestamp(self._clock.utc(), UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            self._path = self.directory / f"{self._prefix}-{stamp}-{self._pid}-{self._number:06d}.jsonl"
            # The name is taken where another container shares the directory and, by chance, the process id.
            with contextlib.suppress(FileExistsError):
                file = os.open(self._path, _NEW_FILE, 0o600)
                with contextlib.suppress(OSError):  # a file system without locks: nobody can take one there
                    fcntl.flock(file, fcntl.LOCK_SH)
                self._size = 0
                self._began = self._clock.now()
                return file

    def _end_segment(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if self._fsync != "never":
                os.fsync(file)
        finally:
            # Said aloud: a forked child may hold the same open file, and closing ours would leave it locked.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def _fitting(self, lines: Sequence[bytes]) -> tuple[int, bytes]:
        room = self._max_bytes - self._size
        count = 0
        for line in lines:
            room -= len(line) + 1
            if room < 0 and count:
                break
            count += 1
        return count, b"\n".join(lines[:count]) + b"\n"

    def _append(self, file: int, data: bytes) -> int:
        """Writes `data` and returns its size, or that of the whole lines when it fails after some."""
        done = 0
        view = memoryview(data)
        try:
            while done < len(data):
                done += os.write(file, view[done:])
        except OSError:
            whole = data.rfind(b"\n", 0, done) + 1
            if whole < done:
                try:
                    os.ftruncate(file, self._size + whole)
                except OSError:
                    # Then the cut line is the last of its segment, where readers expect one.
                    self._end_segment()
            if not whole:
                raise
            done = whole
        self._size += done
        return done

    def _no_space(self, error: OSError) -> NoSpace:
        return NoSpace(
            f"{self._path}: {_NO_SPACE[error.errno or 0]}; what was recorded before is kept: make room, "
            f"or record to another directory"
        )


def is_finished(segment: Path) -> bool:
    """Whether nobody writes the segment any more. An empty one counts as being written: its writer may be about to."""
    try:
        with segment.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(file.fileno()).st_size > 0
    except OSError:
        return False


@dataclass(kw_only=True, slots=True)
class ReadReport:
    """What a reader met besides events; filled while `read_events` is iterated."""

    segments: int = 0
    events: int = 0
    unknown: int = 0
    """Lines of a kind that this version does not know."""
    malformed: int = 0
    """Lines that are no event at all, or break the schema of their kind."""
    duplicates: int = 0
    """Lines whose event was met before: delivered twice, and left out."""
    truncated: int = 0
    """Last lines that a crash, or a writer still at work, left unfinished."""
    problems: list[str] = field(default_factory=list)
    """The first few problems, as `file:line: reason`."""

    def _note(self, problem: str) -> None:
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(problem)


def read_events(
    path: str | os.PathLike[str],
    *,
    report: ReadReport | None = None,
    registry: EventRegistry = EVENTS,
    dead_letters: DeadLetterFile | None = None,
) -> Iterator[Event]:
    """The events in a directory, compacted ones first and then the segments in order, or in one segment file.

    Segments of several processes follow one another; sort by `at_utc_seconds` where that matters. With a
    `report`, lines that are not events are counted in it and skipped; without one, the first raises
    BrokenDocument. A last line cut by a crash is never an error, and an event that was delivered twice (the same
    `event_id`) is read once. Raises InvalidInput when there is no such path.

    Compacted files need the extra `warehouse`. A compaction that deletes a file before it is read raises
    InvalidInput: read again.

    registry: the kinds that count as events. dead_letters: takes what is none; with it, nothing is raised.
    """
    root = Path(path)
    if not root.exists():
        raise InvalidInput(f"{root}: no such file or directory, so there are no events to read")
    if not root.is_dir():
        return _read([root], report, registry, dead_letters)
    catalogue = read_catalogue(root)
    segments = [path for path in sorted(root.glob("*.jsonl")) if path.name not in catalogue.consumed]
    return _read([*(root / name for name in catalogue.files), *segments], report, registry, dead_letters)


def _read(
    paths: Sequence[Path],
    report: ReadReport | None,
    registry: EventRegistry,
    dead_letters: DeadLetterFile | None,
) -> Iterator[Event]:
    strict = report is None and dead_letters is None
    report = report or ReadReport()
    seen = SeenEvents()
    for path in paths:
        report.segments += 1
        try:
            for event, identity, problem in _parsed(path, registry, report, dead_letters):
                if problem is not None:
                    report._note(str(problem))
                    if strict:
                        raise problem
                elif not seen.add(identity):
                    report.duplicates += 1
                elif event is not None:
                    report.events += 1
                    yield event
        except FileNotFoundError as error:
            raise InvalidInput(
                f"{path}: deleted while it was to be read, by a compaction: read again"
            ) from error


def _parsed(
    path: Path, registry: EventRegistry, report: ReadReport, dead_letters: DeadLetterFile | None
) -> Iterator[tuple[Event | None, str, BrokenDocument | None]]:
    """Each event with its id; or, in place of one, what is wrong with the line."""
    if path.suffix == ".parquet":
        yield from _compacted(path, registry, report)
        return
    for number, line in segment_lines(path):
        try:
            event = registry.decode(line)
        except BrokenDocument as error:
            if is_cut(line):
                report.truncated += 1
                continue
            _count(error, report)
            if dead_letters is not None:
                dead_letters.put(line.rstrip(b"\n"), reason=str(error), source=f"{path}:{number}")
            problem = type(error)(f"{path}:{number}: {error}")
            problem.__cause__ = error
            yield None, "", problem
        else:
            yield event, event_id(line), None


def _compacted(
    path: Path, registry: EventRegistry, report: ReadReport
) -> Iterator[tuple[Event | None, str, BrokenDocument | None]]:
    # Imported here: only who has compacted needs the extra.
    from fairlead.telemetry.parquet import parquet_events

    if not path.exists():
        raise FileNotFoundError(path)
    try:
        for event, identity in parquet_events(path, registry):
            yield event, identity, None
    except BrokenDocument as error:  # the whole file, or the rest of it
        _count(error, report)
        problem = type(error)(f"{path}: {error}" if isinstance(error, UnknownEvent) else str(error))
        problem.__cause__ = error
        yield None, "", problem


def _count(error: BrokenDocument, report: ReadReport) -> None:
    if isinstance(error, UnknownEvent):
        report.unknown += 1
    else:
        report.malformed += 1


def segment_lines(segment: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends; of an overlong one only its beginning, to bound the memory."""
    with segment.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            yield number, line
            while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(_LONGEST_LINE)


def is_cut(line: bytes) -> bool:
    """Whether a crash, or a writer still at work, left this line that is no event without its end."""
    return not line.endswith(b"\n") and len(line) < _LONGEST_LINE
