"""Prints the calibration table: `python scripts/calibration_reference.py > docs/reference/calibration.md`.

Runs every scenario of tests/calibration with 20,000 experiments on all cores (about ten minutes on two), and ends with
status 1 if one does not keep its promise. `--experiments N` runs others.
"""

from __future__ import annotations

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.calibration.row import Row
from tests.calibration.scenarios import SCENARIOS, measured

HEAD = """# Calibration

What every estimator of `fairlead.statistics` promises, and what it did in up to {experiments:,} simulated experiments
of each kind (`runs`; fewer where each is looked at thousands of times). Made by
`python scripts/calibration_reference.py`; `make soak` runs the same and fails where a promise is broken. Seeds are
fixed, so the numbers are the same on every machine.

The interval is an exact binomial one of 99.9 %. A row is kept when the promise, give or take its tolerance, lies
within the interval. Tolerances say how far theory lets a method be off: none for exact methods, which may only be
conservative (≤, ≥); half a percentage point where an approximation is known to be good; more where data are rare,
few or strongly skewed.

| estimator | data | quantity | promise | tolerance | runs | measured | interval | seed | |
|---|---|---|--:|--:|--:|--:|--:|--:|---|
"""
SIGNS = {"both": "", "at most": "≤ ", "at least": "≥ "}


def main() -> int:
    """Prints the page; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=20_000)
    experiments = parser.parse_args().experiments
    print(HEAD.format(experiments=experiments), end="")
    broken = 0
    with ProcessPoolExecutor() as pool:
        for row in pool.map(measured, range(len(SCENARIOS)), [experiments] * len(SCENARIOS)):
            print(line(row), flush=True)
            broken += not row.ok
    return 1 if broken else 0


def line(row: Row) -> str:
    """One row of the table."""
    cells = (
        row.estimator,
        row.data,
        row.quantity,
        f"{SIGNS[row.side]}{row.nominal:.1%}",
        f"{row.tolerance:.1%}",
        f"{row.experiments:,}",
        f"{row.measured:.2%}",
        f"{row.low:.2%}–{row.high:.2%}",
        str(row.seed),
        "kept" if row.ok else "**broken**",
    )
    return "| " + re.sub(r"(?<=\d)%", " %", " | ".join(cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
