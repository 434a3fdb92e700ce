"""Durations as people write them in files: "250ms", "90s", "10m", "24h", "7d"; one parser for all of them."""

from __future__ import annotations

import re

from fairlead.errors import InvalidInput

__all__ = ["parse_duration"]

_DURATION = re.compile(r"(?P<number>\d{1,9}(\.\d{1,3})?)(?P<unit>ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds, 0 or more. Raises InvalidInput.

    >>> parse_duration("10m"), parse_duration("1.5h"), parse_duration("250ms")
    (600.0, 5400.0, 0.25)
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidInput(
            f"duration {str(text)[:40]!r}: write a number and one of ms, s, m, h, d, such as 10m"
        )
    return float(match["number"]) * _SECONDS[match["unit"]]
