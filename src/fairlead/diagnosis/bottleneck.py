"""What holds a process up: its processor, a held-up event loop, a lock, a disk or somebody else.

A slow service invites the wrong cure: a busy processor is blamed while requests wait for a database, and a database is
blamed whose answers lay ready while the loop was late. Each cause leaves several marks, and some marks are made by
another cause, so no mark counts alone:

    processor   used up, and the loop late with it; or one core of many, which a mean over all cores hides
    loop        late while the processor rests: one call computes in one stretch, or waits without `await`
    lock        waiters, while neither processor, loop nor downstream is busy; also a pool or limit that is full
    io          threads in reads, writes and fsyncs of files
    downstream  requests wait in calls, while the loop is on time: a late loop makes every call look slow

Each suspect says what speaks for it, what against it, what would disprove it and where to look next. What was not
measured is unknown and never 0; without enough of it, or with two suspects alike, the verdict is `inconclusive`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fairlead.diagnosis.measured import Measured

__all__ = ["Bottleneck", "Suspect", "Verdict", "find_bottleneck"]

Verdict = Literal["cpu", "loop", "lock", "io", "downstream", "inconclusive"]

CPU_BUSY = 0.5
"""Of one core. Up to half of it, a queue waits no longer than the work itself takes (M/M/1: ρ/(1−ρ) = 1)."""
CPU_SATURATED = 0.85
"""Of one core. From here on waiting is more than five times the work (ρ/(1−ρ) = 5.7): it decides the latency."""
CPU_WAIT = 0.1
"""Share of time runnable without a processor. A tenth is more than a scheduler needs: others take the cores."""
LAG = 0.1
"""Seconds, p99. What asyncio's debug mode calls a slow callback (`loop.slow_callback_duration`)."""
LAG_HARMLESS = 0.02
"""Seconds, p99. A fifth of that; timers ring to the millisecond, and a busy machine adds some."""
LATE = 0.1
"""Share of the time. Every tenth request, whenever it comes, meets a loop that is held up."""
MOST = 0.5
"""Of the requests' time. What takes more than half of it is the largest part, whatever the others are."""
SOME = 0.2
"""Of the requests' time. Ending it would save less than a fifth."""
FULL = 0.95
"""Of a limit or pool. One more caller waits or is refused."""
GC = 0.1
"""Share of the time. The collector usually takes one or two per cent."""
ALIKE = 0.15
"""Difference of strength below which two suspects are not told apart."""
LONGEST_WINDOW = 60.0
"""Seconds. A burst of six seconds is a tenth of it, and still moves a mean."""


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """One possible cause."""

    cause: Verdict
    strength: float
    """0–1: how far the measurements reach its thresholds, less what speaks against it. Not a probability."""
    evidence: tuple[str, ...]
    """What speaks for it, each with value and threshold."""
    against: tuple[str, ...] = ()
    disproved_by: str
    look_at: str


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """The suspects, the strongest first, and whether one of them may be called the cause."""

    verdict: Verdict
    reason: str
    """Why this verdict, in one sentence."""
    suspects: tuple[Suspect, ...]
    missing: tuple[str, ...]
    """What was not measured and would help, each with the way to measure it."""
    caveats: tuple[str, ...] = ()


def find_bottleneck(measured: Measured) -> Bottleneck:
    """What the facts say; pure, and the same for the same facts."""
    judged = (_cpu(measured), _loop(measured), _lock(measured), _io(measured), _downstream(measured))
    suspects = sorted((each for each in judged if each is not None), key=lambda each: -each.strength)
    verdict, reason = _verdict(measured, suspects)
    return Bottleneck(
        verdict=verdict,
        reason=reason,
        suspects=tuple(suspects),
        missing=tuple(how for name, how in _HOW.items() if getattr(measured, name) is None),
        caveats=_caveats(measured),
    )


_HOW = {
    "cpu_share": "processor: export_process(registry)",
    "loop_lag_p99_seconds": "loop lag: `async with LoopLag(registry)` in the lifespan",
    "in_flight": "requests in flight: MetricsMiddleware(app, registry=registry)",
    "downstream_share": "calls to others: policy.export(registry), export_engine(engine, registry), or traces with "
    "spans of kind client",
    "lock_waiters": "locks and files: `async with WaitSampler(registry)` in the lifespan",
}


def _verdict(measured: Measured, suspects: list[Suspect]) -> tuple[Verdict, str]:
    if not suspects:
        return "inconclusive", "nothing was measured that tells one cause from another"
    first = suspects[0]
    if first.strength < 0.5:
        unexplained = _unexplained(measured)
        if unexplained is not None and unexplained >= MOST:
            return (
                "inconclusive",
                f"{_percent(unexplained)} of the requests' time went by in nothing that was measured: a lock, a pool, "
                f"a sleep, or calls and files without instruments",
            )
        return "inconclusive", (
            f"no cause reaches its thresholds; the nearest, {first.cause}, is at {first.strength:.2f} of 1"
        )
    if len(suspects) > 1 and first.strength - suspects[1].strength < ALIKE:
        return "inconclusive", (
            f"{first.cause} ({first.strength:.2f}) and {suspects[1].cause} ({suspects[1].strength:.2f}) explain it "
            f"alike: end one of them, and measure again"
        )
    return first.cause, first.evidence[0]


def _cpu(m: Measured) -> Suspect | None:
    if m.cpu_share is None:
        return None
    demand = m.cpu_share + (m.cpu_wait_share or 0.0)
    strength = _ramp(demand, CPU_BUSY, CPU_SATURATED)
    evidence = [
        f"the process used {_percent(m.cpu_share)} of one core (saturated from {_percent(CPU_SATURATED)})"
    ]
    against = []
    look = "GET /debug/profile?seconds=10 on this process, or split the work over more processes"
    if m.cpu_wait_share is not None and m.cpu_wait_share >= CPU_WAIT:
        evidence.append(
            f"it waited for a processor in another {_percent(m.cpu_wait_share)} of the time (others' work from "
            f"{_percent(CPU_WAIT)})"
        )
        if m.cpu_share < CPU_BUSY:
            look = (
                "what else runs on this machine, and the quota of its control group (cpu.stat, nr_throttled)"
            )
    if m.gc_share is not None and m.gc_share >= GC:
        evidence.append(
            f"the garbage collector took {_percent(m.gc_share)} of the time (much from {_percent(GC)})"
        )
        look = "gc.freeze() after start-up and fewer live objects; " + look
    late = _lateness(m)
    if late is not None and late >= 1.0:
        evidence.append(f"the loop was late with it: {_lag(m)}")
    elif strength and late == 0.0 and m.in_flight is not None and demand < MOST * m.in_flight:
        # Few requests at a time can use a core up and leave the loop on time: then they are what it works on.
        strength *= 0.4
        against.append(
            f"the loop was on time ({_lag(m)}) with {m.in_flight:.1f} requests in flight, so they did not wait for the "
            f"processor: other threads use it"
        )
    elif late is None:
        strength *= 0.8
    if m.cpu_share < CPU_BUSY and demand < CPU_BUSY:
        against.append(
            f"the processor rested: {_percent(m.cpu_share)} of one core (busy from {_percent(CPU_BUSY)})"
        )
    return Suspect(
        cause="cpu",
        strength=_rounded(strength),
        evidence=tuple(evidence),
        against=tuple(against),
        disproved_by="the same latency at half the arrival rate: a queue for the processor would be gone",
        look_at=look,
    )


def _loop(m: Measured) -> Suspect | None:
    late = _lateness(m)
    if late is None and m.loop_blocked_share is None:
        return None
    strength = max(late or 0.0, _ramp(m.loop_blocked_share or 0.0, LATE / 2, LATE * 2))
    evidence, against = (
        [f"the loop was late: {_lag(m)}" if late is not None else "the loop's lag is unknown"],
        [],
    )
    if late == 0.0:
        evidence, against = [], [f"the loop was on time: {_lag(m)}"]
    look = "GET /debug/profile?seconds=10: the one frame below the loop that is wide is the call; move it to a thread"
    if m.loop_blocked_share is not None:
        said = f"its thread slept outside the selector in {_percent(m.loop_blocked_share)} of the time"
        (evidence if m.loop_blocked_share >= LATE else against).append(f"{said} (much from {_percent(LATE)})")
    if m.cpu_share is None:
        strength *= 0.7
    else:
        demand = m.cpu_share + (m.cpu_wait_share or 0.0)
        busy = _ramp(demand, CPU_BUSY, CPU_SATURATED)
        if not (m.loop_blocked_share or 0.0) >= LATE:
            strength *= 1.0 - 0.7 * busy
        if busy > 0.0:
            against.append(
                f"the processor was wanted for {_percent(demand)} of the time: a process that computes makes its "
                f"loop late"
            )
        else:
            evidence.append(
                f"the processor rested meanwhile: {_percent(m.cpu_share)} of one core (busy from {_percent(CPU_BUSY)})"
            )
    if m.gc_share is not None and m.gc_share >= GC and m.gc_share >= (m.loop_late_share or 0.0) / 2:
        against.append(f"the garbage collector alone held it for {_percent(m.gc_share)} of the time")
        strength *= 0.6
    return Suspect(
        cause="loop",
        strength=_rounded(strength),
        evidence=tuple(evidence) or ("no mark of it",),
        against=tuple(against),
        disproved_by="`loop.set_debug(True)` logs no callback that took longer than 100 ms",
        look_at=look,
    )


def _lock(m: Measured) -> Suspect | None:
    if m.lock_waiters is None and m.queue_share is None and m.limit_use is None:
        return None
    strength = 0.0
    evidence: list[str] = []
    against: list[str] = []
    if m.lock_waiters is not None:
        share = min(1.0, m.lock_waiters / max(m.in_flight if m.in_flight is not None else 1.0, 1.0))
        strength = _ramp(share, SOME, MOST)
        said = f"{m.lock_waiters:.1f} tasks and threads waited for a lock or semaphore"
        if m.in_flight is not None:
            said += f", with {m.in_flight:.1f} requests in flight"
        (evidence if share >= SOME else against).append(f"{said} (most from {_percent(MOST)})")
    if m.queue_share is not None and m.queue_share >= SOME:
        strength = max(strength, _ramp(m.queue_share, SOME, MOST))
        evidence.append(
            f"{_percent(m.queue_share)} of the requests' time passed in the shedder's queue "
            f"(most from {_percent(MOST)})"
        )
    if m.limit_use is not None and m.limit_use >= FULL:
        strength = max(strength, 0.4)
        evidence.append(f"a limit or pool was {_percent(m.limit_use)} full (full from {_percent(FULL)})")
    if m.cpu_share is not None:
        busy = _ramp(m.cpu_share + (m.cpu_wait_share or 0.0), CPU_BUSY, CPU_SATURATED)
        strength *= 1.0 - 0.7 * busy
        if busy:
            against.append(
                f"the processor was at {_percent(m.cpu_share)} of one core: who waits for the interpreter's own lock "
                f"looks the same"
            )
    if m.downstream_share is not None and m.downstream_share >= MOST:
        strength *= 0.5
        against.append(
            f"{_percent(m.downstream_share)} of the requests' time passed in calls to others: what is full may be full "
            f"because they are slow"
        )
    return Suspect(
        cause="lock",
        strength=_rounded(strength),
        evidence=tuple(evidence) or ("no mark of it",),
        against=tuple(against),
        disproved_by="throughput that grows with the number of requests in flight: behind one lock it does not",
        look_at="who holds it, and what it awaits meanwhile; a call under a lock is the usual one",
    )


def _io(m: Measured) -> Suspect | None:
    if m.io_waiters is None:
        return None
    share = min(1.0, m.io_waiters / max(m.in_flight if m.in_flight is not None else 1.0, 1.0))
    strength = _ramp(share, SOME, MOST)
    said = f"{m.io_waiters:.1f} threads waited for files"
    if m.in_flight is not None:
        said += f", with {m.in_flight:.1f} requests in flight"
    said += f" (most from {_percent(MOST)} of them)"
    against = []
    if m.cpu_share is not None and m.cpu_share >= CPU_SATURATED:
        strength *= 0.5
        against.append(f"the processor was at {_percent(m.cpu_share)} of one core")
    return Suspect(
        cause="io",
        strength=_rounded(strength),
        evidence=(said,) if share >= SOME else ("no mark of it",),
        against=tuple(against) if share >= SOME else (said, *against),
        disproved_by="the same latency with the files on a tmpfs",
        look_at="iostat -x 1 and /proc/pressure/io; fsyncs that could be one, files that could stay in memory",
    )


def _downstream(m: Measured) -> Suspect | None:
    if m.downstream_share is None:
        return None
    strength = _ramp(m.downstream_share, SOME, MOST)
    evidence: list[str] = []
    against: list[str] = []
    passed = f"{_percent(m.downstream_share)} of the requests' time passed in calls to others"
    said = f"{passed} (most from {_percent(MOST)})"
    if not m.downstream_share:
        said = "no call to another service was counted; one outside a Policy, an engine or a client span is not seen"
    (evidence if m.downstream_share >= SOME else against).append(said)
    if m.downstream is not None and m.downstream_call_seconds is not None and evidence:
        evidence.append(f"most of it in {m.downstream}: {_ms(m.downstream_call_seconds)} a call")
    if m.callee_share is not None:
        if m.callee_share >= MOST:
            evidence.append(
                f"the callees' own spans cover {_percent(m.callee_share)} of it (theirs from {_percent(MOST)})"
            )
        else:
            strength *= 0.3
            against.append(
                f"the callees' own spans cover only {_percent(m.callee_share)} of it: the rest lay between, in the "
                f"network, a connection pool, or here"
            )
    late = _lateness(m)
    lag = m.loop_lag_p99_seconds or 0.0
    short = m.downstream_call_seconds is None or lag >= 0.2 * m.downstream_call_seconds
    if late and short and not (m.callee_share or 0.0) >= MOST:
        strength *= 1.0 - 0.7 * late
        against.append(f"a late loop makes every call look slow, and it was late: {_lag(m)}")
    elif late == 0.0 and evidence:
        evidence.append(f"the loop was on time ({_lag(m)}), so the calls were as slow as they look")
    return Suspect(
        cause="downstream",
        strength=_rounded(strength),
        evidence=tuple(evidence) or ("no mark of it",),
        against=tuple(against),
        disproved_by="the downstream's own latency, measured at its side, is short",
        look_at=f"the metrics of {m.downstream or 'the downstream'} itself, then the critical path of a slow trace",
    )


def _lateness(m: Measured) -> float | None:
    """0 on time to 1 late; None when nobody watched."""
    known = [
        _ramp(value, low, high)
        for value, low, high in (
            (m.loop_lag_p99_seconds, LAG_HARMLESS, LAG),
            (m.loop_late_share, LATE / 2, LATE),
            (m.loop_stalled_seconds, LAG_HARMLESS, LAG),
        )
        if value is not None
    ]
    return max(known, default=None)


def _lag(m: Measured) -> str:
    parts = []
    if m.loop_lag_p99_seconds is not None:
        parts.append(f"lag p99 {_ms(m.loop_lag_p99_seconds)} (late from {_ms(LAG)})")
    if m.loop_late_share is not None:
        parts.append(
            f"held up for {_percent(m.loop_late_share)} of the time at least (late from {_percent(LATE)})"
        )
    if m.loop_stalled_seconds:
        parts.append(f"stalled for {m.loop_stalled_seconds:.1f} s at the end")
    return ", ".join(parts) or "its lag is unknown"


def _unexplained(m: Measured) -> float | None:
    """Share of the requests' time in nothing that was measured; None when too little is known to say."""
    if m.in_flight is None or m.in_flight <= 0 or m.cpu_share is None or m.downstream_share is None:
        return None
    return max(0.0, 1.0 - m.downstream_share - (m.queue_share or 0.0) - m.cpu_share / m.in_flight)


def _caveats(m: Measured) -> tuple[str, ...]:
    said = []
    if m.seconds is not None and m.seconds > LONGEST_WINDOW:
        said.append(
            f"means over {m.seconds:.0f} s hide a burst: take two scrapes within {LONGEST_WINDOW:.0f} s, while it is "
            f"slow"
        )
    if m.processes is not None and m.processes > 1:
        said.append(f"means of {m.processes} processes hide the one that is saturated: ask each")
    if m.requests_ended == 0 and m.in_flight:
        said.append(
            f"no request ended in the window and {m.in_flight:.0f} were in flight: durations say nothing here"
        )
    if m.downstream_share is not None and m.downstream_share >= 1.0 and m.callee_share is None:
        said.append(
            "calls side by side, and loads in the background, count in full: a trace tells what was waited for"
        )
    late = _lateness(m)
    if late or (m.cpu_share or 0.0) >= CPU_SATURATED:
        said.append(
            "requests that wait before the application reads them are in none of its durations: clients see more"
        )
    return tuple(said)


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _rounded(strength: float) -> float:
    return round(strength, 3)


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.095 or share == 0 else f"{share * 100:.1f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
