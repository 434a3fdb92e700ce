"""The command line: one file per command, imported when that command runs.

`fairlead --help` is what people wait for most often, so it may import the parser and nothing else: each
command's help line is written in `program.COMMANDS`, and a test holds it equal to the command's docstring.

A command writes data to stdout and everything else to stderr, returns an `ExitCode` or None, and raises a
`FairleadError` for what it cannot do. `main` alone turns errors and signals into one line and an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `arguments` default to those of the process."""
    from fairlead.cli.outcome import report

    return report(_run, sys.argv[1:] if arguments is None else list(arguments))


def _run(arguments: Sequence[str]) -> object:
    # The parser is an extra; whoever installed the bare library gets one line that says so.
    if find_spec("typer") is None:
        from fairlead.errors import MissingExtra

        raise MissingExtra("typer", "cli")
    from fairlead.cli.program import run

    return run(arguments)
