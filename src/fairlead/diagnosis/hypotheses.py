"""From findings to suspicions, and from suspicions to the next command.

A suspicion is ranked by how much of the trouble it would account for, times how well it is supported, so that a sure
cause of three slow requests stands below a likely one of three hundred. Trouble is what a user meets: requests that are
slow, failed or degraded. What was looked at and found innocent is said too, or somebody will look again.

Every next command differs from the run in one thing, and says beforehand what either outcome would mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fairlead.diagnosis.bottleneck import Suspect, Verdict
from fairlead.diagnosis.cohorts import Cohort, Compared
from fairlead.diagnosis.run_events import RunEvents
from fairlead.diagnosis.run_facts import Hypothesis, NextStep, PhaseBottleneck, RunFacts, Standing

__all__ = ["next_steps", "suspected"]

_CLAIMS: dict[Verdict, str] = {
    "cpu": "{arm} has too little processor",
    "loop": "one call holds up the event loop of {arm}",
    "lock": "requests of {arm} wait for a lock, a pool or a permit",
    "io": "requests of {arm} wait for files",
    "downstream": "requests of {arm} wait for {downstream}",
}
_MECHANISM_OF = {
    "retried": "retry",
    "hedged": "hedge",
    "CircuitOpen": "breaker",
    "Overloaded": "limit",
    "DeadlineExceeded": "deadline",
}
"""A word in the name of the mechanism that acts so."""
_MOST_STEPS = 5
_WORTH_A_LINE = 0.02
_FAR_MORE = 0.3
_HARDLY = 0.2


def suspected(
    facts: RunFacts,
    arm: str,
    events: RunEvents,
    standings: Sequence[Standing],
    compared: Sequence[Compared],
    bottlenecks: Sequence[PhaseBottleneck],
) -> tuple[list[Hypothesis], list[str]]:
    """The hypotheses, the one that accounts for most first; and what was looked at and is innocent."""
    own = [each for each in standings if each.arm == arm]
    trouble = {each.phase: each.n * min(1.0, each.bad_share + each.degraded_share) for each in own}
    total = sum(trouble.values())
    found = [*_measurement(facts, arm)]
    if total:
        found += _from_gauges(facts, arm, bottlenecks, trouble, total)
        found += _from_refusals(facts, arm, events, total)
        known = list(_from_cohorts(facts, arm, compared, total))
        found += [*known, *_from_phases(facts, own, trouble, total, [each.claim for each in known])]
    found = [each for each in found if each.strength >= _WORTH_A_LINE]
    found.sort(key=lambda each: -each.strength)
    return found, _innocent(compared, bottlenecks, arm)


def _measurement(facts: RunFacts, arm: str) -> Iterator[Hypothesis]:
    late = [reason for reason in facts.validity.reasons if "late" in reason]
    if late:
        yield Hypothesis(
            claim="the machine that measured was too busy: latencies hold the delay of the sender",
            strength=1.0,
            evidence=(
                *late,
                f"send lag p99 over the run {facts.validity.send_lag_p99_seconds * 1000:.1f} ms",
            ),
            disproved_by="the same command on an idle machine is valid and shows the same figures",
        )
    elif not facts.validity.valid:
        yield Hypothesis(
            claim="the run itself went wrong: its figures say nothing about the service",
            strength=1.0,
            evidence=facts.validity.reasons,
            disproved_by="the same command runs to its end",
        )


def _from_gauges(
    facts: RunFacts, arm: str, bottlenecks: Sequence[PhaseBottleneck], trouble: dict[str, float], total: float
) -> Iterator[Hypothesis]:
    groups: dict[tuple[Verdict, str | None], list[PhaseBottleneck]] = {}
    unexplained: list[PhaseBottleneck] = []
    for each in bottlenecks:
        if each.arm != arm:
            continue
        if each.found.verdict != "inconclusive":
            named = each.downstream if each.found.verdict == "downstream" else None
            groups.setdefault((each.found.verdict, named), []).append(each)
        elif "nothing that was measured" in each.found.reason:
            unexplained.append(each)
    for (verdict, downstream), rows in groups.items():
        top = max(rows, key=lambda row: trouble.get(row.phase, 0.0))
        suspect = _suspect(top, verdict)
        weight = sum(
            trouble.get(row.phase, 0.0) * _suspect(row, verdict).strength * row.agreeing / row.cycles
            for row in rows
        )
        where = ", ".join(f"{facts.title(row.phase)} ({row.agreeing} of {row.cycles} cycles)" for row in rows)
        yield Hypothesis(
            claim=_CLAIMS[verdict].format(arm=arm, downstream=downstream or "a downstream"),
            # Gauges of a phase are of all its requests, and not of those in trouble: half of it is theirs at best.
            strength=round(weight / total * 0.5, 3),
            evidence=(f"so say the gauges in {where}", *suspect.evidence),
            against=(*suspect.against, *top.found.caveats),
            disproved_by=suspect.disproved_by,
        )
    if unexplained:
        weight = sum(trouble.get(row.phase, 0.0) for row in unexplained) / total
        yield Hypothesis(
            claim=f"the time of {arm} passes where nothing measures",
            strength=round(weight * 0.3, 3),
            evidence=tuple(f"{facts.title(row.phase)}: {row.found.reason}" for row in unexplained[:2]),
            disproved_by="calls behind a Policy that is exported, or spans of kind client, account for the time",
        )


def _suspect(row: PhaseBottleneck, cause: Verdict) -> Suspect:
    return next(each for each in row.found.suspects if each.cause == cause)


def _from_refusals(facts: RunFacts, arm: str, events: RunEvents, total: float) -> Iterator[Hypothesis]:
    measured = {each.name for each in facts.measured}
    refused: dict[str, Counter[tuple[str, str]]] = {}
    everybody: Counter[tuple[str, str]] = Counter()
    for (who, phase, policy, action, reason), n in events.actions.items():
        if who == arm and action == "refused" and phase in measured:
            refused.setdefault(policy, Counter())[phase, reason] += n
            everybody[phase, reason] += n
    degraded: Counter[tuple[str, str]] = Counter()
    for _, request in events.requests:
        moment = events.moment(request.at_utc_seconds - request.latency_seconds)
        if request.degraded and moment is not None and moment.arm == arm and moment.phase in measured:
            degraded[moment.phase, request.attributes.get("degraded_by", "")] += 1
    for policy, counts in refused.items():
        calls = sum(counts.values())
        # An answer names the reason and not who gave it: it is shared among those that refused for it in that phase.
        answers = sum(degraded[key] * n / everybody[key] for key, n in counts.items())
        reasons: Counter[str] = Counter()
        phases: Counter[str] = Counter()
        for (phase, reason), n in counts.items():
            reasons[reason] += n
            phases[facts.title(phase)] += n
        counted = ", ".join(f"{reason} {n:,}×" for reason, n in reasons.most_common())
        where = ", ".join(f"{phase} {n:,}" for phase, n in phases.most_common(3))
        evidence = [f"{policy} refused {calls:,} calls before they began: {counted} (by phase: {where})"]
        if answers:
            evidence.append(
                f"about {answers:,.0f} of {sum(degraded.values()):,} degraded answers name that as the reason"
            )
        yield Hypothesis(
            claim=f"{policy} is not asked: its limit or breaker refuses, and answers go out without it",
            strength=round(min(1.0, (answers or calls * 0.5) / total), 3),
            evidence=tuple(evidence),
            against=("a refusal is a consequence: what made the limit or breaker act came first",),
            disproved_by="the answers stay degraded with the breaker and the limit switched off",
        )


def _from_cohorts(
    facts: RunFacts, arm: str, compared: Sequence[Compared], total: float
) -> Iterator[Hypothesis]:
    best: dict[tuple[str, str], tuple[Cohort, str]] = {}
    for each in compared:
        if f"in {arm}" not in each.what or "server" in each.what:
            continue
        for cohort in each.worse:
            key = (cohort.dimension, cohort.value)
            if not cohort.outcome and (key not in best or cohort.excess > best[key][0].excess):
                best[key] = (cohort, each.what)
    faults = facts.workload.get("faults", "")
    for (dimension, value), (cohort, what) in best.items():
        evidence = [
            f"{cohort.share * 100:.1f} % of its {cohort.n:,} requests are {what.partition(',')[0]}, of the other "
            f"{cohort.rest_n:,} {cohort.rest_share * 100:.1f} % (difference {_bounds(cohort)})"
        ]
        if dimension == "phase":
            claim = f"what happens in phase {value!r} does it"
            evidence += [f"the plan's faults: {faults}"] if faults else []
            disproved = "the same requests without that phase's fault are as bad"
        elif dimension == "key":
            claim = f"it is the keys: {value}"
            disproved = "the same load with its keys spread evenly (alpha 0) is as bad"
        elif dimension == "sent":
            claim = "the sender, and not the service: those are requests that were sent late"
            disproved = "requests that were sent in time are as bad"
        elif dimension == "moment":
            claim = f"a transition: {value}"
            disproved = "a phase of twice the length has twice as many bad requests"
        else:
            claim = f"{dimension}: {value}"
            disproved = "with the same mix of everything else, the difference is gone"
        yield Hypothesis(
            claim=claim,
            strength=round(min(1.0, cohort.excess / total) * 0.9, 3),
            evidence=tuple(evidence),
            against=("where it shows is not why",),
            disproved_by=disproved,
        )


def _from_phases(
    facts: RunFacts, own: Sequence[Standing], trouble: dict[str, float], total: float, known: Sequence[str]
) -> Iterator[Hypothesis]:
    """Phases that hold far more trouble than requests, in runs too short for an interval that says so."""
    requests = sum(each.n for each in own)
    for each in own:
        excess = trouble[each.phase] / total - each.n / requests
        claim = f"what happens in phase {facts.title(each.phase)!r} does it"
        if excess < _FAR_MORE or claim in known:
            continue
        faults = facts.workload.get("faults", "")
        yield Hypothesis(
            claim=claim,
            strength=round(excess * 0.5, 3),
            evidence=(
                f"{trouble[each.phase] / total * 100:.0f} % of the requests in trouble are of this phase, and "
                f"{each.n / requests * 100:.0f} % of all requests",
                *((f"the plan's faults: {faults}",) if faults else ()),
            ),
            against=("the run is too short to tell it from chance: too few half seconds in that phase",),
            disproved_by="a run with more cycles spreads the trouble over other phases",
        )


def _bounds(cohort: Cohort) -> str:
    return f"{cohort.difference * 100:+.1f} points, {cohort.low * 100:+.1f} to {cohort.high * 100:+.1f}"


def _innocent(compared: Sequence[Compared], bottlenecks: Sequence[PhaseBottleneck], arm: str) -> list[str]:
    found = []
    for each in compared:
        if f"in {arm}" not in each.what:
            continue
        for cohort in each.cohorts:
            close = cohort.low > -0.05 and cohort.high < 0.05
            if not cohort.worse and close and cohort.dimension in ("key", "route", "sent", "cycle"):
                found.append(
                    f"{cohort.dimension} = {cohort.value}: {cohort.share * 100:.1f} % "
                    f"{each.what.partition(',')[0]}, the rest "
                    f"{cohort.rest_share * 100:.1f} % ({_bounds(cohort)})"
                )
    own = [each for each in bottlenecks if each.arm == arm]
    for cause, name, mark in (
        ("loop", "a call that holds up the event loop", "the loop was on time"),
        ("lock", "a lock", "waited for a lock"),
        ("io", "files", "waited for files"),
    ):
        rows = [suspect for each in own for suspect in each.found.suspects if suspect.cause == cause]
        said = [next((words for words in row.against if mark in words), "") for row in rows]
        # What was not looked at is not ruled out.
        if rows and all(said) and all(row.strength < _HARDLY for row in rows):
            found.append(
                f"{name}: in no phase (at most {max(row.strength for row in rows):.2f} of 1; {said[0]})"
            )
    return found


def next_steps(
    facts: RunFacts,
    arm: str,
    events: RunEvents,
    standings: Sequence[Standing],
    hypotheses: Sequence[Hypothesis],
    mechanisms: Sequence[str],
) -> list[NextStep]:
    """The commands to run next, the most telling first."""
    words = list(facts.words)
    steps: list[NextStep] = []

    def step(changed: list[str], changes: str, tells: str) -> None:
        steps.append(NextStep(command=" ".join(changed), changes=changes, tells=tells))

    half = _with(words, "--rate", f"{facts.rate_per_second / 2:g}")
    if not facts.validity.valid:
        step(
            words,
            "nothing but the moment: run it on an idle machine",
            "if it is not valid again, the rate is too high here",
        )
        step(
            half,
            f"the rate: {facts.rate_per_second / 2:g}/s",
            "a valid run says whether the trouble needs the load at all",
        )
    elif facts.quick:
        step(
            [word for word in words if word != "--quick"],
            "the length of the phases and the number of cycles",
            "the same story with narrower intervals, or it was chance",
        )
    ablated = {mechanism for each in facts.arms for mechanism in each.without}
    if arm != facts.arms[0].name:
        for mechanism, why in _mechanisms(arm, events, standings, mechanisms):
            if mechanism not in ablated and len(steps) < _MOST_STEPS - 1:
                step(
                    [*words, "--ablate", mechanism],
                    f"one mechanism: {mechanism} is off, in an arm of its own",
                    f"{why}; if that arm is as good, it did not help, and if it is better, it did harm",
                )
    loaded = any(word in each.claim for each in hypotheses[:3] for word in ("processor", "wait", "refuses"))
    if facts.validity.valid and loaded:
        step(
            half,
            f"the rate: {facts.rate_per_second / 2:g}/s",
            "a queue is gone at half the load; a slow call is not",
        )
    step(
        _with(words, "--seed", str(facts.seed + 1)),
        f"the seed: {facts.seed + 1}",
        "other arrivals, keys and service times: what stays is the system, what goes was the draw",
    )
    return steps[:_MOST_STEPS]


def _mechanisms(
    arm: str, events: RunEvents, standings: Sequence[Standing], mechanisms: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Those whose work shows in the record, the busiest where the trouble was first."""
    troubled = {
        each.phase: min(1.0, each.bad_share + each.degraded_share) for each in standings if each.arm == arm
    }
    acted: Counter[str] = Counter()
    weight: dict[str, float] = {}
    for (who, phase, _, action, reason), n in events.actions.items():
        word = _MECHANISM_OF.get(reason if action == "refused" else action)
        if who == arm and word is not None:
            acted[word] += n
            weight[word] = weight.get(word, 0.0) + n * troubled.get(phase, 0.0)
    for word in sorted(acted, key=lambda each: -weight[each]):
        for mechanism in mechanisms:
            if word in mechanism:
                yield mechanism, f"it acted {acted[word]:,} times"


def _with(words: Sequence[str], option: str, value: str) -> list[str]:
    changed = list(words)
    if option in changed:
        changed[changed.index(option) + 1] = value
        return changed
    return [*changed, option, value]
