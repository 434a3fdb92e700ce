"""How often guardrails roll back by mistake, and how soon they find what is wrong.

    python -m bench rollout             10,000 A/A rollouts of each world, 500 runs of each regression
    python -m bench rollout --quick     500 and 100
    python -m bench.rollout [--rollouts N] [--runs N] [--seed N]    all tables: each share, each peer; 5,000 runs

A/A: rollout_population.py draws the users, rollout_false_alarms.py watches them. Detection: rollout_regressions.py
draws both arms, rollout_detection.py compares with the rules of rollout_peers.py. Users and their requests are
simulated; what judges them is the product.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from bench.__main__ import quantity
from bench.harness import Bar
from bench.rollout_detection import DUE, SHARES, Found, detection, units_of_formula
from bench.rollout_false_alarms import Watched, disagreements, false_alarms
from bench.rollout_population import LOOKS, PLAN, WORLDS
from bench.rollout_regressions import EFFECTS, MINUTES, Effect
from fairlead.statistics import proportion_interval
from fairlead.trial.machine import this_machine

__all__ = ["bars"]

_PART = 500
_TRAFFIC = 100.0
"""Units a second, of the figures in minutes."""
_THRESHOLDS = ("threshold as Argo Rollouts", "threshold as Flagger")
_RANKS = "Mann–Whitney of minutes"
_ORACLE = "oracle: one look"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of everything."""

    watched: list[Watched]
    differing: int
    compared: int
    found: dict[tuple[str, float], list[Found]]
    rollouts: int
    runs: int
    seed: int


def measure(rollouts: int, runs: int, seed: int) -> Measured:
    """Everything, on as many processors as there are."""
    parts = [min(_PART, rollouts - start) for start in range(0, rollouts, _PART)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        regressions = {
            (effect.name, share): pool.submit(detection, effect, share, runs, (seed,))
            for effect in reversed(EFFECTS)  # latencies take longest
            for share in SHARES
            if runs
        }
        worlds = [
            [pool.submit(false_alarms, world, n, (seed, part)) for part, n in enumerate(parts)]
            for world in range(len(WORLDS))
        ]
        checks = [pool.submit(disagreements, world, 3, (seed,)) for world in range(len(WORLDS)) if rollouts]
        watched = []
        for world, futures in enumerate(worlds):
            whole = Watched(WORLDS[world].name)
            for future in futures:
                whole.add(future.result())
            watched.append(whole)
        pairs = [each.result() for each in checks]
        found = {key: future.result() for key, future in regressions.items()}
    return Measured(
        watched, sum(each[0] for each in pairs), sum(each[1] for each in pairs), found, rollouts, runs, seed
    )


def bars(quick: bool) -> list[Bar]:
    """False rollbacks of three worlds; of five regressions, how late, and beside whom."""
    measured = measure(500, 100, 1) if quick else measure(10_000, 500, 1)
    found = [_false_alarm_bar(each, measured.seed) for each in measured.watched]
    found.append(
        Bar(
            what="rollouts: counts and verdicts that differ from those of Tally and evaluate_beside_control",
            value=float(measured.differing),
            limit=0,
            n=measured.compared,
        )
    )
    for effect in EFFECTS:
        found += _detection_bars(effect, measured)
    return found


def _interval(k: int, n: int) -> tuple[float, float]:
    estimate = proportion_interval(k, n)
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def _false_alarm_bar(watched: Watched, seed: int) -> Bar:
    low, high = _interval(watched.rolled_back, watched.rollouts)
    by = ", ".join(f"{name} {count}" for name, count in watched.by.items())
    naive = watched.by_requests / watched.rollouts
    return Bar(
        what=f"false rollbacks of A/A rollouts, {watched.world}",
        value=100 * watched.rolled_back / watched.rollouts,
        limit=100 * PLAN.alpha,
        unit="%",
        n=watched.rollouts,
        note=f"95 % interval {low:.2%} to {high:.2%}; {len(PLAN.stages) * LOOKS} looks each; {by}; had each request "
        f"been counted, errors alone: {naive:.1%}; seed {seed}",
        figures={"counting_requests": naive},
    )


def _times(later: float, sooner: float) -> float:
    if math.isinf(later):
        return math.inf if not math.isinf(sooner) else math.nan
    return later / sooner


def _detection_bars(effect: Effect, measured: Measured) -> list[Bar]:
    by_share = {share: {each.name: each for each in measured.found[effect.name, share]} for share in SHARES}

    def bar(what: str, ratios: dict[float, float], note: str, *, at_most: bool) -> Bar:
        known = [each for each in ratios.values() if not math.isnan(each)]
        return Bar(
            what=f"{effect.name}: {what}",
            value=max(known) if at_most else min(known),
            limit=2 if at_most else 1,
            at_most=at_most,
            unit="×",
            n=measured.runs,
            note=note,
            figures={f"at_{share:g}": each for share, each in ratios.items() if math.isfinite(each)},
        )

    def each_share(name: str) -> str:
        return ", ".join(
            f"{found[name].half:g} and {found[name].most:g} at {share:.0%}"
            for share, found in by_share.items()
        )

    alarms = ", ".join(f"{found['ours'].false_alarms:.1%}" for found in by_share.values())
    made = []
    for what, which in (("half", "half"), ("80 %", "most")):
        late = {
            share: getattr(found["ours"], which) / found[_ORACLE].most for share, found in by_share.items()
        }
        note = f"minutes to 50 and 80 %: {each_share('ours')}; the oracle {each_share(_ORACLE)}; false alarms {alarms}"
        made.append(
            bar(
                f"{what} found, over a single look that finds 80 %, worst of four shares",
                late,
                f"{note}; seed {measured.seed}" if which == "half" else "",
                at_most=True,
            )
        )
    for what, names in (("threshold for N minutes", _THRESHOLDS), ("Mann–Whitney", (_RANKS,))):
        ratios = {
            share: min(_times(found[name].most, found["ours"].most) for name in names)
            for share, found in by_share.items()
        }
        said = "; ".join(f"{name}: {each_share(name)}" for name in names)
        drift = ", ".join(f"{found[names[-1]].drifting:.0%}" for found in by_share.values())
        said += f"; false alarms where both arms drift: {drift}"
        made.append(
            bar(f"80 % found, {what} over ours, least of four shares", ratios, f"minutes to 50 and 80 %: {said}",
                at_most=False)
        )  # fmt: skip
    return made


def tables(measured: Measured) -> str:
    """Everything that was measured, as Markdown."""
    here = this_machine()
    parts = [
        f"{measured.rollouts:,} rollouts a world, {measured.runs:,} runs a regression and share, as many without; "
        f"seed {measured.seed}; {here.cpu}, {here.cores:g} cores, Python {here.python}."
    ]
    if measured.runs:
        parts = [_detection_table(measured), _times_table(measured), *parts]
    if measured.rollouts:
        parts = [_false_alarm_table(measured), *parts]
    return "\n\n".join(parts)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _false_alarm_table(measured: Measured) -> str:
    rows = []
    for each in measured.watched:
        low, high = _interval(each.rolled_back, each.rollouts)
        by = [str(each.by[guardrail.name]) for guardrail in PLAN.guardrails]
        of = f"{each.rolled_back} of {each.rollouts:,}"
        rows.append(
            [each.world, of, f"{low:.2%} – {high:.2%}", *by, f"{each.by_requests / each.rollouts:.1%}"]
        )
    guardrails = [f"by {guardrail.name}" for guardrail in PLAN.guardrails]
    table = _rows(
        ["A/A rollouts", "rolled back", "95 % interval", *guardrails, "had requests been counted"], rows
    )
    return f"{table}\n\n{measured.differing} of {measured.compared:,} counts and verdicts differ from the product's."


def _detection_table(measured: Measured) -> str:
    head = [
        *(
            "regression",
            "share",
            "formula, units",
            "watched by",
            "false alarms",
            "50 % found, min",
            "80 % found, min",
        ),
        *(f"within {MINUTES} min", "80 % over the oracle's", "both arms drift: false alarms"),
        "its own limit: false alarms",
    ]
    rows = [
        [
            *(effect.name, f"{share:.0%}", f"{units_of_formula(effect, share):,}", one.name),
            *(f"{one.false_alarms:.1%}", _minutes(one.half, one.half_between)),
            *(_minutes(one.most, one.most_between), f"{one.within:.0%}"),
            *(f"{one.most / measured.found[effect.name, share][-1].most:.2f}", _share(one.drifting)),
            _share(one.untuned),
        ]
        for effect in EFFECTS
        for share in SHARES
        for one in measured.found[effect.name, share]
    ]
    return _rows(head, rows)


def _times_table(measured: Measured) -> str:
    rows = []
    for effect in EFFECTS:
        cells = [effect.name]
        for share in SHARES:
            ours, rate = measured.found[effect.name, share][0], units_of_formula(effect, share) / DUE
            cells.append(" and ".join(_time(each * rate) for each in (ours.half, ours.most)))
        rows.append(cells)
    head = [f"ours, 50 and 80 % found, at {_TRAFFIC:g} units a second", *(f"{share:.0%}" for share in SHARES)]
    return _rows(head, rows)


def _time(units: float) -> str:
    return "later" if math.isinf(units) else f"{quantity(units / _TRAFFIC / 60, 'min')} ({units:,.0f} units)"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"


def _minutes(value: float, between: tuple[float, float]) -> str:
    if math.isinf(value):
        return "later"
    if math.isnan(between[0]):
        return f"{value:g}"
    high = "later" if math.isinf(between[1]) else f"{between[1]:g}"
    return f"{value:g} ({between[0]:g} – {high})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rollout", description=str(__doc__).split("\n", 1)[0]
    )
    parser.add_argument(
        "--rollouts", type=int, default=10_000, help="A/A rollouts of each world (10,000); 0: none"
    )
    parser.add_argument(
        "--runs", type=int, default=5_000, help="runs of each regression and share (5,000); 0: none"
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    print(tables(measure(chosen.rollouts, chosen.runs, chosen.seed)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
