"""Which event a line is, so that one delivered twice counts once.

Between processes a message arrives at most once or at least once; a broker that restarts between a write and
its receipt makes the sender send again. So every line carries an `event_id`, given once, by the sink's thread:

    SOURCE-NUMBER     source: 16 hexadecimal digits drawn when a sink starts (and after a fork); number: 1, 2, …

The id travels in the line itself, so it survives spools, brokers and files alike. Lines without one (written
by hand, or before there were ids) are always new.

Invariant: a sink gives no id twice, and one source's numbers rise, so what was seen of a source is a few
ranges of numbers and not a set of strings: remembering millions of events takes the memory of the gaps.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections import OrderedDict

import msgspec

from fairlead.telemetry.bounds import check_whole

__all__ = ["Numbering", "SeenEvents", "event_id"]


class Numbering:
    """Gives out the ids of one sink in one process. Used by one thread at a time."""

    __slots__ = ("_number", "_tail")

    def __init__(self) -> None:
        self._number = 0
        self._tail = b',"event_id":"' + secrets.token_hex(8).encode() + b"-"

    def stamp(self, line: bytes) -> bytes:
        """The JSON object `line`, which has a field, with the next id as its last."""
        self._number += 1
        return b'%b%b%d"}' % (line[:-1], self._tail, self._number)


class _Identified(msgspec.Struct):
    event_id: str = ""


_decoder = msgspec.json.Decoder(_Identified)


def event_id(line: bytes) -> str:
    """The id in a line, "" when it has none.

    >>> event_id(b'{"event":"exposure","event_id":"5bd1e995aa21c3f0-7"}')
    '5bd1e995aa21c3f0-7'
    """
    try:
        return _decoder.decode(line).event_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


class SeenEvents:
    """Tells an event that is new from one that was there before, by its id.

    >>> seen = SeenEvents()
    >>> seen.add("5bd1e995aa21c3f0-1"), seen.add("5bd1e995aa21c3f0-2"), seen.add("5bd1e995aa21c3f0-1")
    (True, True, False)
    """

    def __init__(self, *, most_sources: int = 100_000) -> None:
        """most_sources: beyond it the source longest unheard of is forgotten; some 300 bytes each."""
        check_whole("most_sources", most_sources, low=1, high=2**31)
        self._most = most_sources
        self._sources: OrderedDict[str, _Ranges] = OrderedDict()

    def add(self, event_id: str) -> bool:
        """Notes the id; returns whether it is new. "" is always new."""
        if not event_id:
            return True
        source, _, digits = event_id.rpartition("-")
        if source and len(digits) < 19 and digits.isascii() and digits.isdecimal():
            number = int(digits)
            if digits[0] == "0" and digits != "0":
                source, number = event_id, 0
        else:  # somebody else's way of naming events: each is a source of its own
            source, number = event_id, 0
        ranges = self._sources.get(source)
        if ranges is None:
            self._sources[source] = _Ranges(number)
            if len(self._sources) > self._most:
                self._sources.popitem(last=False)
            return True
        self._sources.move_to_end(source)
        return ranges.add(number)


class _Ranges:
    """Whole numbers, as disjoint ranges in ascending order that do not touch."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, number: int) -> None:
        self._firsts = [number]
        self._lasts = [number]

    def add(self, number: int) -> bool:
        firsts, lasts = self._firsts, self._lasts
        if number == lasts[-1] + 1:  # the usual case
            lasts[-1] = number
            return True
        after = bisect_right(firsts, number)
        if after and number <= lasts[after - 1]:
            return False
        joins_before = after > 0 and lasts[after - 1] == number - 1
        joins_after = after < len(firsts) and firsts[after] == number + 1
        if joins_before and joins_after:
            lasts[after - 1] = lasts.pop(after)
            firsts.pop(after)
        elif joins_before:
            lasts[after - 1] = number
        elif joins_after:
            firsts[after] = number
        else:
            firsts.insert(after, number)
            lasts.insert(after, number)
        return True
