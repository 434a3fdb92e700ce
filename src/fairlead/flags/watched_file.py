"""A flag file that is watched, and the writer that a watcher can rely on.

Looking is a stat every `every` seconds, a few microseconds of a thread. inotify would be told at once, but not of what
changes on a network file system, behind a link that is turned (as mounted ConfigMaps are), or in a folder that is made
anew: three ways in which flag files change. A fifth of a second is well below the second that a rollback may take.

A file's times have the grain of a kernel's tick, so a second write within it would look like the first: after a change
the file is read at each look until it has been still for two seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from fairlead.calls.bounds import check_number
from fairlead.errors import BrokenDocument, InvalidInput, OlderDocument
from fairlead.flags.delivery import FlagDelivery
from fairlead.flags.delivery_status import SourceKind
from fairlead.flags.document_version import DocumentVersion
from fairlead.flags.file import read_flag_file
from fairlead.flags.flag import FlagDocument, one_line
from fairlead.flags.flag_set import FlagSet
from fairlead.telemetry.file_replacement import replace_file

__all__ = ["FlagFile", "write_flag_file"]

_STILL = 2.0  # seconds; the coarsest times of a file system in use (FAT)
_Signature = tuple[int, int, int, int, int]


class FlagFile:
    """A source for `FlagDelivery`: the file at `path`, looked at every `every` seconds (0.01 to 3600).

    A file that is missing, half written or broken is an error in the status until it is whole; meanwhile the last good
    document answers.
    """

    kind: SourceKind = "file"

    def __init__(self, path: str | os.PathLike[str], *, every: float = 0.2) -> None:
        check_number("FlagFile.every", every, low=0.01, high=3600.0)
        self.place = one_line(str(Path(path)))
        self._path = path
        self._every = every
        self._seen: _Signature | None = None
        self._still_at = 0.0
        self._digest = ""
        self._refused: InvalidInput | None = None

    async def follow(self, delivery: FlagDelivery) -> None:
        self._seen = self._refused = None  # what another delivery was told is not known to this one
        while True:
            # In a thread: a stat of a hung network file system waits as long as that hangs.
            await asyncio.to_thread(self.look, delivery)
            await delivery.clock.sleep(self._every)

    def look(self, delivery: FlagDelivery) -> None:
        """One look, for programs without a loop. Blocks on the disk."""
        try:
            about = os.stat(self._path)
        except (OSError, ValueError):
            self._seen = None
            try:
                data = read_flag_file(self._path)  # it has come between the two, or this says what is wrong
            except BrokenDocument as error:
                delivery.report(error)
                return
        else:
            now = delivery.clock.now()
            found = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            if found != self._seen:
                self._still_at = now + _STILL
            elif now >= self._still_at and self._is_said(delivery):
                self._say(delivery)
                return
            try:
                data = read_flag_file(self._path)
            except BrokenDocument as error:
                self._seen = None
                delivery.report(error)
                return
            self._seen = found
        digest = hashlib.sha256(data).hexdigest()
        if digest == self._digest and self._is_said(delivery):
            self._say(delivery)
        else:
            self._digest = digest
            self._refused = delivery.receive(data, self)

    def _is_said(self, delivery: FlagDelivery) -> bool:
        """Whether the document that was read last was taken in, or refused."""
        return self._refused is not None or self._digest == delivery.flags.digest

    def _say(self, delivery: FlagDelivery) -> None:
        if self._refused is not None:
            delivery.report(self._refused)
        else:
            delivery.confirm(self._digest)


def write_flag_file(path: str | os.PathLike[str], data: bytes) -> FlagDocument:
    """Replaces a flag file by `data` in one step: beside it, flushed, renamed, the folder flushed. Blocks on the disk.

    Raises BrokenDocument for a document that no reader would take, or when it cannot be written, and OlderDocument
    for one below the version that stands there; the old file then stands. Mode and owner stay as they were.
    Two writers at once: the one who renames last wins, whole.
    """
    name = one_line(str(Path(path)))
    document = FlagSet.parse(data, source=name).document
    try:
        standing = FlagSet.parse(read_flag_file(path), source=name).document
    except BrokenDocument:
        pass  # nothing there that anybody could read
    else:
        had, has = DocumentVersion.of(standing), DocumentVersion.of(document)
        if has < had:
            raise OlderDocument(
                f"{name}: {has} is older than {had}, which stands there; count metadata.version up"
            )
    try:
        replace_file(path, data)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BrokenDocument(f"{name}: cannot be written ({why}); the old file stands") from error
    return document
