"""In which fields two answers differ, so that one changed clock does not hide one changed price.

Bytes that differ say nothing: a timestamp, the order of a set, the last digit of a score make every answer different.
Here two answers are walked side by side and each difference is named by its field, with indices of lists left out
(`body.items[].score`) and keys that are data, not names, as well (`body.scores{}`). So the same difference has one name
in every answer, and a name holds nobody's id.

The walk is bounded in depth and in nodes, whatever is handed in, and pauses as it goes: it runs on the loop that serves
requests. It is reflexive, and symmetric in which fields differ.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import msgspec

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput

__all__ = ["Differences", "FieldDiff", "RawJson", "Tolerance"]

_NODES_A_STEP = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII)
_ROOT = "answer"
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Missing:
    """Stands for a field that the other answer has."""

    def __repr__(self) -> str:
        return "missing"


MISSING: Final = _Missing()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far two numbers may lie apart and still count as one."""

    relative: float = 0.0
    """Of the larger one, 0–1."""
    absolute: float = 0.0
    """In the number's own unit, 0 or more."""

    def __post_init__(self) -> None:
        check_number("Tolerance.relative", self.relative, low=0.0, high=1.0)
        check_number("Tolerance.absolute", self.absolute, low=0.0)


@dataclass(frozen=True, slots=True)
class RawJson:
    """JSON that is decoded only if its bytes differ from the other answer's."""

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """What a walk found."""

    fields: Mapping[str, tuple[object, object]]
    """For each field that differs, the first two values that did, control's first."""
    cut: bool = False
    """Whether a bound ended the walk, so that there may be more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldDiff:
    """What counts as a difference. Fields are named as in reports; one that no answer has is no mistake.

    >>> diff = FieldDiff(tolerances={"items[].score": Tolerance(absolute=0.01)}, ignored=("*.at",))
    >>> was = {"items": [{"id": 1, "score": 0.5}], "at": "9:00"}
    >>> sorted(diff.differences(was, {"items": [{"id": 2, "score": 0.501}], "at": "9:01"}).fields)
    ['items[].id']
    """

    ignored: tuple[str, ...] = ()
    """Fields that are not looked at, with all that lies in them; `*.at` for every field named at, at any depth."""
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    """How far the numbers of a field may lie apart."""
    unordered: Mapping[str, str] = field(default_factory=dict)
    """Lists whose order says nothing, each with the name of the field by which its elements are told apart; empty for
    elements that are plain values."""
    maps: tuple[str, ...] = ()
    """Objects whose keys are data although they look like names. Keys that do not (ids, addresses, dates) need not be
    told: a name is a letter or _, then letters, digits, _ or -, 64 characters at most."""
    depth: int = 32
    """Levels that are walked, 1 to 200."""
    nodes: int = 5_000
    """Values that are compared in one pair of answers, 1 to 1,000,000. 5,000: some 5 ms of work, in pauses."""

    def __post_init__(self) -> None:
        for name in ("ignored", "maps"):
            if isinstance(getattr(self, name), str):
                raise InvalidInput(
                    f"FieldDiff.{name}: {getattr(self, name)!r} is one string; pass a tuple of them"
                )
        for path, tolerance in self.tolerances.items():
            if not isinstance(tolerance, Tolerance):
                raise InvalidInput(
                    f"FieldDiff.tolerances: {path!r} has {tolerance!r:.60}; pass Tolerance(absolute=…)"
                )
        check_whole("FieldDiff.depth", self.depth, low=1, high=200)
        check_whole("FieldDiff.nodes", self.nodes, low=1, high=1_000_000)

    def differences(self, control: object, other: object) -> Differences:
        """The fields in which two answers differ: JSON-like values, structs, data classes. Blocks until it is done.

        Raises InvalidInput for values that cannot be compared.
        """
        steps = self.steps(control, other)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                found: Differences = done.value
                return found

    def steps(self, control: object, other: object) -> Generator[None, None, Differences]:
        """The same in steps of about 0.2 ms; returns the Differences.

        To decode two JSON texts is one step (64 KiB each: some 3 ms), to match an unordered list another.
        """
        return _Walk(self).run(control, other)


_Child = tuple[str, object, object]


class _Walk:
    def __init__(self, rules: FieldDiff) -> None:
        self._rules = rules
        self._ignored = frozenset(rules.ignored)
        self._ignored_names = frozenset(path[2:] for path in rules.ignored if path.startswith("*."))
        self._maps = frozenset(rules.maps)
        self._found: dict[str, tuple[object, object]] = {}

    def run(self, control: object, other: object) -> Generator[None, None, Differences]:
        # The innermost last: each is taken up again where it was left, so that one long list is no long step either.
        levels: list[Iterator[_Child]] = [iter([("", control, other)])]
        pairs = 0
        try:
            while levels:
                child = next(levels[-1], None)
                if child is None:
                    levels.pop()
                    continue
                pairs += 1
                if pairs > self._rules.nodes + 1:  # the answers themselves are no field
                    return Differences(fields=self._found, cut=True)
                if not pairs % _NODES_A_STEP:
                    yield
                children = self._compare(*child)
                if children is not None:
                    if len(levels) > self._rules.depth:
                        return Differences(fields=self._found, cut=True)
                    levels.append(children)
        except InvalidInput:
            raise
        except Exception as error:  # an __eq__ of others: an array's, or one that raises
            raise InvalidInput(f"answers cannot be compared: {type(error).__name__}: {error}") from error
        return Differences(fields=self._found)

    def _compare(self, path: str, a: object, b: object) -> Iterator[_Child] | None:
        """Notes a difference, or returns what lies in the two and is still to be compared."""
        if a is b or path in self._ignored:
            return None
        if isinstance(a, RawJson) and isinstance(b, RawJson):
            if a.data == b.data:
                return None
            a, b = _decoded(a.data, b.data)
        mapping_a, mapping_b = _as_mapping(a), _as_mapping(b)
        if mapping_a is not None and mapping_b is not None:
            return self._mappings(path, mapping_a, mapping_b)
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return self._lists(path, a, b)
        if isinstance(a, set | frozenset) and isinstance(b, set | frozenset):
            if a != b:
                self._differ(f"{path}[]", a, b)
        elif not self._same(path, a, b):
            self._differ(path, a, b)
        return None

    def _mappings(
        self, path: str, a: Mapping[object, object], b: Mapping[object, object]
    ) -> Iterator[_Child]:
        data = path in self._maps
        for key in chain(a, (key for key in b if key not in a)):
            named = not data and isinstance(key, str) and _NAME.fullmatch(key) is not None
            child = (f"{path}.{key}" if path else str(key)) if named else f"{path}{{}}"
            if not (named and key in self._ignored_names):
                yield child, a.get(key, MISSING), b.get(key, MISSING)

    def _lists(
        self, path: str, a: list[object] | tuple[object, ...], b: list[object] | tuple[object, ...]
    ) -> Iterator[_Child]:
        child = f"{path}[]"
        if path in self._rules.unordered and len(a) + len(b) <= self._rules.nodes:
            name = self._rules.unordered[path]
            by_id, others = _by_identity(a, name), _by_identity(b, name)
            for key in chain(by_id, (key for key in others if key not in by_id)):
                yield child, by_id.get(key, MISSING), others.get(key, MISSING)
            return
        for first, second in zip(a, b, strict=False):
            yield child, first, second
        if len(a) < len(b):
            yield child, MISSING, b[len(a)]
        elif len(b) < len(a):
            yield child, a[len(b)], MISSING

    def _differ(self, path: str, a: object, b: object) -> None:
        path = path or _ROOT
        if path not in self._ignored:
            self._found.setdefault(path, (a, b))

    def _same(self, path: str, a: object, b: object) -> bool:
        if isinstance(a, int | float) and isinstance(b, int | float):
            # True is no 1: a flag that became a number is a difference.
            if isinstance(a, bool) or isinstance(b, bool):
                return a is b
            if a == b or (a != a and b != b):
                return True
            tolerance = self._rules.tolerances.get(path)
            try:
                return tolerance is not None and math.isclose(
                    a, b, rel_tol=tolerance.relative, abs_tol=tolerance.absolute
                )
            except OverflowError:  # an integer that no float can hold
                return False
        return type(a) is type(b) and bool(a == b)


def _decoded(a: bytes, b: bytes) -> tuple[object, object]:
    """What both texts hold; the texts themselves, if one holds no JSON."""
    for decode in (msgspec.json.decode, _as_python_writes_it):
        try:
            return decode(a), decode(b)
        except _UNREADABLE:
            pass
    return a, b


def _as_python_writes_it(data: bytes) -> object:
    # With NaN, and 1e400. In UTF-8 alone: json would guess another encoding, and a new byte order mark is a difference.
    return json.loads(data.decode())


def _as_mapping(value: object) -> Mapping[object, object] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, RawJson):
            return None
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return None


def _by_identity(elements: list[object] | tuple[object, ...], name: str) -> dict[object, object]:
    """Elements by what tells them apart, and by their number among those that it does not tell apart."""
    found: dict[object, object] = {}
    seen: dict[bytes, int] = {}
    for element in elements:
        holder = _as_mapping(element)
        said = element if not name else holder.get(name, MISSING) if holder is not None else MISSING
        try:
            identity = b"-" if said is MISSING else msgspec.json.encode(said, order="deterministic")
        except (TypeError, msgspec.MsgspecError, RecursionError) as error:
            raise InvalidInput(f"an element of an unordered list has no identity in JSON: {error}") from error
        number = seen[identity] = seen.get(identity, 0) + 1
        found[identity, number] = element
    return found
