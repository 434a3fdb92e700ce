"""The home feed, longer than `fairlead try` has time for: three seeds, every ablation, and p99.9.

    python -m bench home_feed                 p99 on three seeds, and p99.9 from 200,000 requests an arm (about 25 min)
    python -m bench home_feed --quick         one short run
    python -m bench.home_feed ablations       what each mechanism contributes, one arm each in one run (about 8 min)
    python -m bench.home_feed routing         what routing by user is worth to two processes (20 s)
    python -m bench.home_feed capacity        the highest rate that each arm carries (about 3 min; --quick 1 min)
    python -m bench.home_feed cost            processor time, loads and calls a page of each arm (about 3 min)

Both arms of a figure come from one run, in cycles that take turns. Runs lie in bench/results/.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from bench import home_feed_capacity, home_feed_cost
from bench.harness import Bar
from fairlead.charts import format_value
from fairlead.trial import Settings, load_system, summary
from fairlead.trial.machine import this_machine
from fairlead.trial.result import Result
from fairlead.trial.run import make_run_directory, run_trial
from fairlead_systems.home_feed.routing import Routed, measure_routing, two_feeds

__all__ = ["ablations", "bars", "routing"]

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
P999_RATE = 120.0
P999_REQUESTS = 200_000


def bars(quick: bool) -> list[Bar]:
    """p99 of treatment over control by phase, staleness, herds; and p99.9 unless quick."""
    if quick:
        return [*_by_seed((1,), quick=True), home_feed_capacity.bar(quick=True)]
    return [*_by_seed(SEEDS, quick=False), home_feed_capacity.bar(quick=False), _p999()]


def _by_seed(seeds: tuple[int, ...], *, quick: bool) -> list[Bar]:
    results = [_run(Settings(seed=seed, quick=quick)) for seed in seeds]
    measured = []
    for phase in ("normal", "viral", "stalled"):
        ratios = sorted(_ratio(result, "latency_p99", phase) for result in results)
        measured.append(
            Bar(
                what=f"home feed p99, treatment over control, {phase}, worst of {len(seeds)} seeds",
                value=ratios[-1],
                limit=1.0,
                unit="×",
                n=len(seeds),
                spread=(ratios[0], ratios[-1]),
                note=_validity(results),
            )
        )
    measured.append(
        Bar(
            what="home feed answers beyond the staleness bound of 400 ms, all seeds",
            value=sum(_value(result, "staleness_violations", "treatment", "run") for result in results),
            limit=0,
            n=sum(result.validity.requests for result in results) // 2,
        )
    )
    measured.append(
        Bar(
            what="home feed peak loads of the hottest key, treatment over control, viral, worst seed",
            value=max(_ratio(result, "herd_peak", "viral") for result in results),
            limit=0.1,
            unit="×",
            n=len(seeds),
        )
    )
    return measured


def _p999() -> Bar:
    plan = load_system("home_feed").plan(Settings(rate=P999_RATE, cycles=1))
    # The viral phase brings 2.5 times the base rate between its ramps; 2 keeps the number on the safe side.
    per_cycle = sum(
        P999_RATE * phase.seconds * (2.0 if phase.name == "viral" else 1.0)
        for phase in plan.phases
        if phase.measured
    )
    result = _run(Settings(rate=P999_RATE, cycles=int(P999_REQUESTS / per_cycle) + 1))
    control, treatment = (result.figure("latency_p999", arm, "run") for arm in ("control", "treatment"))
    if control is None or treatment is None or not control.value or treatment.value is None:
        raise SystemExit("the p99.9 run has no p99.9: look at its result.json")
    return Bar(
        what=f"home feed p99.9 over all phases at {P999_RATE:g}/s, treatment over control",
        value=treatment.value / control.value,
        limit=0.6 / 1.8,
        unit="×",
        n=treatment.n,
        note="; ".join(
            filter(
                None,
                (
                    f"control {format_value(control.value, 'seconds')}, "
                    f"treatment {format_value(treatment.value, 'seconds')}; published 1.8 s → 0.6 s",
                    _validity([result]),
                ),
            )
        ),
        figures={"control_seconds": control.value, "treatment_seconds": treatment.value},
    )


def ablations(seed: int = 1) -> str:
    """A table: each row the treatment without one mechanism, all in one run."""
    result = _run(Settings(seed=seed, ablate=("all",)))
    table = summary.ablations(result)
    assert table is not None
    lines = ["| arm | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.rows]
    machine = result.machine
    lines.append("")
    lines.append(
        f"seed {seed}, {result.cycles} cycles an arm, {result.validity.requests:,} requests, {machine.cpu}, "
        f"{machine.cores:g} cores, Python {machine.python}. {_validity([result]) or 'The run is valid.'}"
    )
    return "\n".join(lines)


def routing(seed: int = 1) -> str:
    """A table: two feed processes, users sent at random or by `Rendezvous`."""

    async def run(directory: Path) -> dict[str, Routed]:
        async with two_feeds(directory, seed=seed) as topology:
            return await measure_routing(topology, users=200, requests=2_000, seed=seed)

    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory)))
    lines = ["| users sent | L1 hit ratio, users' candidates | loads | shown again |", "|---|---|---|---|"]
    for name, each in found.items():
        lines.append(f"| {name} | {each.hit_ratio:.1%} | {each.user_loads:,} | {each.seen_again:,} |")
    machine = this_machine()
    lines.append("")
    lines.append(
        f"seed {seed}, {next(iter(found.values())).requests:,} requests of 200 users each way, two processes; "
        f"{machine.cpu}, {machine.cores:g} cores, Python {machine.python}."
    )
    return "\n".join(lines)


def _run(settings: Settings) -> Result:
    directory = make_run_directory(RESULTS, "home_feed", settings.seed)
    return run_trial(load_system("home_feed"), settings, directory)


def _value(result: Result, metric: str, arm: str, phase: str) -> float:
    figure = result.figure(metric, arm, phase)
    return float("nan") if figure is None or figure.value is None else figure.value


def _ratio(result: Result, metric: str, phase: str) -> float:
    return _value(result, metric, "treatment", phase) / _value(result, metric, "control", phase)


def _validity(results: list[Result]) -> str:
    invalid = [
        f"{result.id}: {'; '.join(result.validity.reasons)}"
        for result in results
        if not result.validity.valid
    ]
    return f"INVALID: {' | '.join(invalid)}" if invalid else ""


def _main(arguments: list[str]) -> str:
    if arguments == ["ablations"]:
        return ablations()
    if arguments == ["routing"]:
        return routing()
    if arguments and arguments[0] == "capacity" and set(arguments[1:]) <= {"--quick"}:
        return home_feed_capacity.table(quick=len(arguments) > 1)
    if arguments == ["cost"]:
        return home_feed_cost.table()
    raise SystemExit(
        "usage: python -m bench.home_feed ablations | routing | capacity [--quick] | cost  "
        "(the bars: python -m bench home_feed)"
    )


if __name__ == "__main__":
    print(_main(sys.argv[1:]))
