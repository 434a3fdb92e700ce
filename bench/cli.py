"""How long a person waits for the command line, and a service for an import.

Fresh processes with compiled modules, in turn with a bare interpreter, whose start-up is not ours to change.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from bench.harness import Bar, interleave

__all__ = ["bars"]

_ARMS = {
    "python": "pass",
    "import": "import fairlead.cache",
    "help": "import sys; from fairlead.cli import main; sys.exit(main(['--help']))",
}


def _process(code: str) -> Callable[[int], object]:
    # An installed package is compiled once; a shell that forbids it would have every process compile anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(n: int) -> None:
        for _ in range(n):
            subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment, check=True
            )

    return run


def bars(quick: bool) -> list[Bar]:
    """Medians of whole processes, in milliseconds, start-up of the interpreter included."""
    rounds = 5 if quick else 21
    timings = interleave({name: _process(code) for name, code in _ARMS.items()}, n=1, rounds=rounds)
    bare = timings["python"].median * 1000
    limits = {"help": ("fairlead --help", 250.0), "import": ("import fairlead.cache", 100.0)}
    return [
        Bar(
            what=what,
            value=timings[name].median * 1000,
            limit=limit,
            unit="ms",
            n=rounds,
            spread=(timings[name].spread[0] * 1000, timings[name].spread[1] * 1000),
            note=f"a bare interpreter takes {bare:.0f} ms of it",
            figures={"process_ms": timings[name].median * 1000, "bare_interpreter_ms": bare},
        )
        for name, (what, limit) in limits.items()
    ]
