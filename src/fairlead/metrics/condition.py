"""Which events count: a condition that a person reads and every source computes alike.

"Successful requests" means one thing in SQL and another in Python as soon as a field is missing. So a condition
is parsed once into a small tree, and each source walks that tree; a missing field makes a comparison unknown,
not false, in all of them, and an event counts only where the whole is true (SQL's three values).

    ending == "ok" and latency_seconds < 1.0
    country in ("AT", "DE") or not (version is None)
    degraded                                          a field that holds true or false
    1 <= attempts < 5

Python's own grammar, of which nothing but the above is accepted; parsed, never evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.errors import InvalidInput

__all__ = ["All", "Comparison", "Condition", "Either", "Membership", "Missing", "Negation", "parse_condition"]

MAX_LENGTH = 500
MAX_DEPTH = 12
MAX_CHOICES = 100

_ASSIGNS = re.compile(r"(?<![=!<>])=(?!=)")

Value = str | int | float | bool
Operator = Literal["==", "!=", "<", "<=", ">", ">="]

_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_COMPUTE: dict[Operator, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field beside a value: ``latency_seconds < 1.0``."""

    field: str
    operator: Operator
    value: Value

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """True, false, or None where the field is missing or not comparable with the value."""
        found = event.get(self.field)
        if not _is_comparable(found, self.value):
            return None
        return bool(_COMPUTE[self.operator](found, self.value))


@dataclass(frozen=True, slots=True)
class Membership:
    """A field beside several values: ``country in ("AT", "DE")``."""

    field: str
    values: tuple[Value, ...]

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """True, false, or None where the field is missing or not comparable with the values."""
        found = event.get(self.field)
        if not _is_comparable(found, self.values[0]):
            return None
        return found in self.values


@dataclass(frozen=True, slots=True)
class Missing:
    """A field that is not there: ``version is None``; never unknown."""

    field: str

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """True where the field is missing or null."""
        return event.get(self.field) is None


@dataclass(frozen=True, slots=True)
class Negation:
    """What is not so; unknown stays unknown."""

    part: Condition

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """The other of true and false, or None."""
        found = self.part.holds(event)
        return None if found is None else not found


@dataclass(frozen=True, slots=True)
class All:
    """Every part: ``a and b``."""

    parts: tuple[Condition, ...]

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """False where one part is false, else None where one is unknown, else true."""
        found = [part.holds(event) for part in self.parts]
        return False if False in found else None if None in found else True


@dataclass(frozen=True, slots=True)
class Either:
    """At least one part: ``a or b``."""

    parts: tuple[Condition, ...]

    def holds(self, event: Mapping[str, object]) -> bool | None:
        """True where one part is true, else None where one is unknown, else false."""
        found = [part.holds(event) for part in self.parts]
        return True if True in found else None if None in found else False


Condition = Comparison | Membership | Missing | Negation | All | Either
"""A parsed condition. `holds(event)` is true, false, or None for unknown; an event counts where it is true."""


def _is_comparable(found: object, value: Value) -> bool:
    """Whether both are texts, or both numbers; a list, a table or a NaN is neither."""
    if isinstance(found, str) or isinstance(value, str):
        return isinstance(found, str) and isinstance(value, str)
    return isinstance(found, int | float) and found == found


def parse_condition(text: str) -> Condition:
    """The condition that `text` says. Raises InvalidInput naming the part that is none.

    >>> parse_condition('ending == "ok" and latency_seconds < 1.0').holds({"ending": "ok", "latency_seconds": 0.2})
    True
    >>> parse_condition("not degraded").holds({}) is None   # unknown: not counted
    True
    """
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_LENGTH:
        raise InvalidInput(f"condition {str(text)[:60]!r}: write 1 to {MAX_LENGTH} characters")
    return _read(parse_expression(text, "condition"), text, MAX_DEPTH)


def parse_expression(text: str, what: str) -> ast.expr:
    """Python's tree of one expression; nothing of it is run. Raises InvalidInput."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", SyntaxWarning
            )  # of a text like `1in x`; what we refuse, we say ourselves
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = str(error.msg if isinstance(error, SyntaxError) else error).split("\n")[0]
        hint = "; write == to compare" if _ASSIGNS.search(text) else ""
        raise InvalidInput(f"{what} {text[:80]!r} cannot be read: {why}{hint}") from error


def source_of(node: ast.expr) -> str:
    """The part as it was written, for a message; cut where it is long, or nested too deep to be printed."""
    try:
        return ast.unparse(node)[:60]
    except RecursionError:
        return "a part that is nested too deep"


def _read(node: ast.expr, text: str, depth: int) -> Condition:
    if depth == 0:
        raise InvalidInput(f"condition {text[:80]!r} is nested more than {MAX_DEPTH} deep; split the metric")
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return All(tuple(_read(part, text, depth - 1) for part in parts))
        case ast.BoolOp(op=ast.Or(), values=parts):
            return Either(tuple(_read(part, text, depth - 1) for part in parts))
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return Negation(_read(part, text, depth - 1))
        case ast.Name(id=field):
            return Comparison(field, "==", True)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = [left, *rights]
            found = [_compare(a, op, b, text) for a, op, b in zip(sides, ops, sides[1:], strict=False)]
            return found[0] if len(found) == 1 else All(tuple(found))
    raise _refused(node, text)


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Condition:
    match left, op, right:
        case ast.Name(id=field), ast.Is() | ast.IsNot(), ast.Constant(value=None):
            return Missing(field) if isinstance(op, ast.Is) else Negation(Missing(field))
        case ast.Name(id=field), ast.In() | ast.NotIn(), ast.Tuple(elts=items) | ast.List(elts=items):
            if not 0 < len(items) <= MAX_CHOICES:
                raise InvalidInput(f"condition {text[:80]!r}: give 1 to {MAX_CHOICES} values after in")
            values = tuple(_value(item, text) for item in items)
            if len({isinstance(value, str) for value in values}) > 1:
                raise InvalidInput(
                    f"condition {text[:80]!r}: text and numbers stand in one list; a column holds one kind"
                )
            choices = Membership(field, values)
            return choices if isinstance(op, ast.In) else Negation(choices)
        case ast.Name(id=field), _, _ if type(op) in _OPERATORS:
            return Comparison(field, _OPERATORS[type(op)], _value(right, text))
        case _, _, ast.Name(id=field) if type(op) in _OPERATORS:
            turned: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
            name = _OPERATORS[type(op)]
            return Comparison(field, turned.get(name, name), _value(left, text))
    raise _refused(left, text)


def _value(node: ast.expr, text: str) -> Value:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(inner, ast.Constant):
        value = inner.value
        if isinstance(value, str | bool) and not negative:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and value != math.inf:
            # Compared before it is a float: an integer of 400 digits is none.
            if not abs(value) < 2**63:
                raise InvalidInput(f"condition {text[:80]!r}: a number of it is beyond what a column holds")
            return -value if negative else value
    raise _refused(node, text)


def _refused(node: ast.expr, text: str) -> InvalidInput:
    part = source_of(node)
    return InvalidInput(
        f"condition {text[:80]!r}: {part!r} is no comparison of a field with a value; "
        'write such as ending == "ok" and latency_seconds < 1.0'
    )
