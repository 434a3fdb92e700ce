"""Follows the folder of a sink while services write into it: each event once, soon after it is on the disk.

Whole lines only; a line that is still being written is read when it is whole. Segments are rotated, compacted to
Parquet and deleted meanwhile: what was read of a segment is not read again from its Parquet file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.catalogue import read_catalogue
from fairlead.telemetry.event import Event
from fairlead.telemetry.identity import SeenEvents, event_id
from fairlead.telemetry.jsonl import read_events
from fairlead.telemetry.schema import EVENTS, EventRegistry

__all__ = ["EventTail"]

_AT_ONCE = 8 * 2**20
"""Bytes of a segment that are in memory at once."""


class EventTail:
    """The events of a folder, those that are there and those that come. Blocks on the disk; one thread at a time."""

    def __init__(self, directory: str | os.PathLike[str], *, registry: EventRegistry = EVENTS) -> None:
        """directory: of a sink. It need not exist yet. registry: the kinds that count as events."""
        self._directory = Path(directory)
        self._registry = registry
        self._offsets: dict[str, int] = {}
        self._compacted = False
        self._seen = SeenEvents()
        self.malformed = 0
        """Lines that were no events."""

    def read(self) -> Iterator[Event]:
        """Events that were not read before, those of each process in their order. None twice.

        Raises InvalidInput when the directory cannot be read.
        """
        try:
            names = sorted(
                entry.name for entry in os.scandir(self._directory) if entry.name.endswith(".jsonl")
            )
        except FileNotFoundError:
            return
        except OSError as error:
            raise InvalidInput(f"{self._directory}: cannot be read ({error.strerror})") from error
        if not self._compacted:
            # Before the first look: later ones have read the segments that compaction takes.
            self._compacted = True
            for name in read_catalogue(self._directory).files:
                yield from read_events(self._directory / name, registry=self._registry)
        consumed = read_catalogue(self._directory).consumed
        for name in names:
            if name not in self._offsets and name in consumed:
                self._offsets[name] = 2**62
            yield from self._grown(name)

    def _grown(self, name: str) -> Iterator[Event]:
        offset = self._offsets.get(name, 0)
        try:
            with (self._directory / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size <= offset:
                    return
                file.seek(offset)
                while block := file.read(_AT_ONCE):
                    whole = block.rfind(b"\n") + 1
                    if not whole:
                        if len(block) < _AT_ONCE:
                            return
                        whole = len(block)  # a line beyond all bounds; its parts are no events
                    self._offsets[name] = offset = offset + whole
                    yield from self._events(block[:whole])
                    file.seek(offset)
        except FileNotFoundError:
            return  # compacted or retired since the folder was listed

    def _events(self, block: bytes) -> Iterator[Event]:
        for line in block.splitlines():
            try:
                event = self._registry.decode(line)
            except BrokenDocument:
                self.malformed += 1
                continue
            if self._seen.add(event_id(line)):
                yield event
