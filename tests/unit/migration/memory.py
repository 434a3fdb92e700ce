"""A store in memory whose calls a test can hold, fail and kill: what a database is to the code above it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fairlead.migration import Key, Row, Value, next_version

Gate = Callable[[str, str], Awaitable[None]]
"""Called before and after the effect of each call, with its name and "before" or "after"."""


class Rows:
    """What the processes share."""

    def __init__(self) -> None:
        self.rows: dict[Key, Value] = {}
        self.versions: dict[Key, int] = {}
        self.marks: set[Key] = set()
        self.notes: dict[str, str] = {}

    def state(self) -> dict[Key, Value]:
        return dict(self.rows)

    def put(self, key: Key, value: Value | None) -> None:
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value


class MemoryStore:
    """One process's view of shared rows; `gate` decides when a call happens and whether it fails."""

    def __init__(self, shared: Rows | None = None, gate: Gate | None = None) -> None:
        self.shared = shared or Rows()
        self.gate = gate
        self.calls: list[str] = []

    async def _pass(self, name: str, when: str) -> None:
        if when == "before":
            self.calls.append(name)
        if self.gate is not None:
            await self.gate(name, when)
        else:
            await asyncio.sleep(0)

    async def read(self, keys: Sequence[Key]) -> list[Row]:
        await self._pass("read", "before")
        rows = [Row(k, self.shared.rows.get(k), self.shared.versions.get(k, 0)) for k in keys]
        await self._pass("read", "after")
        return rows

    async def write(self, key: Key, value: Value | None, *, parity: int, floor: int = 0) -> int:
        await self._pass("write", "before")
        version = self._number(key, parity, floor)
        self.shared.put(key, value)
        await self._pass("write", "after")
        return version

    async def touch(self, key: Key, *, version: int, parity: int, floor: int = 0) -> None:
        await self._pass("touch", "before")
        if self.shared.versions.get(key, 0) == version:
            self._number(key, parity, floor)
        await self._pass("touch", "after")

    def _number(self, key: Key, parity: int, floor: int) -> int:
        version = next_version(max(self.shared.versions.get(key, 0), floor), parity)
        self.shared.versions[key] = version
        self.shared.marks.add(key)
        return version

    async def apply(self, rows: Sequence[Row], *, spare_marked: bool = False) -> list[int]:
        await self._pass("apply", "before")
        shared = self.shared
        for row in rows:
            known = shared.versions.get(row.key, 0 if row.key in shared.rows else -1)
            if row.version > known and not (spare_marked and row.key in shared.marks):
                shared.versions[row.key] = row.version
                shared.marks.discard(row.key)
                shared.put(row.key, row.value)
        versions = [shared.versions.get(row.key, 0) for row in rows]
        await self._pass("apply", "after")
        return versions

    async def settle(self, versions: Mapping[Key, int]) -> None:
        await self._pass("settle", "before")
        for key, version in versions.items():
            if self.shared.versions.get(key, 0) == version:
                self.shared.marks.discard(key)
        await self._pass("settle", "after")

    async def marked(self, after: Key | None, limit: int) -> list[Key]:
        await self._pass("marked", "before")
        return sorted(k for k in self.shared.marks if after is None or k > after)[:limit]

    async def count_marked(self) -> int:
        await self._pass("count_marked", "before")
        return len(self.shared.marks)

    async def scan(self, after: Key | None, limit: int) -> list[Row]:
        await self._pass("scan", "before")
        keys = sorted(k for k in self.shared.rows if after is None or k > after)[:limit]
        rows = [Row(k, self.shared.rows[k], self.shared.versions.get(k, 0)) for k in keys]
        await self._pass("scan", "after")
        return rows

    async def count(self) -> int:
        await self._pass("count", "before")
        return len(self.shared.rows)

    async def recall(self, name: str) -> str | None:
        await self._pass("recall", "before")
        return self.shared.notes.get(name)

    async def remember(self, name: str, text: str) -> None:
        await self._pass("remember", "before")
        self.shared.notes[name] = text
        await self._pass("remember", "after")

    async def close(self) -> None:
        return
