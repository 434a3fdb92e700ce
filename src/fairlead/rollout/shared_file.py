"""A small file that other processes read while a rollout replaces it.

A reader sees the old file or the new one, also after a power cut: written beside, flushed, renamed over the old one,
and the folder flushed. Who replaces it reads, checks and writes under a lock (`FILE.lock`, flock), so that two
controllers cannot interleave; the lock of a process that died is free.

    FILE                the file
    FILE.lock           held from the read to the write; stays, empty
    FILE.NAME.rollback  a spare: what a rollback would write, on the disk before treatment is. Where the disk is full
                        by then, a rename is all that is needed
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fairlead.errors import InvalidInput, NoSpace, TrafficUnavailable
from fairlead.telemetry.file_replacement import sync_directory

__all__ = ["SharedFile"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOOK = 0.005  # seconds between two looks at a lock that another process holds


class SharedFile:
    """One file with its lock and its spare. Everything blocks on the disk. Raises TrafficUnavailable."""

    def __init__(self, path: str | os.PathLike[str], *, spare: str, limit: int) -> None:
        """spare: tells apart the spares of several rollouts that share the file. limit: bytes of the largest file."""
        text = str(Path(path))
        if not text.isprintable():
            raise InvalidInput(f"{text[:200]!r}: a path of a rollout is one printable line; rename it")
        self.path = Path(text)
        self._spare = quote(spare, safe="")[:100]
        self._limit = limit

    def read(self) -> bytes:
        """All of the file."""
        return self._read(self._real())

    def replace(self, data: bytes, *, instead_of: bytes | None) -> None:
        """Writes `data`. instead_of: what was read before; None: whatever is there, or nothing.

        Raises NoSpace where the disk, a quota or a limit stopped it, TrafficUnavailable for anything else and where
        another process has replaced the file meanwhile; then the file is as it was.
        """
        target = self._real()
        new = self._write_beside(target, data)
        try:
            # A process that was stopped while it held the lock may find that a rollback did not wait for it.
            if instead_of is not None and self._read(target) != instead_of:
                raise TrafficUnavailable(
                    f"{self.path}: another process has replaced it meanwhile; read it again"
                )
            self._rename(new, target)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def keep_spare(self, data: bytes) -> None:
        """Has `data` on the disk as the spare. Raises NoSpace, TrafficUnavailable."""
        if self.spare() == data:
            return
        target = self._spare_path()
        self._rename(self._write_beside(target, data), target)

    def spare(self) -> bytes | None:
        """The spare; None where there is none, or none that can be read."""
        try:
            return self._read(self._spare_path())
        except TrafficUnavailable:
            return None

    def use_spare(self) -> None:
        """Renames the spare over the file: no space is needed."""
        self._rename(self._spare_path(), self._real())

    def drop_spare(self) -> None:
        """Removes the spare, if there is one."""
        with contextlib.suppress(OSError):
            self._spare_path().unlink()

    @contextlib.contextmanager
    def locked(self, timeout: float, *, regardless: bool) -> Iterator[None]:
        """Holds the lock, for which it waits `timeout` seconds at most.

        regardless: then goes on without it, as a rollback must when a controller hangs while it holds the lock.
        """
        lock = None
        try:
            end = time.monotonic() + timeout
            while (lock := self.try_lock()) is None and time.monotonic() < end:
                time.sleep(_LOOK)
            if lock is None:
                raise self.held(timeout)
        except TrafficUnavailable:  # held, or its folder is gone or not ours to write in
            if not regardless:
                raise
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def try_lock(self) -> int | None:
        """A descriptor that holds the lock until it is closed; None while another holds it, or it cannot be made."""
        real = self._real()
        try:
            lock = os.open(f"{real}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in _FULL:
                return None
            raise TrafficUnavailable(
                f"{self.path}.lock: {error.strerror}; make its folder writable"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def held(self, timeout: float) -> TrafficUnavailable:
        """What to raise when the lock was not to be had."""
        return TrafficUnavailable(
            f"{self.path}.lock: held by another process for {timeout:g} s, or it cannot be made; see who holds it "
            f"(fuser {self.path}.lock) and try again"
        )

    def _real(self) -> Path:
        # A link (a folder of releases, a mounted volume) stays one: what it points to is replaced.
        return Path(os.path.realpath(self.path))

    def _spare_path(self) -> Path:
        real = self._real()
        return real.with_name(f"{real.name}.{self._spare}.rollback")

    def _read(self, path: Path) -> bytes:
        try:
            # Non-blocking, so that a named pipe in the file's place hangs nobody.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise TrafficUnavailable(f"{self.path}: not a regular file; name one")
                data = file.read(self._limit + 1)
        except OSError as error:
            raise TrafficUnavailable(
                f"{self.path}: cannot be read ({error.strerror}); create it or correct the path"
            ) from error
        if len(data) > self._limit:
            raise TrafficUnavailable(f"{self.path}: larger than {self._limit} bytes; name the right file")
        return data

    def _write_beside(self, target: Path, data: bytes) -> Path:
        new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
        try:
            try:
                with new.open("xb") as file:
                    file.write(data)
                    file.flush()
                    # Other accounts read it as well: it keeps the mode and owner that the file has.
                    with contextlib.suppress(OSError):
                        had = os.stat(self._real())
                        os.fchmod(file.fileno(), stat.S_IMODE(had.st_mode))
                        os.fchown(file.fileno(), had.st_uid, had.st_gid)
                    os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    new.unlink()
                raise
        except OSError as error:
            kind = NoSpace if error.errno in _FULL else TrafficUnavailable
            raise kind(
                f"{self.path}: {error.strerror}; the old file stands: make room or correct it"
            ) from error
        return new

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
            sync_directory(target.parent)
        except OSError as error:
            raise TrafficUnavailable(f"{self.path}: {error.strerror}; correct its folder") from error
