"""Writes the README's picture and table from the result of a run: scripts/readme_figures.py runs/<id>/result.json

No figure in the README is typed by hand. The picture goes to docs/images/home_feed_p99.svg, the table between the two
`figures` marks of README.md, with the command, machine, date and commit it came from.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from fairlead.trial.report import p99_by_phase
from fairlead.trial.result import Result, read_result
from fairlead.trial.summary import cell

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- figures: start -->", "<!-- figures: end -->"
ROWS = (
    ("p99, normal", "latency_p99", "normal"),
    ("p99, a topic goes viral", "latency_p99", "viral"),
    ("p99, all caches emptied", "latency_p99", "cleared"),
    ("p99, feature service hangs", "latency_p99", "stalled"),
    ("timeouts, feature service hangs", "timeouts", "stalled"),
    ("degraded answers, feature service hangs", "degraded", "stalled"),
    ("peak concurrent loads of the viral topic", "herd_peak", "viral"),
    ("calls to downstreams per request", "origin_calls", "run"),
    ("answers beyond the staleness bound", "staleness_violations", "run"),
)


def main(path: Path) -> None:
    result = read_result(path)
    if not result.validity.valid:
        raise SystemExit(f"{path}: not valid: {'; '.join(result.validity.reasons)}")
    picture = ROOT / "docs" / "images" / "home_feed_p99.svg"
    picture.write_text(p99_by_phase(result).to_svg(), encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{block(result)}\n{END}{after}", encoding="utf-8")


def block(result: Result) -> str:
    units = {metric.name: metric.unit for metric in result.metrics}
    lines = ["| | control | treatment |", "|---|---|---|"]
    for title, metric, phase in ROWS:
        cells = (cell(result.figure(metric, arm, phase), units[metric]) for arm in ("control", "treatment"))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    missed = [target.statement for target in result.targets if target.met is False]
    date = datetime.fromtimestamp(result.started_at_utc_seconds, UTC).strftime("%Y-%m-%d")
    commit = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12"],  # noqa: S607 - git is found as every developer's is
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    lines.append("")
    lines.append(
        f"`fairlead try home_feed --seed {result.seed}`, one run of {result.validity.requests:,} requests, {date}, "
        f"commit {commit}; {result.machine.cpu}, {result.machine.cores:g} cores, Python {result.machine.python}. "
        "In brackets: 95 % intervals; † has a caveat that the report names. "
        f"A failed request counts as at least {result.patience_seconds:g} s. "
        f"Missed targets: {'; '.join(missed) or 'none'}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
