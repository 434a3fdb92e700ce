"""Replaces a file in one step: whoever reads it sees the old content or the new, also after a power cut.

Written beside it, flushed, renamed over it, and the folder flushed. A process that is killed in between leaves the old
file, and one beside it that nobody reads.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

__all__ = ["replace_file", "sync_directory"]


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
    sync_directory(target.parent)


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


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: without it, one may be back at the old file after a power cut."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
