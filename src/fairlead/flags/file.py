"""The flag file: read whole and bounded, or refused in one line.

The reader assumes a writer that replaces the file atomically (write beside it, fsync, rename, fsync the folder), as
`write_flag_file` does. A writer that edits in place may show half a document; it does not parse, so the last good one
stays.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fairlead.errors import BrokenDocument
from fairlead.flags.flag import MAX_BYTES, one_line

__all__ = ["read_flag_file"]


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
