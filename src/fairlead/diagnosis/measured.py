"""What is known of one process in one window of time, and where it comes from.

A fact that was not measured is None, never 0: a loop without a watch is not a loop on time. Shares are of the window or
of the requests' time, as each field says. Two sources fill them: two scrapes of /metrics, and traces. Means over a long
window hide the minute that hurt, so take two scrapes close together, while it hurts.

Durations are of requests that ended. One that hangs is in none of them, so the gauge of what is in flight is read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isfinite

import msgspec

from fairlead.diagnosis.trace import RecordedSpan, critical_path
from fairlead.errors import InvalidInput
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.scrape import Scrape

__all__ = ["Measured", "measured_between", "measured_in_spans"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one process in one window. Raises InvalidInput for a number that is negative or not finite."""

    seconds: float | None = None
    """Length of the window."""
    processes: int | None = None
    """Processes whose facts these are the mean of; one, if you can: a mean hides the one that is saturated."""
    requests_ended: float | None = None
    request_seconds: float | None = None
    """Mean duration of the requests that ended, at the server."""
    in_flight: float | None = None
    """Requests in the making at once, mean."""
    cpu_share: float | None = None
    """Processor time over the window's, of one core, or of the quota where that is less; above 1 with native threads.
    Of one core even on a machine with many: Python's own code uses no more."""
    cpu_wait_share: float | None = None
    """Share of the window in which the main thread could have run and had no processor."""
    gc_share: float | None = None
    """Share of the window in which the garbage collector held all Python code up."""
    loop_late_share: float | None = None
    """Sum of the loop's lag over the window: at least this share of the time the loop was held up. One stall of 10 s is
    one sample, which a p99 does not see and this does."""
    loop_lag_p99_seconds: float | None = None
    loop_stalled_seconds: float | None = None
    """For how long the loop has been held up at the window's end."""
    downstream_share: float | None = None
    """Of the requests' time, in which they waited for another service or a database. From traces: on the critical path.
    From metrics: seconds of all calls over seconds of all requests, at most 1; calls side by side count twice."""
    downstream: str | None = None
    """The one with the most of it."""
    downstream_call_seconds: float | None = None
    """Mean duration of a call to `downstream`, as the caller saw it."""
    callee_share: float | None = None
    """Of the time in downstream calls, in which the callee's own spans say that it worked."""
    queue_share: float | None = None
    """Of the requests' time, in the queue of a load shedder."""
    limit_use: float | None = None
    """Calls in flight over calls allowed, of the fullest limit or pool."""
    lock_waiters: float | None = None
    """Tasks and threads that waited for a lock or semaphore, mean (`WaitSampler`)."""
    io_waiters: float | None = None
    """Threads that waited for a file, mean (`WaitSampler`)."""
    loop_blocked_share: float | None = None
    """Share of the window in which the loop's thread slept in something that is not its selector (`WaitSampler`)."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and name != "downstream" and not (isfinite(value) and value >= 0):
                raise InvalidInput(f"Measured.{name} = {value}: expected a finite number, 0 or more, or None")

    def filled(self, other: Measured) -> Measured:
        """These facts, with what they lack taken from `other`."""
        lacking = {
            name: getattr(other, name) for name in self.__struct_fields__ if getattr(self, name) is None
        }
        return msgspec.structs.replace(self, **lacking)


def measured_between(
    before: str,
    after: str,
    *,
    seconds: float,
    requests: str = "http_server_request_duration_seconds",
    quota: float = 1.0,
) -> Measured:
    """The facts in two scrapes of one process, `seconds` apart.

    requests: the histogram of the requests' durations. quota: cores that the process may use, where less than one.
    Raises BrokenDocument for a page that is none, InvalidInput when the process was restarted in between: what it
    counted before is gone.
    """
    check_number("seconds", seconds, above=0.0)
    check_number("quota", quota, above=0.0)
    pages = _Pages(Scrape(before), Scrape(after))
    pages.check_same_process()
    processes = pages.after.by("fairlead_workers", "state")
    count = max(1, round(sum(processes.values()))) if processes else 1

    def share(name: str) -> float | None:
        grown = pages.grown(name)
        return None if grown is None else grown / seconds / count

    ended, spent = pages.grown(f"{requests}_count"), pages.grown(f"{requests}_sum")
    active = pages.mean("http_server_active_requests")
    in_flight = None if spent is None and active is None else max((spent or 0.0) / seconds, active or 0.0)
    cpu = share("process_cpu_seconds_total")
    queued = pages.grown("fairlead_admission_queue_seconds_sum")
    downstream, downstream_share, call_seconds = _downstream(pages, spent, active)
    waiting = pages.grown_by("fairlead_waiter_seconds_total", "on")
    return Measured(
        seconds=seconds,
        processes=count,
        requests_ended=ended,
        request_seconds=spent / ended if spent is not None and ended else None,
        in_flight=None if in_flight is None else in_flight / count,
        cpu_share=None if cpu is None else cpu / min(1.0, quota),
        cpu_wait_share=share("process_main_thread_wait_seconds_total"),
        gc_share=share("python_gc_pause_seconds_sum"),
        loop_late_share=share("event_loop_lag_seconds_sum"),
        loop_lag_p99_seconds=pages.quantile("event_loop_lag_seconds", 0.99),
        loop_stalled_seconds=pages.after.total("event_loop_stalled_seconds"),
        downstream=downstream,
        downstream_share=downstream_share,
        downstream_call_seconds=call_seconds,
        queue_share=min(1.0, queued / spent) if queued is not None and spent else None,
        limit_use=_fullest(pages.after),
        lock_waiters=waiting["lock"] / seconds / count if "lock" in waiting else None,
        io_waiters=waiting["io"] / seconds / count if "io" in waiting else None,
        loop_blocked_share=waiting["loop_thread"] / seconds / count if "loop_thread" in waiting else None,
    )


def measured_in_spans(traces: Iterable[Sequence[RecordedSpan]]) -> Measured:
    """What traces say of the requests' time; a call to another service is a span of kind `client`.

    Where no span says that it is one, nothing is known of downstreams. Raises InvalidInput as `critical_path` does.
    """
    roots, total, called, served = 0, 0.0, 0.0, 0.0
    by_name: dict[str, list[float]] = {}
    knows_callee = knows_calls = False
    for spans in traces:
        known = {span.span_id: span for span in spans}
        steps = critical_path(spans)
        roots += 1
        total += sum(step.seconds for step in steps)
        calls: dict[str, float] = {}
        for step in steps:
            call = _outermost_call(step.span, known)
            if call is None:
                continue
            called += step.seconds
            calls[call.span_id] = calls.get(call.span_id, 0.0) + step.seconds
            if step.span.span_id != call.span_id:
                served += step.seconds
        knows_calls |= any(span.kind == "client" for span in spans)
        knows_callee |= any(span.kind == "server" and span.parent_id in known for span in spans)
        for span_id, spent in calls.items():
            by_name.setdefault(known[span_id].name, []).append(spent)
    heaviest = max(by_name, key=lambda name: sum(by_name[name]), default=None)
    return Measured(
        requests_ended=float(roots),
        request_seconds=total / roots if roots else None,
        downstream=heaviest,
        downstream_share=called / total if knows_calls and total else None,
        downstream_call_seconds=None if heaviest is None else sum(by_name[heaviest]) / len(by_name[heaviest]),
        callee_share=served / called if knows_callee and called else None,
    )


def _outermost_call(span: RecordedSpan, known: dict[str, RecordedSpan]) -> RecordedSpan | None:
    found: RecordedSpan | None = None
    passed: set[str] = set()
    at = known.get(span.span_id)  # a step's span may be clipped
    while at is not None and at.span_id not in passed:
        passed.add(at.span_id)
        if at.kind == "client":
            found = known[at.span_id]
        at = known.get(at.parent_id)
    return found


class _Pages:
    """Two scrapes of one process."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self.before = before
        self.after = after

    def check_same_process(self) -> None:
        started = [page.total("process_start_time_seconds") for page in (self.before, self.after)]
        cpu = self.grown("process_cpu_seconds_total")
        moved = started[0] is not None and started[1] is not None and abs(started[1] - started[0]) > 1.0
        if moved or (cpu is not None and cpu < 0):
            raise InvalidInput(
                "the process was restarted between the two scrapes: take two of the same process, not so far apart"
            )

    def grown(self, name: str) -> float | None:
        """How much a counter grew; from 0 where it appeared in between. None when it is on neither page."""
        last = self.after.total(name)
        return None if last is None else last - (self.before.total(name) or 0.0)

    def grown_by(self, name: str, label: str) -> dict[str, float]:
        first = self.before.by(name, label)
        return {
            key: max(0.0, value - first.get(key, 0.0)) for key, value in self.after.by(name, label).items()
        }

    def mean(self, gauge: str) -> float | None:
        values = [value for page in (self.before, self.after) if (value := page.total(gauge)) is not None]
        return max(0.0, sum(values) / len(values)) if values else None

    def quantile(self, name: str, q: float) -> float | None:
        """Of what was observed in between, straight between two bounds, as Prometheus' histogram_quantile."""
        first = self.before.buckets(name)
        counts = {edge: count - first.get(edge, 0.0) for edge, count in self.after.buckets(name).items()}
        total = counts.get(inf, 0.0)
        if total <= 0:
            return None
        below, seen = 0.0, 0.0
        for edge, count in counts.items():
            if count >= q * total:
                if edge == inf:
                    return below
                return below + (edge - below) * (q * total - seen) / (count - seen)
            below, seen = edge, count
        return below


def _downstream(
    pages: _Pages, spent: float | None, active: float | None
) -> tuple[str | None, float | None, float | None]:
    """The heaviest downstream, the share of all, and the mean call of the heaviest."""
    sums = pages.grown_by("fairlead_policy_call_duration_seconds_sum", "policy")
    counts = pages.grown_by("fairlead_policy_call_duration_seconds_count", "policy")
    for what, found in (("sum", sums), ("count", counts)):
        grown = pages.grown_by(f"db_client_query_duration_seconds_{what}", "database")
        found.update({f"database {name}": value for name, value in grown.items()})
    if not sums:
        return None, None, None
    heaviest = max(sums, key=lambda name: sums[name])
    if spent and not sums[heaviest]:
        return None, 0.0, None
    call_seconds = sums[heaviest] / counts[heaviest] if counts.get(heaviest) else None
    if spent:
        return heaviest, min(1.0, sum(sums.values()) / spent), call_seconds
    # Nothing ended: what is in flight is all there is to go by.
    calls = pages.mean("fairlead_policy_in_flight")
    if not active or calls is None:
        return heaviest, None, call_seconds
    waiting = pages.after.by("fairlead_policy_in_flight", "policy")
    return max(waiting, key=lambda name: waiting[name]), min(1.0, calls / active), call_seconds


def _fullest(page: Scrape) -> float | None:
    found = []
    for used, allowed, label in (
        ("fairlead_limit_in_flight", "fairlead_limit_allowed", "limit"),
        ("fairlead_policy_in_flight", "fairlead_policy_limit", "policy"),
        ("fairlead_admission_in_flight", "fairlead_admission_limit", "shedder"),
        ("db_client_pool_used_connections", "db_client_pool_connections", "database"),
    ):
        limits = page.by(allowed, label)
        found += [
            value / limits[name]
            for name, value in page.by(used, label).items()
            if 0 < limits.get(name, 0.0) < inf
        ]
    return max(found, default=None)
