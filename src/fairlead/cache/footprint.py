"""About how many bytes a value keeps in this process: what a bound in bytes counts when nobody says better.

`sys.getsizeof` knows an object and not what it holds. Here every object that a value holds is counted once,
through containers, structs, dataclasses and plain instances. It is a floor: what is shared with the rest of the
program is counted too, what an extension module keeps out of Python's sight is not, and neither are the slack of
the allocator and whatever lies beyond the first 10,000 objects.
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import msgspec

__all__ = ["footprint"]

_MOST_OBJECTS = 10_000
_LEAVES = (str, bytes, bytearray, int, float, bool, type(None), complex)
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def footprint(value: object) -> int:
    """Bytes of `value` and of what it holds, each object once; at most 10,000 objects are looked at.

    >>> footprint(b"x" * 1000) - footprint(b"")
    1000
    """
    if isinstance(value, _LEAVES):
        return sys.getsizeof(value)
    total = 0
    seen: set[int] = set()
    waiting: list[object] = [value]
    while waiting and len(seen) < _MOST_OBJECTS:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        if not isinstance(each, _LEAVES):
            waiting += _held(each)
    return total


def _held(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name, None) for name in value.__struct_fields__]
    held: list[object] = []
    inside = getattr(value, "__dict__", None)
    if isinstance(inside, dict):
        held.append(inside)
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        held += [getattr(value, name, None) for name in names]
    return held
