"""`python -m bench.guard` fails when something became slower than it was, measured in ratios.

Seconds differ from machine to machine and from minute to minute; how many times a peer takes what we take, in
processor time, does so much less. `ratios.json` keeps those ratios as they were when somebody last looked at them, and
this compares them with a quick run here. One is worse when its median is worse than the one kept by more than
TOLERANCE, and all but a quarter of its rounds are worse, too. A room with a worse one is measured once more, and what
is worse again fails: a neighbour's burst of work seldom lasts for both (docs/decisions/0120).

`--update` measures and keeps. Look at the difference before you commit it: that is the point of the file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from bench.harness import Bar, processor_time

__all__ = ["TOLERANCE", "Worse", "compare"]

KEPT = Path(__file__).with_name("ratios.json")
ROOMS = ("cache", "calls", "telemetry", "flags")
"""Those whose figures are ratios of work in one process; the others wait for servers and timers."""

TOLERANCE = 1.6
"""Times as bad as it was. Below it runs on a busy machine with two cores disagree by themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worse:
    """A ratio that is worse than it was."""

    what: str
    was: float
    now: float

    def __str__(self) -> str:
        return f"{self.what}: was {self.was:.3g} ×, is {self.now:.3g} ×"


def compare(bars: Sequence[Bar], kept: Mapping[str, float]) -> list[Worse]:
    """Which of `bars` are worse than the ratios in `kept`, which are named by what was measured."""
    worse = []
    for bar in bars:
        was = kept.get(bar.what)
        if was is None or not _is_ratio(bar):
            continue
        low, high = bar.spread or (bar.value, bar.value)
        if not isfinite(bar.value):
            is_worse = True
        elif bar.at_most:
            is_worse = bar.value > was * TOLERANCE and low > was
        else:
            is_worse = bar.value < was / TOLERANCE and high < was
        if is_worse:
            worse.append(Worse(what=bar.what, was=was, now=bar.value))
    return worse


def _is_ratio(bar: Bar) -> bool:
    return bar.unit == "×" and bar.spread is not None


def _measure(room: str) -> list[Bar]:
    """The ratios of a room, from a process of its own.

    In one that has measured before, our hit and a dict's take a quarter longer beside the peers' than in a new one, so
    a second look there would lean towards "worse".
    """
    print(f"measuring {room} …", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_ratios, room).result()


def _ratios(room: str) -> list[Bar]:
    with processor_time():
        measured: list[Bar] = importlib.import_module(f"bench.{room}").bars(True)
    return [bar for bar in measured if _is_ratio(bar)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guard", description="Compares ratios with those kept."
    )
    parser.add_argument("--update", action="store_true", help="keep what is measured now")
    update = parser.parse_args(arguments).update
    kept: dict[str, dict[str, float]] = {} if update else json.loads(KEPT.read_text(encoding="utf-8"))
    failed: list[Worse] = []
    compared = 0
    for room in ROOMS:
        bars = _measure(room)
        if update:
            kept[room] = {bar.what: float(f"{bar.value:.3g}") for bar in bars}
            continue
        missing = sorted(set(kept.get(room, {})) - {bar.what for bar in bars})
        if missing:
            print(f"{room}: {missing[0]!r} is kept and no longer measured: run --update", file=sys.stderr)
            return 2
        for bar in bars:
            if bar.what not in kept.get(room, {}):
                print(f"{room}: {bar.what!r} is measured and not kept: run --update", file=sys.stderr)
        compared += len(kept.get(room, {}))
        if suspects := {worse.what for worse in compare(bars, kept.get(room, {}))}:
            again = compare(_measure(room), kept.get(room, {}))
            failed += [worse for worse in again if worse.what in suspects]
    if update:
        KEPT.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    for worse in failed:
        print(f"WORSE  {worse}")
    print(f"{compared} ratios compared with {KEPT.name}, {len(failed)} worse by more than {TOLERANCE:g} ×")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
