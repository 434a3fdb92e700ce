"""Writes an incident into a change file, where a person adds cause, fix and learning.

The table is added at the end: nothing that stands there is touched, and what was promised stays as it was frozen.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.change.parse import parse_change, read_change
from fairlead.errors import InvalidInput
from fairlead.telemetry.file_replacement import replace_file

if TYPE_CHECKING:
    from fairlead.rollout import RolloutPlan, RolloutState

__all__ = ["add_incident", "add_rollback"]

_LONGEST = 1_000


def add_rollback(path: Path, plan: RolloutPlan, final: RolloutState) -> str:
    """Adds the incident that ended this rollout, and returns its sentence. Raises what `add_incident` does."""
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(final.since_utc_seconds))
    what = f"{final.rollout} was rolled back at stage {plan.stages[final.stage].name}: {final.reason}"
    add_incident(path, at=at, what=what)
    return what


def add_incident(path: Path, *, at: str, what: str) -> None:
    """Adds `[[incidents]]` with this moment and sentence. Blocks; whole or not at all.

    Raises InvalidInput, BrokenDocument where the file would no longer be a change file; then nothing was written.
    """
    content = read_change(path)
    lines = [
        "",
        "[[incidents]]",
        f"at = {_quoted(at)}",
        f"what = {_quoted(what)}",
        'cause = ""',
        'fix = ""',
        'learning = ""',
        "",
    ]
    text = content.rstrip(b"\n") + b"\n" + "\n".join(lines).encode()
    try:
        parse_change(text, str(path))
    except InvalidInput as error:
        raise InvalidInput(
            f"{path}: the incident does not fit into it ({error}); write it by hand: {what}"
        ) from error
    replace_file(path, text)


def _quoted(text: str) -> str:
    """A basic string of TOML, on one line: what is hidden in a text from elsewhere becomes a space."""
    return json.dumps(
        "".join(each if each.isprintable() else " " for each in text[:_LONGEST]), ensure_ascii=False
    )
