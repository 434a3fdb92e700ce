"""JsonLogic conditions, compiled once into closures.

Interpreting a rule walks its tree on each request. Here the tree is walked when the document is read; a
request calls a closure, and everything that can be known before (constants, sets, the bytes of a salt) is.

Where JsonLogic follows JavaScript into surprises, we do not: a missing attribute satisfies no comparison
(in JavaScript null < 18 holds, and every anonymous user is a minor), and a number equals a string only
where the string spells it.
"""

from __future__ import annotations

import itertools
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from fairlead.errors import InvalidInput
from fairlead.flags.bucketing import ALGORITHM, SLOTS, salt_prefix, slot_of
from fairlead.flags.flag import Place, closest, quoted
from fairlead.flags.semantic_version import OPERATORS as VERSION_OPERATORS
from fairlead.flags.semantic_version import parse_version

__all__ = ["EvaluationContext"]

TARGETING_KEY: Final = "targetingKey"

_NOT_YET: Final = ("fractional",)
_NUMBER = re.compile(r"[+-]?(\d{1,32}\.?\d{0,32}|\.\d{1,32})([eE][+-]?\d{1,3})?", re.ASCII)


class EvaluationContext(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking: what targeting may look at. Made once per request and used for all its flags."""

    targeting_key: str = ""
    """Stable id of the unit of randomisation; empty when unknown, and then no bucket is drawn."""
    attributes: Mapping[str, object] = {}
    """What `var` reads, by name; `var` "targetingKey" reads the key."""


Read = Callable[[EvaluationContext], object]
Test = Callable[[EvaluationContext], bool]


def truthy(value: object) -> bool:
    """JsonLogic's truth: false, null, 0, "" and [] are false; "0" and {} are true."""
    return bool(value) or isinstance(value, Mapping)


def _number(value: object) -> float | int | None:
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(text := value.strip()):
        return float(text)
    return None


def strictly_equal(a: object, b: object) -> bool:
    """`===`: same type and value; 1 and 1.0 are one number, 1 and true are not equal."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    return type(a) is type(b) and a == b


def loosely_equal(a: object, b: object) -> bool:
    """`==`: as `===`, and "1", 1 and true are equal too; null equals only null."""
    if strictly_equal(a, b):
        return True
    if isinstance(a, str) and isinstance(b, str):
        return False
    left = _number(a)
    return left is not None and left == _number(b)


def _ordering(compare: Callable[[Any, Any], bool]) -> Callable[[object, object], bool]:
    def holds(a: object, b: object) -> bool:
        if isinstance(a, str) and isinstance(b, str):
            return compare(a, b)
        left, right = _number(a), _number(b)
        return left is not None and right is not None and compare(left, right)

    return holds


def _affix(test: Callable[[str, str], bool]) -> Callable[[object, object], bool]:
    return lambda text, affix: isinstance(text, str) and isinstance(affix, str) and test(text, affix)


def _contains(needle: object, haystack: object) -> bool:
    if isinstance(haystack, str):
        return isinstance(needle, str) and needle in haystack
    if isinstance(haystack, Sequence):
        return any(strictly_equal(needle, item) for item in haystack)
    return False


_BINARY: Final[Mapping[str, Callable[[object, object], bool]]] = {
    "==": loosely_equal,
    "===": strictly_equal,
    "!=": lambda a, b: not loosely_equal(a, b),
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "in": _contains,
    "starts_with": _affix(str.startswith),
    "ends_with": _affix(str.endswith),
}

OPERATORS: Final = ("!", "and", "bucket", "if", "or", "sem_ver", "var", *_BINARY)


def rule_of(node: dict[str, object], place: Place) -> tuple[str, object]:
    """The operator and argument of a rule object; refuses an unknown operator."""
    if len(node) != 1:
        place.refuse(f"a rule has one operator, not {len(node)}; combine them with and, or, if")
    ((name, argument),) = node.items()
    if name in _NOT_YET:
        place.refuse(
            f"operator {quoted(name)} is not supported yet; use one of {', '.join(sorted(OPERATORS))}"
        )
    if name not in OPERATORS:
        place.refuse(f"unknown operator {quoted(name)}{closest(name, OPERATORS)}")
    return name, argument


def arguments(argument: object, place: Place, low: int, high: int | None = None) -> list[object]:
    """The arguments of an operator; one may stand without its list."""
    given = argument if isinstance(argument, list) else [argument]
    if len(given) < low or (high is not None and len(given) > high):
        wanted = f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
        place.refuse(f"takes {wanted} arguments, not {len(given)}; correct the list")
    return given


def compile_value(node: object, place: Place) -> Read:
    """A closure that yields the value of `node`."""
    if isinstance(node, list):
        items = [compile_value(item, place.at(index)) for index, item in enumerate(node)]
        return lambda context: [item(context) for item in items]
    if not isinstance(node, dict):
        return lambda _: node
    name, argument = rule_of(node, place)
    inner = place.at(name)
    if name == "var":
        return _var(argument, inner)
    if name == "bucket":
        return _bucket_value(argument, inner)
    if name == "if":
        return _if(argument, inner)
    if name in ("and", "or"):
        return _and_or(argument, inner, stop_on=name == "or")
    if name == "sem_ver":
        return _sem_ver(argument, inner)
    if name == "!":
        (negated,) = arguments(argument, inner, 1, 1)
        test = compile_test(negated, inner)
        return lambda context: not test(context)
    return _binary(name, argument, inner)


def compile_test(node: object, place: Place) -> Test:
    """A closure that yields the truth of `node`."""
    value = compile_value(node, place)
    if isinstance(node, dict) and next(iter(node)) in (*_BINARY, "!", "sem_ver"):
        return value  # type: ignore[return-value]  # these operators yield a bool already
    return lambda context: truthy(value(context))


def _var(argument: object, place: Place) -> Read:
    given = arguments(argument, place, 1, 2)
    name = given[0]
    fallback = given[1] if len(given) == 2 else None
    if not isinstance(name, str) or not name or isinstance(fallback, dict | list):
        place.refuse(
            'takes the name of an attribute, and a constant for when it is missing; write {"var": "country"}'
        )
    if name.startswith("$flagd"):
        place.refuse(f"{quoted(name)} is not supported; use an attribute of the context")
    if name == TARGETING_KEY:
        return lambda context: context.targeting_key or fallback
    if "." not in name:
        return lambda context: context.attributes.get(name, fallback)
    steps = name.split(".")

    def nested(context: EvaluationContext) -> object:
        # The whole name first: attributes such as "app.version" are common and flat.
        found: object = context.attributes.get(name)
        if found is not None:
            return found
        found = context.attributes
        for step in steps:
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list | tuple) and step.isdecimal() and int(step[:9]) < len(found):
                found = found[int(step[:9])]
            else:
                return fallback
        return found

    return nested


def _if(argument: object, place: Place) -> Read:
    given = arguments(argument, place, 2)
    branches = [
        (compile_test(given[index], place.at(index)), compile_value(given[index + 1], place.at(index + 1)))
        for index in range(0, len(given) - 1, 2)
    ]
    otherwise = compile_value(given[-1], place.at(len(given) - 1)) if len(given) % 2 else None

    def choose(context: EvaluationContext) -> object:
        for test, value in branches:
            if test(context):
                return value(context)
        return otherwise(context) if otherwise is not None else None

    return choose


def _and_or(argument: object, place: Place, *, stop_on: bool) -> Read:
    given = arguments(argument, place, 1)
    values = [compile_value(item, place.at(index)) for index, item in enumerate(given)]

    def run(context: EvaluationContext) -> object:
        value: object = None
        for read in values:
            value = read(context)
            if truthy(value) is stop_on:
                break
        return value

    return run


def _sem_ver(argument: object, place: Place) -> Test:
    given = arguments(argument, place, 3, 3)
    operator_name = given[1]
    if not isinstance(operator_name, str) or operator_name not in VERSION_OPERATORS:
        known = " ".join(VERSION_OPERATORS)
        place.at(1).refuse(f"{quoted(operator_name)} compares no versions; write one of {known}")
    holds = VERSION_OPERATORS[operator_name]
    left, right = (compile_value(given[index], place.at(index)) for index in (0, 2))
    for index in (0, 2):
        constant = given[index]
        if not isinstance(constant, dict) and (
            not isinstance(constant, str) or parse_version(constant) is None
        ):
            place.at(index).refuse(f"{quoted(constant)} is no version; write one such as 1.2.3")

    def compare(context: EvaluationContext) -> bool:
        a, b = left(context), right(context)
        if not isinstance(a, str) or not isinstance(b, str):
            return False
        first, second = parse_version(a), parse_version(b)
        # What is no version satisfies nothing, not even !=: it is not known to be another one.
        return first is not None and second is not None and holds(first, second)

    return compare


def _binary(name: str, argument: object, place: Place) -> Read:
    most = 3 if name in ("<", "<=") else 2  # JsonLogic's "between"
    given = arguments(argument, place, 2, most)
    reads = [compile_value(item, place.at(index)) for index, item in enumerate(given)]
    holds = _BINARY[name]
    left, right = reads[0], reads[1]
    if len(reads) == 3:
        last = reads[2]

        def between(context: EvaluationContext) -> bool:
            middle = right(context)
            return holds(left(context), middle) and holds(middle, last(context))

        return between
    constant = given[1]
    if (
        name in ("==", "===")
        and isinstance(constant, str)
        and (name == "===" or not _NUMBER.fullmatch(constant.strip()))
    ):
        # A string that spells no number equals only itself, so Python's == on two strings says all.
        return lambda context: (value := left(context)).__class__ is str and value == constant
    if name == "in" and isinstance(constant, list) and all(isinstance(item, str) for item in constant):
        members = frozenset(constant)
        return lambda context: (value := left(context)).__class__ is str and value in members
    if not isinstance(constant, dict | list):
        return lambda context: holds(left(context), constant)
    return lambda context: holds(left(context), right(context))


class Slots:
    """The checked argument of `bucket`: who is drawn, by which hash, and which labels own which slots."""

    __slots__ = ("by", "ends", "labels", "prefix", "starts", "unit")

    def __init__(self, argument: object, place: Place) -> None:
        keys = ("by", "salt", "algo", "slots")
        if not isinstance(argument, dict) or set(argument) != set(keys):
            place.refuse(f"takes an object with exactly {', '.join(keys)}; correct its keys")
        if argument["algo"] != ALGORITHM:
            place.at("algo").refuse(
                f"unknown algorithm {quoted(argument['algo'])}; write {quoted(ALGORITHM)}"
            )
        try:
            self.prefix = salt_prefix(argument["salt"])
        except InvalidInput as error:
            place.at("salt").refuse(f"{error}; choose another salt", cause=error)
        by = argument["by"]
        if not isinstance(by, str) or not by:
            place.at("by").refuse(
                f"{quoted(by)} names no attribute; write {quoted(TARGETING_KEY)} or an attribute"
            )
        self.by = by
        self.unit = _var(by, place.at("by"))
        self._read_ranges(argument["slots"], place.at("slots"))

    def _read_ranges(self, slots: object, place: Place) -> None:
        if not isinstance(slots, list) or not slots:
            place.refuse(f'takes a list such as [["on", 0, 500]]; {SLOTS} slots are 100 %')
        ranges: list[tuple[int, int, str, int]] = []
        for index, slot in enumerate(slots):
            here = place.at(index)
            if not isinstance(slot, list) or len(slot) != 3 or not isinstance(slot[0], str) or not slot[0]:
                here.refuse(f'{quoted(slot)} is not ["label", from, to]; write for example ["on", 0, 500]')
            label, start, end = slot
            if type(start) is not int or type(end) is not int or not 0 <= start < end <= SLOTS:
                here.refuse(
                    f"[{quoted(start)}, {quoted(end)}) is no range within 0 to {SLOTS}; use whole from < to"
                )
            ranges.append((start, end, label, index))
        ranges.sort()
        for (_, end, label, index), (start, _, other, later) in itertools.pairwise(ranges):
            if start < end:
                place.at(later).refuse(
                    f"{quoted(other)} overlaps {quoted(label)} of slots[{index}]; give each slot one owner"
                )
        self.starts = [start for start, _, _, _ in ranges]
        self.ends = [end for _, end, _, _ in ranges]
        self.labels = [label for _, _, label, _ in ranges]

    def slot(self, key: str) -> int:
        """The key's slot."""
        return slot_of(self.prefix, key)

    def index(self, key: str) -> int:
        """Which range owns the key's slot, -1 for none."""
        slot = slot_of(self.prefix, key)
        found = bisect_right(self.starts, slot) - 1
        return found if found >= 0 and slot < self.ends[found] else -1

    def key(self, context: EvaluationContext) -> str:
        """What is hashed: a string as it is, a whole number in decimal, "" for anything else."""
        unit = self.unit(context)
        if unit.__class__ is str:
            return unit
        return str(unit) if type(unit) is int else ""


def _bucket_value(argument: object, place: Place) -> Read:
    slots = Slots(argument, place)

    def label(context: EvaluationContext) -> object:
        key = slots.key(context)
        found = slots.index(key) if key else -1
        return slots.labels[found] if found >= 0 else None

    return label
