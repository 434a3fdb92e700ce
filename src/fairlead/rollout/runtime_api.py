"""One HAProxy process, asked over its Runtime API (`stats socket … level admin`).

A map is replaced as a whole, by a version of its own: `prepare map` gives the number, `add map @N` fills it unseen,
`commit map @N` shows it in one step. HAProxy refuses to commit a number that is not above the one it serves: so whoever
prepared earlier and commits later (a controller that was stopped in between) is refused by the proxy itself, without
a lock. Every exchange is a connection of its own, bounded in time and size.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from fairlead.errors import InvalidInput, TrafficUnavailable

__all__ = ["Entries", "RuntimeApi", "word_of"]

Entries = list[tuple[str, str]]
"""Key and value, as they stand in a map; a key may stand there twice."""

_LARGEST = 1_048_576
_PREPARED = re.compile(rb"\s*New version created: (\d+)\s*")
_ENTRY = re.compile(rb"0x[0-9a-f]+ (\S+) ?(.*)")
_WORD = re.compile(r"[A-Za-z0-9_.:/@,+=%~-]{1,512}", re.ASCII)
"""What may stand in a command: nothing that ends it (newline, ;), splits it (space) or escapes (backslash)."""


class RuntimeApi:
    """The map of one process. All methods raise TrafficUnavailable, naming the socket."""

    def __init__(self, address: str, map_name: str, *, timeout: float) -> None:
        """address: a socket's path, or host:port. map_name: how the process's configuration names the map's file."""
        word_of("the name of the map", map_name)
        if not isinstance(address, str) or not address.isprintable():
            raise InvalidInput(f"socket {address!r:.200}: write the path of a stats socket, or host:port")
        host, _, port = address.rpartition(":")
        self._tcp = None if "/" in address else (host.strip("[]"), port)
        if self._tcp is not None and not (host and port.isdecimal() and 0 < int(port[:6]) < 65_536):
            raise InvalidInput(f"socket {address!r:.200}: write a path with a slash, or host:port")
        self.address = address
        self._map = map_name
        self._timeout = timeout

    async def prepare(self) -> tuple[int, Entries]:
        """The number of a new version, and the entries that are served now, read after it was given."""
        answer = await self._ask(f"prepare map {self._map};show map {self._map}")
        head = _PREPARED.match(answer)
        if head is None:
            raise self._refused(answer)
        return int(head[1]), self._entries(answer[head.end() :])

    async def fill(self, version: int, entries: Mapping[str, str]) -> None:
        """Puts the entries into a version that nobody is served yet, and sees that they are there."""
        adds = (f"add map @{version} {self._map} {key} {word_of(key, text)}" for key, text in entries.items())
        answer = await self._ask(";".join(adds))
        if answer.strip():
            raise self._refused(answer)
        found = self._entries(await self._ask(f"show map @{version} {self._map}"))
        if sorted(found) != sorted(entries.items()):
            raise TrafficUnavailable(f"{self.address}: took {found}, not {dict(entries)}; look at its log")

    async def commit(self, version: int) -> Entries | None:
        """Serves the version; the entries that are served after it. None: another one has been committed meanwhile."""
        answer = await self._ask(f"commit map @{version} {self._map}")
        if b"out of range" in answer:
            return None
        if answer.strip():
            raise self._refused(answer)
        return await self.entries()

    async def entries(self) -> Entries:
        """What is served now."""
        return self._entries(await self._ask(f"show map {self._map}"))

    def _entries(self, answer: bytes) -> Entries:
        found = []
        for line in filter(None, answer.splitlines()):
            entry = _ENTRY.fullmatch(line)
            if entry is None:
                raise self._refused(answer)
            found.append((entry[1].decode(errors="replace"), entry[2].decode(errors="replace")))
        return found

    def _refused(self, answer: bytes) -> TrafficUnavailable:
        words = " ".join(answer[:1000].decode(errors="replace").split())
        said = "".join(each if each.isprintable() else "?" for each in words)[:200]
        if "Unknown map" in said:
            said = f"it knows no map {self._map}; name it as its configuration does"
        elif "ermission denied" in said:
            said = "its socket is not of level admin; write `stats socket … level admin`"
        return TrafficUnavailable(f"{self.address}: {said or 'it gave no answer'}")

    async def _ask(self, line: str) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(line.encode() + b"\n")
        except TimeoutError as error:
            raise TrafficUnavailable(
                f"{self.address}: no answer within {self._timeout:g} s; it hangs"
            ) from error
        except OSError as error:
            raise TrafficUnavailable(f"{self.address}: {error.strerror or error}; is it running?") from error

    async def _exchange(self, line: bytes) -> bytes:
        if self._tcp is None:
            reader, writer = await asyncio.open_unix_connection(self.address)
        else:
            reader, writer = await asyncio.open_connection(*self._tcp)
        try:
            writer.write(line)
            answer = bytearray()
            while data := await reader.read(65_536):
                answer += data
                if len(answer) > _LARGEST:
                    raise TrafficUnavailable(
                        f"{self.address}: its answer exceeds {_LARGEST} bytes; give the rollout a map of its own"
                    )
            return bytes(answer)
        finally:
            writer.transport.abort()


def word_of(what: str, text: str) -> str:
    """`text`, if it can stand in a command and in a line of a map. Raises InvalidInput."""
    if not isinstance(text, str) or not _WORD.fullmatch(text):
        raise InvalidInput(
            f"{what} is {text!r:.100}, which HAProxy's Runtime API would not read as one word; "
            "use letters, digits and _ . : / @ , + = % ~ -"
        )
    return text
