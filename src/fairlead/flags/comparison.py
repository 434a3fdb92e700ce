"""How two values compare, where JsonLogic follows JavaScript into surprises and we do not.

A missing attribute satisfies no comparison (in JavaScript null < 18 holds, and every anonymous user is a minor), and a
number equals a string only where the string spells it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

__all__ = ["COMPARISONS", "loosely_equal", "spells_number", "strictly_equal", "truthy"]

_NUMBER = re.compile(r"[+-]?(\d{1,32}\.?\d{0,32}|\.\d{1,32})([eE][+-]?\d{1,3})?", re.ASCII)


def truthy(value: object) -> bool:
    """JsonLogic's truth: false, null, 0, "" and [] are false; "0" and {} are true."""
    return bool(value) or isinstance(value, Mapping)


def spells_number(text: str) -> bool:
    """Whether a string takes part in comparisons of numbers."""
    return _NUMBER.fullmatch(text.strip()) is not None


def _number(value: object) -> float | int | None:
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and spells_number(value):
        return float(value)
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


COMPARISONS: Final[Mapping[str, Callable[[object, object], bool]]] = {
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
