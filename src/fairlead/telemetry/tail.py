"""Follows the folder of a sink while services write into it: each event once, soon after it is on the disk.

Whole lines only; a line that is still being written is read when it is whole. Segments are rotated, compacted to
Parquet and deleted meanwhile, perhaps before their last lines were read here. So a Parquet file that is new is read as
well, and of its events those whose ids were not met before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.catalogue import Catalogue, read_catalogue
from fairlead.telemetry.event import Event
from fairlead.telemetry.identity import SeenEvents, event_id
from fairlead.telemetry.schema import EVENTS, EventRegistry, UnknownEvent

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
        self._compacted: set[str] = set()
        self._began = False
        self._seen = SeenEvents()
        self.malformed = 0
        """Lines that were no events."""

    def read(self) -> Iterator[Event]:
        """Events that were not read before, those of each process in their order. None twice.

        Raises InvalidInput when the directory, or a file of it, cannot be read; after the events of all others, and
        what is missing is read by a later call.
        """
        problems: list[InvalidInput] = []
        if not self._began:
            self._began = True
            yield from self._new_parquet(problems, are_known=False)
        for name in self._segments():
            yield from self._grown(name, problems)
        # Behind the segments: what a compaction has taken before its last lines were read here is found now.
        yield from self._new_parquet(problems, are_known=True)
        if problems:
            raise problems[0]

    def _segments(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith(".jsonl"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InvalidInput(f"{self._directory}: cannot be read ({error.strerror})") from error
        # Forgotten with their files: names are never given twice.
        self._offsets = {name: self._offsets[name] for name in names if name in self._offsets}
        consumed = self._catalogue().consumed
        return [name for name in names if name in self._offsets or name not in consumed]

    def _catalogue(self) -> Catalogue:
        try:
            return read_catalogue(self._directory)
        except OSError as error:
            raise InvalidInput(f"{self._directory}: cannot be read ({error.strerror})") from error

    def _new_parquet(self, problems: list[InvalidInput], *, are_known: bool) -> Iterator[Event]:
        """are_known: events without an id, as others write them, were read from their segments."""
        broken: set[str] = set()
        while names := [
            name for name in self._catalogue().files if name not in self._compacted and name not in broken
        ]:
            # Imported here: only who has compacted needs the extra.
            from fairlead.telemetry.parquet import parquet_events

            for name in names:
                path = self._directory / name
                try:
                    for event, identity in parquet_events(path, self._registry):
                        if self._seen.add(identity) if identity else not are_known:
                            yield event
                except UnknownEvent:
                    self.malformed += 1
                except BrokenDocument as error:
                    if path.exists():  # else merged into a newer one, which the catalogue names by now
                        broken.add(name)
                        problems.append(error)
                        continue
                self._compacted.add(name)

    def _grown(self, name: str, problems: list[InvalidInput]) -> Iterator[Event]:
        offset = self._offsets.setdefault(name, 0)
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
        except OSError as error:
            problems.append(InvalidInput(f"{self._directory / name}: cannot be read ({error.strerror})"))

    def _events(self, block: bytes) -> Iterator[Event]:
        for line in block.split(b"\n")[:-1] if block.endswith(b"\n") else [block]:
            try:
                event = self._registry.decode(line)
            except BrokenDocument:
                self.malformed += 1
                continue
            if self._seen.add(event_id(line)):
                yield event
