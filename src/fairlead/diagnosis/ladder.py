"""A run walked through, rung by rung, as somebody would who was called about it at night.

    1 reproduce    is the run valid, what repeats it, which arm is bad in which phase, and by how much
    2 look         events, logs and traces: what failed, what changed state, what the policies did, the slowest requests
    3 compare      which requests are bad more often than the rest, and by more than chance
    4 isolate      what the change did, phase by phase; in an ablation, mechanism by mechanism
    5 suspect      hypotheses, the one that accounts for most of the trouble first, each with what speaks against it
    6 try          the next commands, each changing one thing

Pure over what it is given: the same record gives the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from fairlead.diagnosis.bottleneck import find_bottleneck
from fairlead.diagnosis.hypotheses import next_steps, suspected
from fairlead.diagnosis.measured import Measured, measured_between
from fairlead.diagnosis.run_cohorts import bad_requests, compared_requests
from fairlead.diagnosis.run_events import RunEvents
from fairlead.diagnosis.run_facts import (
    Change,
    FolderFindings,
    Journal,
    Page,
    PhaseBottleneck,
    RunDiagnosis,
    RunFacts,
    SlowRequest,
    Standing,
)
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import LoadSample, RequestFinished

__all__ = ["diagnose_run"]

_SLOWEST = 0.95
_SHOWN = 5
_MANY_STATES = 8


def diagnose_run(
    facts: RunFacts,
    events: RunEvents,
    pages: Sequence[Page] = (),
    folder: FolderFindings | None = None,
    traces: Measured | None = None,
    *,
    arm: str | None = None,
    slow: float | None = None,
    mechanisms: Sequence[str] = (),
) -> RunDiagnosis:
    """The ladder for one arm.

    arm: the second if not given, which is the treatment. slow: seconds from which an answer counts as slow; the arm's
    own 95th percentile if not given. mechanisms: those that the system can switch off. Raises InvalidInput for an arm
    that the run does not have.
    """
    names = [each.name for each in facts.arms]
    chosen = names[min(1, len(names) - 1)] if arm is None else arm
    if chosen not in names:
        raise InvalidInput(f"--arm {chosen[:64]!r}: the run has {', '.join(names)}")
    measured = {each.name for each in facts.measured}
    samples = [sample for sample in events.samples if sample.phase in measured]
    own = [sample for sample in samples if sample.arm == chosen]
    if not own:
        raise InvalidInput(f"the run holds no request of {chosen} in a measured phase: it was cut off before")
    if slow is None:
        answers = [sample.latency_seconds for sample in own if sample.ending in ("ok", "degraded")]
        slow = float(np.quantile(answers, _SLOWEST)) if answers else facts.patience_seconds
    standings = _standings(facts, events, samples, slow)
    journal = _journal(facts, events, own, folder or FolderFindings(), chosen)
    compared = compared_requests(facts, events, samples, own, chosen, slow)
    bottlenecks, missing = _bottlenecks(facts, pages, traces)
    hypotheses, ruled_out = suspected(facts, chosen, events, standings, compared, bottlenecks)
    return RunDiagnosis(
        run=facts.id,
        arm=chosen,
        summary=_summary(facts, chosen, standings),
        valid=facts.validity.valid,
        reasons=(*facts.validity.reasons, *facts.validity.left_out),
        seed=facts.seed,
        command=" ".join(facts.words),
        titles={each.name: each.title for each in facts.phases},
        slow_seconds=slow,
        standings=tuple(standings),
        missed_targets=tuple(
            f"{each.statement} ({facts.title(each.phase)})" for each in facts.targets if each.met is False
        ),
        journal=journal,
        compared=tuple(compared),
        changes=tuple(_changes(facts)),
        bottlenecks=tuple(bottlenecks),
        bottlenecks_missing=missing,
        hypotheses=tuple(hypotheses),
        ruled_out=tuple(ruled_out),
        next_steps=tuple(next_steps(facts, chosen, events, standings, hypotheses, mechanisms)),
    )


def _standings(facts: RunFacts, events: RunEvents, samples: list[LoadSample], slow: float) -> list[Standing]:
    bad, failed = bad_requests(events, samples, slow), events.failed(samples)
    places: dict[tuple[str, str], list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault((sample.arm, sample.phase), []).append(place)
    calmest: dict[str, float] = {}
    for who, when in places:
        figure = facts.figure("latency_p99", who, when)
        if figure is not None and figure.value is not None:
            calmest[who] = min(calmest.get(who, float("inf")), figure.value)
    found = []
    for each in facts.arms:
        for phase in facts.measured:
            rows = places.get((each.name, phase.name))
            if not rows:
                continue
            figure = facts.figure("latency_p99", each.name, phase.name)
            p99 = None if figure is None else figure.value
            found.append(
                Standing(
                    arm=each.name,
                    phase=phase.name,
                    n=len(rows),
                    p99_seconds=p99,
                    p99_low=None if figure is None else figure.low,
                    p99_high=None if figure is None else figure.high,
                    failed_share=float(failed[rows].mean()),
                    degraded_share=sum(samples[row].ending == "degraded" for row in rows) / len(rows),
                    bad_share=float(bad[rows].mean()),
                    times_calmest=p99 / calmest[each.name]
                    if p99 is not None and calmest.get(each.name)
                    else None,
                )
            )
    return found


def _summary(facts: RunFacts, arm: str, standings: list[Standing]) -> str:
    own = [each for each in standings if each.arm == arm]
    worst = max(
        own, key=lambda each: (min(1.0, each.bad_share + each.degraded_share), each.p99_seconds or 0.0)
    )
    title = facts.title(worst.phase)
    said = f"{arm} is at its worst in phase {title!r}"
    if worst.p99_seconds is not None:
        said += f": p99 {worst.p99_seconds * 1000:.0f} ms"
        if worst.times_calmest is not None and worst.times_calmest >= 1.05:
            said += f", {worst.times_calmest:.1f} times its calmest phase"
    failed, degraded = worst.failed_share * 100, worst.degraded_share * 100
    said += f"; {failed:.1f} % of its requests fail there and {degraded:.1f} % are degraded"
    other = next((each for each in standings if each.phase == worst.phase and each.arm != arm), None)
    if other is not None and other.p99_seconds is not None:
        said += (
            f" ({other.arm}: p99 {other.p99_seconds * 1000:.0f} ms, {other.failed_share * 100:.1f} % fail)"
        )
    return said + "."


def _journal(
    facts: RunFacts, events: RunEvents, own: list[LoadSample], folder: FolderFindings, arm: str
) -> Journal:
    def place(at: float) -> str:
        moment = events.moment(at)
        if moment is None:
            return "before the load"
        return f"{moment.arm}, cycle {moment.cycle + 1}, {facts.title(moment.phase)} +{at - moment.began_at:.2f} s"

    changes = sorted(events.states, key=lambda pair: pair[1].at_utc_seconds)
    states = [
        f"{place(state.at_utc_seconds)}: {state.component} {state.name} {state.previous} → {state.current}"
        + (f" ({state.reason})" if state.reason else "")
        for _, state in changes[:_MANY_STATES]
    ]
    if len(changes) > _MANY_STATES:
        counted = Counter((state.component, state.name, state.current) for _, state in changes)
        rest = ", ".join(f"{name} → {current} {n}×" for (_, name, current), n in counted.most_common(6))
        states.append(f"{len(changes):,} changes of state in all: {rest}")
    actions = [
        f"{who}, {facts.title(phase)}: {policy} {action} {n:,}× ({reason})"
        for (who, phase, policy, action, reason), n in events.actions.most_common()
        if who == arm
    ]
    slowest = sorted(own, key=lambda sample: -sample.latency_seconds)[:_SHOWN]
    mine: list[tuple[RequestFinished, str]] = []
    for _, request in events.requests:
        moment = events.moment(request.at_utc_seconds - request.latency_seconds)
        if moment is not None and moment.arm == arm:
            mine.append((request, moment.phase))
    mine.sort(key=lambda pair: -pair[0].latency_seconds)
    return Journal(
        events=dict(sorted(events.events.items())),
        truncated=events.truncated,
        duplicates=events.duplicates,
        endings=dict(Counter(str(sample.ending) for sample in own).most_common()),
        states=tuple(states),
        actions=tuple(actions[: 2 * _SHOWN]),
        slowest=tuple(
            SlowRequest(
                request_id=sample.request_id,
                arm=sample.arm,
                phase=facts.title(sample.phase),
                seconds=sample.latency_seconds,
                said=f"{sample.ending}, status {sample.status}, key {sample.key}",
            )
            for sample in slowest
        ),
        slowest_at_server=tuple(
            SlowRequest(
                request_id=request.request_id,
                arm=arm,
                phase=facts.title(phase),
                seconds=request.latency_seconds,
                said=f"status {request.status}"
                + (f", {request.error}" if request.error else "")
                + "".join(f", {name} {value}" for name, value in sorted(request.attributes.items()) if value),
            )
            for request, phase in mine[:_SHOWN]
        ),
        dead_letters=folder.dead_letters,
        log_lines=folder.log_lines,
        traces=folder.traces,
    )


def _changes(facts: RunFacts) -> list[Change]:
    """Control against treatment in every phase; treatment against itself without a mechanism."""
    if len(facts.arms) < 2:
        return []
    control, treatment = facts.arms[0].name, facts.arms[1].name
    metrics = ("latency_p99", "timeouts", "errors", "degraded")
    instead = f"{treatment} instead of {control}"
    found: list[Change | None] = []
    for phase in (*[each.name for each in facts.measured], "run"):
        found += [_change(facts, instead, metric, phase, control, treatment) for metric in metrics]
    for arm in facts.arms[2:]:
        what = f"without {', '.join(arm.without)}" if arm.without else f"{arm.name} instead of {treatment}"
        pairs = dict.fromkeys(
            [
                *((each.metric, each.phase) for each in facts.targets),
                ("latency_p99", "run"),
                ("degraded", "run"),
            ]
        )
        found += [_change(facts, what, metric, phase, treatment, arm.name) for metric, phase in pairs]
    return [each for each in found if each is not None]


def _change(facts: RunFacts, what: str, metric: str, phase: str, before: str, after: str) -> Change | None:
    definition = next((each for each in facts.metrics if each.name == metric), None)
    old, new = facts.figure(metric, before, phase), facts.figure(metric, after, phase)
    if definition is None or old is None or new is None or old.value is None or new.value is None:
        return None
    if None in (old.low, old.high, new.low, new.high):
        verdict = "no interval" if old.value != new.value else "the same"
    elif new.low > old.high or new.high < old.low:  # type: ignore[operator]  # none of them is None here
        verdict = "better" if (new.value < old.value) == (definition.better == "lower") else "worse"
    else:
        verdict = "not told apart"
    return Change(
        what=what,
        metric=definition.title,
        phase=facts.title(phase) if phase != "run" else "whole run",
        unit=definition.unit,
        before=old.value,
        after=new.value,
        verdict=verdict,
    )


def _bottlenecks(
    facts: RunFacts, pages: Sequence[Page], traces: Measured | None
) -> tuple[list[PhaseBottleneck], str]:
    found: dict[tuple[str, str], list[tuple[Measured, float]]] = {}
    measured = {each.name for each in facts.measured}
    for before, after in pairwise(pages):
        if (before.arm, before.cycle) != (after.arm, after.cycle) or before.phase not in measured:
            continue
        seconds = after.at_utc_seconds - before.at_utc_seconds
        try:
            known = measured_between(before.text, after.text, seconds=seconds)
        except (InvalidInput, BrokenDocument):  # a page cut off, or a process that was restarted: a gap
            continue
        found.setdefault((before.arm, before.phase), []).append((known.filled(traces or Measured()), seconds))
    rows = []
    for (arm, phase), cycles in found.items():
        together = _pooled(cycles)
        judged = find_bottleneck(together)
        agreeing = sum(find_bottleneck(known).verdict == judged.verdict for known, _ in cycles)
        rows.append(
            PhaseBottleneck(
                arm=arm,
                phase=phase,
                cycles=len(cycles),
                agreeing=agreeing,
                found=judged,
                downstream=together.downstream,
            )
        )
    order = {each.name: place for place, each in enumerate(facts.phases)}
    rows.sort(key=lambda row: (row.arm, order.get(row.phase, 0)))
    if rows:
        return rows, ""
    return [], (
        "the run kept no metrics of its services (metrics/*.jsonl.gz): it was made by an older version, or they serve "
        "no /metrics; run it again to have them"
    )


def _pooled(cycles: Sequence[tuple[Measured, float]]) -> Measured:
    """The facts of one phase over all cycles, each weighing as much as it lasted: one alone may be a second long."""
    together: dict[str, float | str | None] = {}
    for name in Measured.__struct_fields__:
        known = [
            (getattr(facts, name), seconds) for facts, seconds in cycles if getattr(facts, name) is not None
        ]
        if not known:
            continue
        if name == "downstream":
            together[name] = Counter(value for value, _ in known).most_common(1)[0][0]
        elif name in ("seconds", "requests_ended"):
            together[name] = sum(value for value, _ in known)
        else:
            together[name] = sum(value * seconds for value, seconds in known) / sum(
                seconds for _, seconds in known
            )
    return msgspec.convert(together, Measured, strict=False)
