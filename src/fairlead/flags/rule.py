"""JsonLogic conditions, compiled once into closures.

Interpreting a rule walks its tree on each request. Here the tree is walked when the document is read; a
request calls a closure, and everything that can be known before (constants, sets, the bytes of a salt) is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fairlead.flags.attribute import EvaluationContext, Read, arguments, attribute
from fairlead.flags.comparison import COMPARISONS, spells_number, truthy
from fairlead.flags.flag import Place, closest, quoted
from fairlead.flags.semantic_version import OPERATORS as VERSION_OPERATORS
from fairlead.flags.semantic_version import parse_version
from fairlead.flags.slots import Slots

__all__ = ["OPERATORS", "Rules", "rule_of"]

OPERATORS: Final = ("!", "and", "bucket", "if", "or", "sem_ver", "var", "variant_of", *COMPARISONS)

Test = Callable[[EvaluationContext], bool]
VariantOf = Callable[[str], Read]
"""How to read which variant another flag serves; None where it serves the caller's own default."""


def rule_of(node: dict[str, object], place: Place) -> tuple[str, object]:
    """The operator and argument of a rule object; refuses an unknown operator."""
    if len(node) != 1:
        place.refuse(f"a rule has one operator, not {len(node)}; combine them with and, or, if")
    ((name, argument),) = node.items()
    if name == "fractional":
        place.refuse(
            'operator "fractional" draws otherwise in each version of flagd; turn it into "bucket" with '
            "fairlead flags import, which moves nobody"
        )
    if name not in OPERATORS:
        place.refuse(f"unknown operator {quoted(name)}{closest(name, OPERATORS)}")
    return name, argument


class Rules:
    """Compiles the rules of one document."""

    __slots__ = ("_variant_of_flag",)

    def __init__(self, variant_of: VariantOf) -> None:
        self._variant_of_flag = variant_of

    def value(self, node: object, place: Place) -> Read:
        """A closure that yields the value of `node`."""
        if isinstance(node, list):
            items = [self.value(item, place.at(index)) for index, item in enumerate(node)]
            return lambda context: [item(context) for item in items]
        if not isinstance(node, dict):
            return lambda _: node
        name, argument = rule_of(node, place)
        inner = place.at(name)
        if name == "var":
            return attribute(argument, inner)
        if name == "bucket":
            return _label(Slots(argument, inner))
        if name == "variant_of":
            return self._variant_of(argument, inner)
        if name == "if":
            return self._if(argument, inner)
        if name in ("and", "or"):
            return self._and_or(argument, inner, stop_on=name == "or")
        if name == "sem_ver":
            return self._sem_ver(argument, inner)
        if name == "!":
            (negated,) = arguments(argument, inner, 1, 1)
            test = self.test(negated, inner)
            return lambda context: not test(context)
        return self._binary(name, argument, inner)

    def test(self, node: object, place: Place) -> Test:
        """A closure that yields the truth of `node`."""
        value = self.value(node, place)
        if isinstance(node, dict) and next(iter(node)) in (*COMPARISONS, "!", "sem_ver"):
            return value  # type: ignore[return-value]  # these operators yield a bool already
        return lambda context: truthy(value(context))

    def _if(self, argument: object, place: Place) -> Read:
        given = arguments(argument, place, 2)
        branches = [
            (self.test(given[index], place.at(index)), self.value(given[index + 1], place.at(index + 1)))
            for index in range(0, len(given) - 1, 2)
        ]
        otherwise = self.value(given[-1], place.at(len(given) - 1)) if len(given) % 2 else None

        def choose(context: EvaluationContext) -> object:
            for test, value in branches:
                if test(context):
                    return value(context)
            return otherwise(context) if otherwise is not None else None

        return choose

    def _and_or(self, argument: object, place: Place, *, stop_on: bool) -> Read:
        given = arguments(argument, place, 1)
        values = [self.value(item, place.at(index)) for index, item in enumerate(given)]

        def run(context: EvaluationContext) -> object:
            value: object = None
            for read in values:
                value = read(context)
                if truthy(value) is stop_on:
                    break
            return value

        return run

    def _sem_ver(self, argument: object, place: Place) -> Test:
        given = arguments(argument, place, 3, 3)
        operator_name = given[1]
        if not isinstance(operator_name, str) or operator_name not in VERSION_OPERATORS:
            known = " ".join(VERSION_OPERATORS)
            place.at(1).refuse(f"{quoted(operator_name)} compares no versions; write one of {known}")
        holds = VERSION_OPERATORS[operator_name]
        left, right = (self.value(given[index], place.at(index)) for index in (0, 2))
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

    def _binary(self, name: str, argument: object, place: Place) -> Read:
        most = 3 if name in ("<", "<=") else 2  # JsonLogic's "between"
        given = arguments(argument, place, 2, most)
        reads = [self.value(item, place.at(index)) for index, item in enumerate(given)]
        holds = COMPARISONS[name]
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
            and (name == "===" or not spells_number(constant))
        ):
            # A string that spells no number equals only itself, so Python's == on two strings says all.
            return lambda context: (value := left(context)).__class__ is str and value == constant
        if name == "in" and isinstance(constant, list) and all(isinstance(item, str) for item in constant):
            members = frozenset(constant)
            return lambda context: (value := left(context)).__class__ is str and value in members
        if not isinstance(constant, dict | list):
            return lambda context: holds(left(context), constant)
        return lambda context: holds(left(context), right(context))

    def _variant_of(self, argument: object, place: Place) -> Read:
        (name,) = arguments(argument, place, 1, 1)
        if not isinstance(name, str) or not name:
            place.refuse(f'{quoted(name)} names no flag; write {{"variant_of": "checkout"}}')
        return self._variant_of_flag(name)


def _label(slots: Slots) -> Read:
    owners = [owner if isinstance(owner, str) else _label(owner) for owner in slots.owners]

    def label(context: EvaluationContext) -> object:
        slot = slots.slot(context)
        found = slots.index(slot) if slot >= 0 else -1
        if found < 0:
            return None
        owner = owners[found]
        return owner if isinstance(owner, str) else owner(context)

    return label
