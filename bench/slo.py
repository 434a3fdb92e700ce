"""A week of faults on virtual time: burn-rate alerts beside a naive threshold on the error ratio.

    python -m bench slo             20 weeks of made faults, seeds 1 to 20
    python -m bench slo --quick     5 weeks

Both watch the same events, minute by minute: 600 requests a minute with a day's rhythm, an objective of 99.9 % over
30 days, a background of 0.03 % errors, and faults of four kinds: blips (a minute or two at 5 %), outages (5 to 30
minutes at 20 to 100 %), leaks (6 to 24 hours at 0.3 to 1 %), and quiet nights in which three requests a minute make
one failure a third. The naive alert is what most services begin with: more than 1 % of the last five minutes, paged
at once, told once until it ends.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal

from bench.harness import Bar
from fairlead.slo import BurnRateMonitor, ErrorBudget, Objective, RollingPeriod

__all__ = ["bars"]

_WEEK = 7 * 1440
_NAIVE = 0.01


@dataclass
class Fault:
    """A stretch of minutes with an error ratio."""

    kind: str
    start: int
    minutes: int
    ratio: float


@dataclass
class Watched:
    """What one way of alerting did in a week."""

    pages: int = 0
    false_pages: int = 0
    """Pages while nothing worth waking anybody was going on: no outage, and no leak."""
    detected: dict[int, int] = field(default_factory=dict)
    """By fault: minutes until a page, or a ticket for a leak."""


def _objective() -> Objective:
    return Objective(
        name="feed", title="Feed answers", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * 86400.0),
        event="request_finished", good="status < 500", owner="bench", runbook="docs/guides/slo.md", minimum_events=300,
    )  # fmt: skip


def _faults(rng: random.Random) -> list[Fault]:
    faults = [Fault("blip", rng.randrange(_WEEK - 10), rng.choice((1, 2)), 0.05) for _ in range(20)]
    faults += [
        Fault("outage", rng.randrange(1440, _WEEK - 60), rng.randrange(5, 31), rng.uniform(0.2, 1.0))
        for _ in range(2)
    ]
    faults.append(
        Fault("leak", rng.randrange(1440, _WEEK - 1500), rng.randrange(360, 1441), rng.uniform(0.003, 0.01))
    )
    return faults


def _week(seed: int) -> tuple[Watched, Watched, ErrorBudget, list[Fault]]:
    rng = random.Random(seed)
    objective = _objective()
    monitor, faults = BurnRateMonitor(objective), _faults(rng)
    burn, naive = Watched(), Watched()
    last_five: deque[tuple[float, float]] = deque(maxlen=5)
    naive_firing, paging = False, False
    total = missed = 0.0
    causes: dict[str, float] = {}
    for minute in range(1, _WEEK + 1):
        day = (1 + math.sin(2 * math.pi * (minute % 1440) / 1440 - math.pi / 2)) / 2
        valid = max(3, round(600 * day))
        active = [
            (index, fault)
            for index, fault in enumerate(faults)
            if fault.start <= minute < fault.start + fault.minutes
        ]
        worst = max((fault for _, fault in active), key=lambda fault: fault.ratio, default=None)
        ratio = max(0.0003, worst.ratio if worst else 0.0)
        bad = sum(rng.random() < ratio for _ in range(valid))
        total, missed = total + valid, missed + bad
        if bad:
            cause = worst.kind if worst else "background"
            causes[cause] = causes.get(cause, 0.0) + bad
        worth = [index for index, fault in active if fault.kind in ("outage", "leak")]
        recent = any(
            fault.kind in ("outage", "leak") and fault.start <= minute < fault.start + fault.minutes + 60
            for fault in faults
        )
        monitor.observe(minute * 60.0, float(valid), float(bad))
        now_paging = any(alert.severity == "page" for alert in monitor.firing)
        if now_paging and not paging:
            burn.pages += 1
            burn.false_pages += not recent
        paging = now_paging
        for index in worth:
            # An outage is to be paged; of a leak a ticket is enough. Counted to the end of the minute.
            if now_paging or (faults[index].kind == "leak" and monitor.firing):
                burn.detected.setdefault(index, minute + 1 - faults[index].start)
        last_five.append((valid, bad))
        share = sum(b for _, b in last_five) / sum(v for v, _ in last_five)
        if share > _NAIVE and not naive_firing:
            naive.pages += 1
            naive.false_pages += not recent
        naive_firing = share > _NAIVE
        for index in worth:
            if naive_firing:
                naive.detected.setdefault(index, minute + 1 - faults[index].start)
    budget = ErrorBudget(objective=objective, valid=total * 30 / 7, bad=missed, causes=causes)
    return burn, naive, budget, faults


def bars(quick: bool) -> list[Bar]:
    """False pages and time to detect, burn-rate alerts beside the naive threshold."""
    weeks = [_week(seed) for seed in range(1, 6 if quick else 21)]
    n = len(weeks)

    def mean(values: list[float]) -> float:
        return statistics.fmean(values) if values else math.nan

    burn_pages = [float(burn.pages) for burn, *_ in weeks]
    naive_pages = [float(naive.pages) for _, naive, *_ in weeks]
    burn_false = [float(burn.false_pages) for burn, *_ in weeks]
    naive_false = [float(naive.false_pages) for _, naive, *_ in weeks]
    found: dict[tuple[str, str], list[float]] = {}
    missed: dict[tuple[str, str], int] = {}
    for burn, naive, _, faults in weeks:
        for index, fault in enumerate(faults):
            if fault.kind not in ("outage", "leak"):
                continue
            for name, watched in (("burn", burn), ("naive", naive)):
                if index in watched.detected:
                    found.setdefault((name, fault.kind), []).append(float(watched.detected[index]))
                else:
                    missed[name, fault.kind] = missed.get((name, fault.kind), 0) + 1
    left = [budget.remaining or 0.0 for *_, budget, _ in weeks]

    def told(kind: str) -> str:
        parts = []
        for name in ("burn", "naive"):
            times = found.get((name, kind), [])
            parts.append(
                f"{name} {statistics.median(times):g} min of {len(times)}" if times else f"{name}: none" + ""
            )
            if missed.get((name, kind)):
                parts[-1] += f", {missed[name, kind]} missed"
        return "; ".join(parts)

    return [
        Bar(
            what="false pages a week, burn-rate alerts over a naive threshold of 1 % in 5 min",
            value=mean(burn_false) / mean(naive_false) if mean(naive_false) else math.inf,
            limit=0.1,
            unit="×",
            n=n,
            note=f"burn {mean(burn_false):.2f}, naive {mean(naive_false):.1f}; all pages {mean(burn_pages):.1f} and "
            f"{mean(naive_pages):.1f} a week; seeds 1 to {n}",
        ),
        Bar(
            what="minutes until an outage is paged, burn-rate alerts, median",
            value=statistics.median(found.get(("burn", "outage"), [math.inf])),
            limit=5.0,
            unit="min",
            n=len(found.get(("burn", "outage"), [])),
            note=told("outage"),
        ),
        Bar(
            what="leaks of 0.3 to 1 % for hours that nobody is told of, burn-rate alerts",
            value=float(missed.get(("burn", "leak"), 0)),
            limit=0.0,
            n=n,
            note=f"{told('leak')}; budget of 30 days left after the week: {mean(left):.0%} on average, "
            f"{min(left):.0%} at worst",
        ),
    ]
