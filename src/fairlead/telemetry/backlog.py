"""What one process has put on disk and not yet handed on: a queue of lines made of segments.

    DIRECTORY/lock      locked (flock) by the process whose backlog this is; free once that process is gone
    DIRECTORY/*.jsonl   segments, oldest first by their number; one that is handed on is deleted
    DIRECTORY/cursor    how far the oldest one is handed on: its number and an offset

The cursor moves after the lines were taken, so a process that dies in between hands the last batch on twice:
at least once, and `event_id` makes it once. A line that a crash cut short has no end: it is skipped when its
segment is finished, and counted. A cursor that cannot be read means the beginning.

Order is that of the segments' numbers, never of their stamps: the wall clock may have been set back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from fairlead.telemetry.jsonl import is_finished

__all__ = ["Backlog", "abandoned"]

_LOCK, _CURSOR = "lock", "cursor"
_CHUNK = 2**20
_LONGEST_LINE = 16 * 2**20
_OPEN = os.O_RDWR | os.O_CLOEXEC


class Backlog:
    """The lines in one directory, from the first that was not handed on. Used by one thread, but for `size`."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self.truncated = 0
        """Lines without an end that were skipped."""
        self._lock: int | None = lock
        self._cursor = os.open(directory / _CURSOR, _OPEN | os.O_CREAT, 0o600)
        self._number, self._offset = self._stored_cursor()
        self._file: int | None = None
        self._path = directory
        self._ends: list[int] = []

    @classmethod
    def created(cls, parent: Path, stamp: str) -> Backlog:
        """A new one, in a directory of its own below `parent`."""
        while True:
            directory = parent / f"{stamp}-{os.getpid()}-{secrets.token_hex(4)}"
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
                os.close(os.open(directory / _LOCK, _OPEN | os.O_CREAT | os.O_EXCL, 0o600))
                if (lock := _locked(directory)) is not None:
                    return cls(directory, lock)

    def size(self) -> int:
        """Bytes of its segments, handed on or not, until they are deleted. From any thread."""
        total = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_size if entry.name.endswith(".jsonl") else 0
        return total

    def read(self, most: int) -> list[bytes]:
        """The next lines without their ends, at most `most`; the same again until `advance`. [] when there is none."""
        while self._file is not None or self._open_next():
            assert self._file is not None  # noqa: S101  # what the condition above says
            # Asked before the reading: whoever has ended the segment by now has written all of it.
            finished = is_finished(self._path)
            data = os.pread(self._file, _CHUNK, self._offset)
            if len(data) == _CHUNK and b"\n" not in data:
                data = os.pread(self._file, _LONGEST_LINE, self._offset)
            *lines, rest = data.split(b"\n", most)[: most + 1]
            if lines:
                self._ends = []
                end = self._offset
                for line in lines:
                    end += len(line) + 1
                    self._ends.append(end)
                return lines
            if not finished and len(rest) < _LONGEST_LINE:
                return []
            self.truncated += bool(rest)
            self._drop_segment()
        return []

    def advance(self, count: int) -> None:
        """Marks the first `count` of the lines just read as handed on."""
        self._offset = self._ends[count - 1]
        self._ends = []
        os.pwrite(self._cursor, b"%020d %020d\n" % (self._number, self._offset), 0)

    def is_empty(self) -> bool:
        """Whether no segment is left, which can be so only when each was finished and handed on."""
        return not self._segments()

    def close(self) -> None:
        """Lets go of it; removes it when it is empty."""
        if self._lock is None:
            return
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._cursor)
        if self.is_empty():
            for name in (_CURSOR, _LOCK):
                with contextlib.suppress(FileNotFoundError):
                    (self.directory / name).unlink()
            with contextlib.suppress(OSError):
                self.directory.rmdir()
        lock, self._lock = self._lock, None
        os.close(lock)

    def forget(self) -> None:
        """In a forked child: closes what it inherited, so that the backlog is free once its owner is gone."""
        if self._lock is not None:
            for file in (self._lock, self._cursor, self._file):
                if file is not None:
                    os.close(file)
            self._lock = self._file = None

    def _segments(self) -> list[tuple[int, Path]]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.directory.glob("*.jsonl"):
                number = path.stem.rpartition("-")[2]
                if number.isdecimal():
                    found.append((int(number), path))
        return sorted(found)

    def _open_next(self) -> bool:
        for number, path in self._segments():
            if number < self._number:  # it was handed on; a crash came before it was deleted
                path.unlink(missing_ok=True)
                continue
            if number > self._number:
                self._number, self._offset = number, 0
            self._path = path
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return True
        return False

    def _drop_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._path.unlink(missing_ok=True)

    def _stored_cursor(self) -> tuple[int, int]:
        words = os.pread(self._cursor, 64, 0).split()
        if len(words) == 2 and all(len(word) == 20 and word.isdigit() for word in words):
            return int(words[0]), int(words[1])
        return 0, 0


def abandoned(parent: Path, known: set[Path], most: int) -> list[Backlog]:
    """Backlogs below `parent`, other than those `known`, whose processes are gone; now owned by the caller."""
    found: list[Backlog] = []
    for directory in sorted(path for path in parent.iterdir() if path not in known and path.is_dir()):
        if len(found) >= most:
            break
        if (lock := _locked(directory)) is not None:
            try:
                found.append(Backlog(directory, lock))
            except OSError:  # somebody else's files: left to somebody else
                os.close(lock)
    return found


def _locked(directory: Path) -> int | None:
    """The lock of a backlog, taken; None when another has it or the directory is none."""
    path = directory / _LOCK
    try:
        lock = os.open(path, _OPEN)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have emptied and removed it while we waited at its door.
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    os.close(lock)
    return None
