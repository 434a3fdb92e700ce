"""Where a command writes what it was told to write: whole, or not at all.

A Prometheus reloads its rules while they are written, and half a file is no rules. So a file is replaced in one step;
what is no file (a pipe, /dev/stdout) is written to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fairlead.errors import InvalidInput

__all__ = ["write_output"]


def write_output(path: Path, text: str, *, option: str = "--out") -> None:
    """Writes the text in UTF-8; a reader sees the old file or the new one. Raises InvalidInput naming the option,
    NoSpace."""
    from fairlead.trial.result import write_atomically

    data = text.encode()
    try:
        before = _mode(path)
        # /dev/stdout may be a regular file, to which others append.
        if before is None or (stat.S_ISREG(before) and path.absolute().parts[1] not in ("dev", "proc")):
            target = Path(os.path.realpath(path))  # a link goes on to lead where it led
            write_atomically(target, data, option=option)
            if before is not None:
                os.chmod(target, stat.S_IMODE(before))
            return
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
            file.write(data)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; choose another {option}") from error


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
