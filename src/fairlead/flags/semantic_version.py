"""Versions in the order that people mean: 1.10.0 comes after 1.9.0, and 2.0.0-beta before 2.0.0.

As flagd reads them: a leading v may stand there, and minor and patch may be missing ("1.2" is 1.2.0). Build metadata
says nothing of the order. Source: Semantic Versioning 2.0.0, section 11 (precedence).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

__all__ = ["OPERATORS", "Version", "parse_version"]

Version = tuple[int, int, int, tuple[tuple[int, int, str], ...]]
"""Major, minor, patch, and what of the pre-release is compared. Versions compare as tuples do."""

_IDENTIFIER = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"v?(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z.-]+)?)?)?",
    re.ASCII,
)
_LONGEST = 256
_RELEASE = ((2, 0, ""),)


@lru_cache(maxsize=1024)
def parse_version(text: str) -> Version | None:
    """The version, or None for what is none.

    >>> parse_version("v1.10") > parse_version("1.9.3"), parse_version("2.0.0-rc.1") < parse_version("2")
    (True, True)
    >>> parse_version("1.0.0+build5") == parse_version("1.0.0"), parse_version("01.0.0")
    (True, None)
    """
    match = _VERSION.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    major, minor, patch = (int(part or 0) for part in match.group(1, 2, 3))
    if not match[4]:
        return major, minor, patch, _RELEASE
    # Numbers come before words; fewer identifiers before more, as with tuples.
    before = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in match[4].split("."))
    return major, minor, patch, before


OPERATORS: dict[str, Callable[[Version, Version], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "^": lambda a, b: a[:1] == b[:1],
    "~": lambda a, b: a[:2] == b[:2],
}
"""flagd's: ^ is the same major version, ~ the same major and minor."""
