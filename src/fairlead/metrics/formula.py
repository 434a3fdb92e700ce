"""A formula of counts, such as published / (attempts − user_cancelled), that every source computes alike.

The names are fields of the metric's event, summed per unit (true counts 1). The formula is applied to the sums,
never to single events: a mean of ratios is another number, in which a user with one attempt weighs as much as
one with a thousand. Its gradient gives the delta method what it needs, so the interval is right too.

A formula must not grow with traffic: twice the users, the same value. So + and − join what grows alike, and the
whole has as much above the line as below. Parsed, never evaluated.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fairlead.errors import InvalidInput, UndefinedRatio
from fairlead.metrics.condition import parse_expression, source_of

__all__ = ["Formula", "parse_formula"]

MAX_LENGTH = 200
MAX_DEPTH = 10
MAX_NAMES = 10

_OPERATORS: dict[type[ast.operator], Literal["+", "-", "*", "/"]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


@dataclass(frozen=True, slots=True)
class _Number:
    value: float


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


@dataclass(frozen=True, slots=True)
class _Step:
    operator: Literal["+", "-", "*", "/"]
    left: _Tree
    right: _Tree


_Tree = _Number | _Name | _Step
_Dual = tuple[float, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula; made by `parse_formula`."""

    text: str
    names: tuple[str, ...]
    """Fields that are summed, in the order in which they appear first."""
    _tree: _Tree

    def at(self, sums: Mapping[str, float] | Callable[[str], float]) -> tuple[float, dict[str, float]]:
        """The value and its gradient by name, at sums or means by name (the value is the same for both).

        Raises UndefinedRatio where something is divided by zero, or the value is beyond what a float holds.

        >>> formula = parse_formula("published / (attempts - cancelled)")
        >>> value, gradient = formula.at({"published": 60.0, "attempts": 100.0, "cancelled": 20.0})
        >>> value, gradient["attempts"]   # 60/80, and −60/80²
        (0.75, -0.009375)
        """
        read = sums.__getitem__ if isinstance(sums, Mapping) else sums
        value, gradient = self._evaluate(self._tree, read)
        found = {name: gradient.get(name, 0.0) for name in self.names}
        if not all(map(math.isfinite, (value, *found.values()))):
            raise UndefinedRatio(
                f"{self.text}: the value is beyond what a float holds; check the fields' units"
            )
        return value, found

    def _evaluate(self, tree: _Tree, read: Callable[[str], float]) -> _Dual:
        if isinstance(tree, _Number):
            return tree.value, {}
        if isinstance(tree, _Name):
            return float(read(tree.name)), {tree.name: 1.0}
        (a, da), (b, db) = self._evaluate(tree.left, read), self._evaluate(tree.right, read)
        if tree.operator in "+-":
            sign = 1.0 if tree.operator == "+" else -1.0
            return a + sign * b, _weighted(da, 1.0, db, sign)
        if tree.operator == "*":
            return a * b, _weighted(da, b, db, a)
        if b == 0:
            raise UndefinedRatio(f"{self.text}: divided by zero, so there is no figure; wait for data")
        return a / b, _weighted(da, 1 / b, db, -a / b / b)


def parse_formula(text: str) -> Formula:
    """The formula that `text` says: names, numbers, + − * / and parentheses. Raises InvalidInput."""
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_LENGTH:
        raise InvalidInput(f"formula {str(text)[:60]!r}: write 1 to {MAX_LENGTH} characters")
    names: dict[str, None] = {}
    tree = _read(parse_expression(text, "formula"), text, MAX_DEPTH, names)
    if not names or len(names) > MAX_NAMES:
        raise InvalidInput(f"formula {text[:80]!r}: name 1 to {MAX_NAMES} fields, it has {len(names)}")
    degree = _degree(tree, text)
    if degree != 0:
        raise InvalidInput(
            f"formula {text[:80]!r} grows with traffic, so two spans or arms of different size cannot be compared; "
            "divide it by a count"
        )
    return Formula(text.strip(), tuple(names), tree)


def _read(node: ast.expr, text: str, depth: int, names: dict[str, None]) -> _Tree:
    if depth == 0:
        raise InvalidInput(f"formula {text[:80]!r} is nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Name(id=name):
            names[name] = None
            return _Name(name)
        case ast.Constant(value=value) if (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**53
        ):
            return _Number(float(value))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _Step(
                _OPERATORS[type(op)],
                _read(left, text, depth - 1, names),
                _read(right, text, depth - 1, names),
            )
    raise InvalidInput(
        f"formula {text[:80]!r}: {source_of(node)!r} is neither a field, a number above 0, nor + - * / of them"
    )


def _degree(tree: _Tree, text: str) -> int:
    """By which power the value grows when every sum is multiplied."""
    if isinstance(tree, _Number):
        return 0
    if isinstance(tree, _Name):
        return 1
    left, right = _degree(tree.left, text), _degree(tree.right, text)
    if tree.operator == "*":
        return left + right
    if tree.operator == "/":
        return left - right
    if left != right:
        raise InvalidInput(
            f"formula {text[:80]!r}: {tree.operator} joins what grows with traffic and what does not; "
            "join counts with counts, ratios with ratios"
        )
    return left


def _weighted(a: dict[str, float], by_a: float, b: dict[str, float], by_b: float) -> dict[str, float]:
    joined = {name: by_a * slope for name, slope in a.items()}
    for name, slope in b.items():
        joined[name] = joined.get(name, 0.0) + by_b * slope
    return joined
