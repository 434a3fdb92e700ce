"""A live figure, or why there is none.

Counters that are scraped know neither users nor how variants were assigned, so they serve absolute limits ("errors
above 0.5 % for ten minutes") and never a comparison of arms. What matters most for a limit is to tell "fine" from
"nobody knows", so every reading is a value or a reason:

    no_data       nothing was counted in the window, or the series does not exist
    stale         there is data, but the newest is older than it may be
    query_error   the server refused, did not answer in time, or answered something else

A reading is never NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fairlead.errors import InvalidInput

__all__ = ["Reading"]

Reason = Literal["no_data", "stale", "query_error"]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A live figure, or why there is none."""

    value: float | None
    """Finite; None where `reason` says why."""
    reason: Reason | None = None
    detail: str = ""
    """What happened, for a person."""
    n: float | None = None
    """Events behind it in the window, where they are counted."""
    query: str = ""
    """What was asked, word by word."""
    window_seconds: float = 0.0
    at_utc_seconds: float = 0.0
    """When it was asked, by this machine's clock."""


def selector(name: str, where: Mapping[str, str] | None) -> str:
    """A selector of PromQL. Raises InvalidInput for a name or label that is none."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(f"series {str(name)[:80]!r} is no name of a Prometheus metric")
    pairs = []
    for label, value in sorted((where or {}).items()):
        if not _LABEL.fullmatch(label) or not isinstance(value, str) or len(value) > 1000:
            raise InvalidInput(f"series {name}: label {str(label)[:60]!r} is no label with a text")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{label}="{escaped}"')
    return f"{name}{{{','.join(pairs)}}}" if pairs else name
