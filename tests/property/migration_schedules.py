"""Every order in which writers of neighbouring stages, and a reconciliation, can reach the two stores.

Each process is a coroutine that is driven by hand and stops before each call to a store. A schedule says at each point
which process goes on, and whether its call works, fails before its effect, fails after it, or is the last thing that
the process does. `explore` walks through all schedules with at most `faults` faults, depth first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from fairlead.errors import StoreUnavailable
from fairlead.migration import Stage
from fairlead.migration.pair import Pair
from tests.unit.migration.memory import MemoryStore, Rows

KEY = "k"
WORKS, FAILS_BEFORE, FAILS_AFTER, DIES_BEFORE, DIES_AFTER = range(5)


class _Call:
    """Stops the process until it is driven on; then fails if it was told to."""

    def __await__(self) -> Generator[None, str, str]:
        return (yield)


@dataclass
class Write:
    """One write as its caller sees it. An operation that failed or died may still take effect."""

    value: object
    began: float = inf
    acknowledged: float = inf
    died: float = inf


@dataclass
class Read:
    began: float
    value: object


@dataclass
class World:
    """Two stores, and what the processes did with them."""

    old: Rows = field(default_factory=Rows)
    new: Rows = field(default_factory=Rows)
    now: float = 0.0
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pair = Pair("orders", MemoryStore(self.old, _gate), MemoryStore(self.new, _gate))

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        """What would be left if every process died now."""
        return World(
            deepcopy(self.old), deepcopy(self.new), self.now, [replace(each) for each in self.writes]
        )

    def tick(self) -> float:
        self.now += 1
        return self.now

    async def write(self, stage: Stage, value: object) -> None:
        """What `Migration` does with a write in this stage."""
        plan, write = stage.plan, Write(value, self.tick())
        self.writes.append(write)
        first, row = plan.writes[0], None if value is None else {"value": value}
        try:
            version = await self.pair.write(first, KEY, row)
            settled = -1
            if len(plan.writes) == 2:
                try:
                    settled = await self.pair.follow(first, KEY, row, version)
                except StoreUnavailable:
                    if plan.needs_both:
                        raise
            write.acknowledged = self.tick()
            if settled >= 0:
                await self.pair[first].settle({KEY: settled})
        except StoreUnavailable:
            pass
        except GeneratorExit:
            write.died = self.tick()
            raise

    async def read(self, stage: Stage) -> None:
        began = self.tick()
        (row,) = await self.pair[stage.plan.reads].read((KEY,))
        self.reads.append(Read(began, None if row.value is None else row.value["value"]))

    async def reconcile(self) -> None:
        for side, rows in (("new", self.new), ("old", self.old)):
            if KEY in rows.marks:
                with suppress(StoreUnavailable):
                    await self.pair.carry(side, KEY)

    async def copy(self) -> None:
        """One batch of a backfill."""
        with suppress(StoreUnavailable):
            if rows := await self.pair["old"].scan(None, 10):
                await self.pair["new"].apply(rows)

    def finish(self) -> object:
        """Reconciles until nothing is left; the value on which both stores agree."""
        for _ in range(4):
            if not self.old.marks and not self.new.marks:
                break
            drive(self.reconcile())
        assert not self.old.marks, "the old store's marks never go away"
        assert not self.new.marks, "the new store's marks never go away"
        assert self.old.rows == self.new.rows, f"old {self.old.rows}, new {self.new.rows}"
        return self.old.rows.get(KEY, {}).get("value")

    def check(self, final: object, *, crashes_count: bool = True) -> None:
        """Fails if an acknowledged write was lost to one that had ended, or whose process had died, before it began."""
        _check_register(self.writes, final, inf, crashes_count)

    def check_reads(self) -> None:
        for read in self.reads:
            _check_register(self.writes, read.value, read.began, False)


def _check_register(writes: list[Write], value: object, seen: float, crashes_count: bool) -> None:
    source = next((write for write in writes if write.value == value), Write(value, -inf, -inf))
    ended = min(source.acknowledged, source.died if crashes_count else inf)
    for write in writes:
        lost = write is not source and write.acknowledged < seen and ended < write.began
        assert not lost, f"{write.value!r} was acknowledged, began after {value!r} had ended, and lost to it"


Process = Callable[[World], Coroutine[Any, Any, None]]


def explore(
    start: Callable[[], World], processes: list[Process], *, faults: int, switches: int
) -> Iterator[World]:
    """The world at the end of each schedule.

    switches: how often a process that could go on is left for another. Two writers that take turns at each call would
    go on for long; what goes wrong between two processes goes wrong within few switches.
    """
    path: list[list[int]] = []  # choice and number of choices at each point
    while True:
        yield _play(start(), processes, faults, switches, path)
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return
        path[-1][0] += 1


def _play(world: World, processes: list[Process], faults: int, switches: int, path: list[list[int]]) -> World:
    depth = 0

    def choose(options: int) -> int:
        nonlocal depth
        if depth == len(path):
            path.append([0, options])
        depth += 1
        return path[depth - 1][0]

    running = {number: process(world) for number, process in enumerate(processes)}
    started: set[int] = set()
    last = -1
    while running:
        others = [number for number in running if number != last]
        if last not in running:
            number = others[choose(len(others))]
        elif others and switches and (chosen := choose(len(others) + 1)):
            number, switches = others[chosen - 1], switches - 1
        else:
            number = last
        last = number
        coroutine = running[number]
        fault = WORKS
        if number not in started:
            started.add(number)
            send: str | None = None
        else:
            send = ""
            if faults:
                fault = choose(5)
                faults -= fault != WORKS
        try:
            if fault == FAILS_BEFORE:
                coroutine.send("before")
            elif fault == FAILS_AFTER:
                coroutine.send("after")
            elif fault == DIES_BEFORE:
                coroutine.close()
                del running[number]
            elif fault == DIES_AFTER:
                coroutine.send("stop")
                coroutine.close()
                del running[number]
            else:
                coroutine.send(send)
        except StopIteration:
            del running[number]
    return world


async def _gate(name: str, when: str) -> None:
    """Stops before each call; what the driver sends decides what the call does."""
    if when == "before":
        told = await _Call()
        if told == "before":
            raise StoreUnavailable(f"{name} failed")
        _pending.append(told)
    else:
        told = _pending.pop() if _pending else ""
        if told == "after":
            raise StoreUnavailable(f"{name} failed, and nobody knows that it was done")
        if told == "stop":
            await _Call()


_pending: list[str] = []


def drive(coroutine: Coroutine[Any, Any, None]) -> None:
    """To its end, with calls that all work."""
    try:
        coroutine.send(None)
        while True:
            coroutine.send("")
    except StopIteration:
        pass


def neighbours() -> list[tuple[Stage, Stage]]:
    stages = list(Stage)
    return [(one, two) for one, two in itertools.product(stages, stages) if abs(one.number - two.number) <= 1]
