"""One thing to mend in a change file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Raw", "Severity"]

Severity = Literal["error", "warning"]
Raw = tuple[str, Severity, str, str]
"""Code, severity, path and message: a finding before its line is looked up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to mend."""

    code: str
    """The kind of finding, stable: see the list in `fairlead.change.check`."""
    severity: Severity
    path: str
    """Where in the file: ``metrics.feed_p99.q``."""
    line: int | None
    """Its line, or that of its table; None where neither is in the file."""
    message: str
    """What is wrong, and what to write."""
