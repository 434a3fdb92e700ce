"""What could not be taken as an event, kept with the reason.

A pipeline that skips bad lines loses the very events that a new release broke; one that stops at them loses
all the others. Here the line goes aside, with why and where it came from, and the rest goes on. Once the
schema is mended, `read_dead_letters` hands the lines back.

The file only grows, up to a bound: a release that breaks every event must not fill the disk too. What no
longer fits is counted. Several processes may share one file: each letter is one appended write.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.bounds import check_whole

__all__ = ["DeadLetter", "DeadLetterFile", "read_dead_letters"]

_LONGEST_LINE = 2**20
_LONGEST_REASON = 500


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line that was no event."""

    at_utc_seconds: float
    """When it was put aside."""
    source: str
    """Where it came from: a sink's name, or `file:line`."""
    reason: str
    """What is wrong with it."""
    text: str | None = None
    """The line; None when it is not UTF-8."""
    base64: str | None = None
    """The line, where it is not UTF-8."""
    cut_bytes: int = 0
    """Bytes beyond the first mebibyte, which are not kept."""

    @property
    def line(self) -> bytes:
        """The line as it came."""
        return self.text.encode() if self.text is not None else base64.b64decode(self.base64 or "")


class DeadLetterFile:
    """An append-only file of dead letters, mode 0600: they hold whatever the events held.

    `put` never raises: a letter that cannot be written is counted in `lost`. Counters are per process, the
    bound is the file's.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int = 64 * 2**20, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """path: made with its directory when the first letter comes. max_bytes: no letter is added beyond it."""
        check_whole("DeadLetterFile.max_bytes", max_bytes, low=1, high=2**60)
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self.kept = 0
        """Letters written."""
        self.lost = 0
        """Letters not written: the file is at its bound, or the disk refused."""
        self.failure: BaseException | None = None
        """The first reason for a lost letter."""
        _live.add(self)

    def put(self, line: bytes, *, reason: str, source: str) -> None:
        """Puts one line aside. From any thread; waits for the disk."""
        cut = line[:_LONGEST_LINE]
        try:
            text: str | None = cut.decode()
        except UnicodeDecodeError:
            text = None
        letter = msgspec.json.encode(
            DeadLetter(
                at_utc_seconds=self._clock.utc(),
                source=_encodable(source),
                reason=_encodable(reason[:_LONGEST_REASON]),
                text=text,
                base64=None if text is not None else base64.b64encode(cut).decode(),
                cut_bytes=len(line) - len(cut),
            )
        )
        with self._lock:
            try:
                self._append(letter + b"\n")
            except OSError as error:
                self.lost += 1
                self.failure = self.failure or error.with_traceback(None)
            else:
                self.kept += 1

    def _append(self, data: bytes) -> None:
        # Opened for each letter: they are rare, and an open file would have to be owned, closed and forked.
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Held for one write: what a crash or a full disk cut short is taken back, and not another's letter.
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            size = _whole(file)
            if size + len(data) > self._max_bytes:
                raise OSError(
                    errno.EFBIG, f"the file of dead letters has its {self._max_bytes} bytes", str(self.path)
                )
            written = os.write(file, data)
            if written < len(data):
                os.ftruncate(file, size)
                raise OSError(errno.ENOSPC, "a dead letter was cut short by a full disk", str(self.path))
        finally:
            os.close(file)


def _encodable(text: str) -> str:
    """Without lone surrogates, as from a file's name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _whole(file: int) -> int:
    """The size of the file up to its last whole letter; a cut one behind that is taken off."""
    size = end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65_536)
        part = os.pread(file, end - begin, begin)
        if (found := part.rfind(b"\n") + 1) or not begin:
            end = begin + found
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)
    return end


_live: weakref.WeakSet[DeadLetterFile] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that it does not have may hold copies of them."""
    for each in list(_live):
        each._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)


def read_dead_letters(path: str | os.PathLike[str]) -> Iterator[DeadLetter]:
    """The letters of a file, in order. A last one cut by a crash is left out.

    Raises InvalidInput when there is no such file, BrokenDocument for a line that is no dead letter.
    """
    decoder = msgspec.json.Decoder(DeadLetter)
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # closed below; the error belongs to the caller's path
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file, so there are no dead letters to read") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                if line.endswith(b"\n"):
                    raise BrokenDocument(f"{path}:{number}: not a dead letter: {error}") from error
