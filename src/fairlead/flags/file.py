"""The flag file: read whole and bounded, or refused in one line.

The reader assumes a writer that replaces the file atomically (write beside it, fsync, rename, fsync the folder), as
`replace_file` does. A writer that edits in place may show half a document; it does not parse, so the last good one
stays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from fairlead.errors import BrokenDocument
from fairlead.flags.flag import MAX_BYTES, one_line

__all__ = ["read_flag_file", "replace_file"]


def read_flag_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file, at most one more than the limit. Blocks on the disk.

    Raises BrokenDocument for a file that is missing, unreadable, or no regular file.
    """
    name = one_line(str(Path(path)))
    try:
        # Non-blocking, so that a named pipe in the file's place cannot hang the start of a service.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BrokenDocument(f"{name}: not a regular file; name a flag file in JSON")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BrokenDocument(
            f"{name}: cannot be read ({error.strerror}); create it or correct the path"
        ) from error
    except ValueError as error:  # a NUL in the path
        raise BrokenDocument(f"{name}: no usable path ({error}); correct it") from error


def replace_file(path: str | os.PathLike[str], data: bytes, *, mode: int | None = None) -> None:
    """Has `data` in the file, in one step that a power cut cannot halve. Blocks on the disk. Raises OSError.

    A link stays one: what it points to is replaced. mode: of the file; None: as it had, or 0644 for a new one.
    """
    target = Path(os.path.realpath(path))
    # A name of its own for each writer: two that share one would mix their documents.
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _take_over(descriptor, target, mode)
            os.fsync(descriptor)
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # without it, the name may be back at the old file after a power cut
    finally:
        os.close(folder)


def _take_over(descriptor: int, target: Path, mode: int | None) -> None:
    """Gives the new file the mode asked for, or what other readers of the old one rely on."""
    if mode is not None:
        os.fchmod(descriptor, mode)
        return
    try:
        had = os.stat(target)
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    os.fchmod(descriptor, stat.S_IMODE(had.st_mode))
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, had.st_uid, had.st_gid)
