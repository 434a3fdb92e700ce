"""Replays a recorded or drawn stream of requests through caches of one size and says how many each answered.

A trace is a file of requests in the order in which they came. Two formats are read, either also gzipped:

    NAME.lis   the ARC traces (Megiddo and Modha 2003): START COUNT …, one line stands for COUNT blocks from START on
    NAME.csv   time,key,size in seconds and bytes, size optional, a heading allowed

Files are read as they are replayed, so their length does not matter. Arms take turns, a chunk of requests each in an
order reshuffled every time, so a slow minute of the machine slows all of them.
"""

from __future__ import annotations

import gzip
import itertools
import random
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO

import cachebox
import cachetools
import numpy as np
import theine

from fairlead.cache import Entry, Freshness, MemoryStore
from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput
from fairlead.lab import Zipf

__all__ = ["Replayed", "Request", "drawn", "has_times", "read", "replay"]

_LONGEST_LINE = 4_096
_MOST_BLOCKS = 1_000_000  # of one line: a count beyond it is no count
_CHUNK = 10_000

Arm = Callable[[Hashable, float], bool]
"""Asks for a key at a moment and stores it if it was missing; whether it was there."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace."""

    key: Hashable
    at: float = 0.0
    """Seconds on the trace's own clock; never less than that of the request before."""
    size: int = 1
    """Bytes of the answer."""


def read(path: Path) -> Iterator[Request]:
    """The requests of a trace file. Raises InvalidInput with the line number for a line that is none."""
    name = path.name.removesuffix(".gz")
    if not name.endswith((".lis", ".csv")):
        raise InvalidInput(
            f"{path}: not a trace this can read; it reads .lis (ARC) and .csv (time,key,size), also .gz"
        )
    lines = _arc if name.endswith(".lis") else _csv
    try:
        with _opened(path) as file:
            yield from lines(path, file)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from error


def has_times(path: Path) -> bool:
    """Whether requests of this file come at moments; an ARC trace only says in which order."""
    return not path.name.removesuffix(".gz").endswith(".lis")


def _opened(path: Path) -> IO[str]:
    # utf-8-sig: spreadsheets begin what they export with a byte order mark.
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise InvalidInput(f"{path}:{number}: the line is longer than {_LONGEST_LINE} characters")
        if line.strip():
            yield number, line


def _whole(text: str, highest: int) -> int:
    """The number that `text` is in ASCII digits; −1 if it is none from 0 to `highest`."""
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        return -1
    value = int(text)
    return value if value <= highest else -1


def _arc(path: Path, file: IO[str]) -> Iterator[Request]:
    for number, line in _lines(path, file):
        fields = line.split()
        start = _whole(fields[0], 2**63)
        count = _whole(fields[1], _MOST_BLOCKS) if len(fields) > 1 else -1
        if start < 0 or count < 1:
            raise InvalidInput(
                f"{path}:{number}: {line.strip()[:60]!r} does not begin with a block and a count of blocks"
            )
        for block in range(start, start + count):
            yield Request(block)


def _csv(path: Path, file: IO[str]) -> Iterator[Request]:
    now = 0.0
    for number, line in _lines(path, file):
        fields = line.rstrip("\r\n").split(",")
        try:
            at = float(fields[0])
            size = _whole(fields[2], 2**40) if len(fields) > 2 else 1
            if len(fields) not in (2, 3) or not isfinite(at) or size < 0 or not fields[1]:
                raise ValueError
        except ValueError:
            if number == 1 and fields[0].strip().isidentifier():
                continue  # the heading
            raise InvalidInput(f"{path}:{number}: {line.strip()[:60]!r} is not time,key,size") from None
        now = max(now, at)
        yield Request(fields[1], now, size)


def drawn(count: int, *, keys: int, alpha: float, rate: float, seed: int) -> Iterator[Request]:
    """`count` requests whose keys are drawn by Zipf and whose times are evenly `rate` a second."""
    check_whole("requests", count, low=1, high=10**12)
    check_whole("keys", keys, low=1, high=10**8)
    check_number("alpha", alpha, low=0.0, high=20.0)
    check_number("rate", rate, above=0.0)
    check_whole("seed", seed, low=0, high=2**63)
    rng = np.random.default_rng(seed)
    popularity = Zipf(keys, alpha)
    for start in range(0, count, _CHUNK):
        for index, key in enumerate(popularity.sample(min(_CHUNK, count - start), rng).tolist(), start):
            yield Request(key, index / rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What one cache did with the whole stream."""

    name: str
    entries: int
    """Its bound."""
    requests: int
    hits: int
    seconds: float
    """Spent in it."""

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


def replay(
    requests: Iterable[Request], entries: Sequence[int], *, ttl: float | None = None, seed: int = 1
) -> list[Replayed]:
    """Each cache's count at each size. With a ttl, on the trace's clock, only those caches whose clock can be told."""
    arms = {(name, size): make(size) for size in entries for name, make in _arms(ttl).items()}
    hits = dict.fromkeys(arms, 0)
    seconds = dict.fromkeys(arms, 0.0)
    rng = random.Random(seed)
    count = 0
    source = iter(requests)
    while chunk := list(itertools.islice(source, _CHUNK)):
        count += len(chunk)
        for arm in rng.sample(list(arms), len(arms)):
            asked = arms[arm]
            start = time.perf_counter()
            hits[arm] += sum(asked(request.key, request.at) for request in chunk)
            seconds[arm] += time.perf_counter() - start
    return [
        Replayed(name=name, entries=size, requests=count, hits=hits[name, size], seconds=seconds[name, size])
        for name, size in arms
    ]


def _arms(ttl: float | None) -> dict[str, Callable[[int], Arm]]:
    ours: dict[str, Callable[[int], Arm]] = {
        "fairlead LRU": lambda size: _fairlead(size, "always", ttl),
        "fairlead tiny_lfu": lambda size: _fairlead(size, "tiny_lfu", ttl),
    }
    if ttl is not None:
        return {**ours, "cachetools TTLCache": lambda size: _cachetools_ttl(size, ttl)}
    return {
        **ours,
        "cachetools LRUCache": lambda size: _mapping(cachetools.LRUCache(size)),
        "cachebox LRUCache": lambda size: _mapping(cachebox.LRUCache(size)),
        "theine": _theine,
    }


def _fairlead(size: int, admission: str, ttl: float | None) -> Arm:
    store = MemoryStore(size, admission=admission)  # type: ignore[arg-type]  # one of its two words
    freshness = Freshness(ttl=1.0 if ttl is None else ttl, jitter=0.0)

    def asked(key: Hashable, at: float) -> bool:
        if ttl is None:
            at = 0.0  # nothing ages: the other arms of this table do not either
        entry = store.entries.get(key)
        if entry is not None and at < entry.fresh_until:
            store.touch(key)
            return True
        store.put(key, Entry.keep(None, freshness, began_at=at, now=at, draw=0.0))
        return False

    return asked


def _mapping(store: cachetools.LRUCache[Hashable, int] | cachebox.LRUCache[Hashable, int]) -> Arm:
    def asked(key: Hashable, at: float) -> bool:
        if store.get(key) is not None:
            return True
        store[key] = 1
        return False

    return asked


def _cachetools_ttl(size: int, ttl: float) -> Arm:
    now = 0.0
    store: cachetools.TTLCache[Hashable, int] = cachetools.TTLCache(size, ttl, timer=lambda: now)

    def asked(key: Hashable, at: float) -> bool:
        nonlocal now
        now = at
        if store.get(key) is not None:
            return True
        store[key] = 1
        return False

    return asked


def _theine(size: int) -> Arm:
    store: theine.Cache[Hashable, int] = theine.Cache(size, nolock=True)

    def asked(key: Hashable, at: float) -> bool:
        _, found = store.get(key)
        if not found:
            store.set(key, 1)
        return bool(found)

    return asked
