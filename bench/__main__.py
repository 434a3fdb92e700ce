"""`python -m bench [ROOM …] [--quick] [--json FILE] [--strict]` measures the bars."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.harness import Bar
from fairlead.trial.machine import this_machine

ROOMS = (
    "cache",
    "redis",
    "hot_keys",
    "calls",
    "dependencies",
    "transports",
    "admission",
    "telemetry",
    "event_sinks",
    "flags",
    "inference",
    "lab",
    "cli",
    "home_feed",
    "remote_config",
    "warehouse",
    "ledger",
    "slo",
    "rollout",
    "rollout_traffic",
    "flag_delivery",
    "shadow",
)
"""In the order of the table; a room without a module is named on stderr and left out."""

SCHEMA = "fairlead.bench/1"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures the bars beside their peers."
    )
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"which rooms (all: {' '.join(ROOMS)})")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, wider spreads")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the figures; - for stdout instead of the table"
    )
    parser.add_argument("--strict", action="store_true", help="end in 3 when a bar is missed")
    chosen = parser.parse_args(arguments)
    if unknown := [room for room in chosen.rooms if room not in ROOMS]:
        parser.error(f"no room {unknown[0]!r}: {', '.join(ROOMS)}")

    measured: list[tuple[str, Bar]] = []
    for room in chosen.rooms or ROOMS:
        if importlib.util.find_spec(f"bench.{room}") is None:
            print(f"{room}: has no bars yet", file=sys.stderr)
            continue
        print(f"measuring {room} …", file=sys.stderr, flush=True)
        bars: Callable[[bool], list[Bar]] = importlib.import_module(f"bench.{room}").bars
        measured += [(room, bar) for bar in bars(chosen.quick)]

    here = machine()
    if chosen.json is None or str(chosen.json) != "-":
        print(table(measured))
        print("\n" + " · ".join(f"{name} {value}" for name, value in here.items()))
    if chosen.json is not None:
        text = document(measured, here, quick=chosen.quick)
        if str(chosen.json) == "-":
            print(text)
        else:
            chosen.json.parent.mkdir(parents=True, exist_ok=True)
            chosen.json.write_text(text + "\n", encoding="utf-8")
    return 3 if chosen.strict and not all(bar.met for _, bar in measured) else 0


def machine() -> dict[str, str]:
    """What the figures depend on, apart from the code."""
    here = this_machine()
    return {
        "cpu": here.cpu,
        "cores": f"{here.cores:g}",
        "python": here.python,
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": _commit(),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def table(measured: Sequence[tuple[str, Bar]]) -> str:
    """Aligned columns; the note of a bar stands under it."""
    head = ("room", "what", "value", "limit", "", "n", "quartiles")
    rows = [
        (
            room,
            bar.what,
            quantity(bar.value, bar.unit),
            ("≤ " if bar.at_most else "≥ ") + quantity(bar.limit, bar.unit),
            "met" if bar.met else "MISSED",
            str(bar.n),
            " – ".join(quantity(edge, bar.unit) for edge in bar.spread) if bar.spread else "",
        )
        for room, bar in measured
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    right = {2, 3, 5}
    lines = []
    for row, bar in zip([head, *rows], [None, *(bar for _, bar in measured)], strict=True):
        cells = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if bar is not None and bar.note:
            lines.append(" " * (widths[0] + 2) + bar.note)
    return "\n".join(lines)


def quantity(value: float, unit: str) -> str:
    """Three significant digits, and never an exponent: 0.251 µs, 14.2 ×, 1,000 loads."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    if size >= 1 and "." in text and value == int(value):
        text = text.partition(".")[0]
    return f"{text} {unit}".rstrip()


def document(measured: Sequence[tuple[str, Bar]], here: dict[str, str], *, quick: bool) -> str:
    """The same figures as JSON, with the raw ones behind them."""
    bars = [
        {"room": room, "met": bar.met, **asdict(bar), "figures": dict(bar.figures)} for room, bar in measured
    ]
    return json.dumps(
        {"schema": SCHEMA, "quick": quick, "machine": here, "bars": bars}, indent=2, ensure_ascii=False
    )


if __name__ == "__main__":
    sys.exit(main())
