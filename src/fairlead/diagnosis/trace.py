"""What a trace says about where its time went.

A waterfall chart shows three hundred bars and leaves the finding to the eye. Here three questions are answered in
seconds: which spans the duration is made of (the critical path), which call was made again and again under one
parent (N+1), and which calls waited for one another although nothing shows that they had to.

A span whose parent is not among the spans is a root. Spans whose parents form a circle belong to no root and are
left out. What a child did after its parent had ended is not the parent's time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import isfinite

import msgspec

from fairlead.errors import InvalidInput
from fairlead.telemetry.bounds import check_number, check_whole

__all__ = [
    "RecordedSpan",
    "RepeatedCall",
    "Step",
    "Waterfall",
    "critical_path",
    "repeated_calls",
    "waterfalls",
]


class RecordedSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work, as a tracing system recorded it."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    """Empty for a root."""
    name: str
    start_seconds: float
    """Since any moment that the spans of a trace share."""
    end_seconds: float
    kind: str = ""
    """As OpenTelemetry calls it: `server`, `client` (a call to another service), `producer`, `consumer` or `internal`;
    empty when the record does not say."""
    failed: bool = False
    attributes: dict[str, bool | int | float | str] = {}
    links: tuple[str, ...] = ()
    """Ids of spans that it is linked with, such as the load that a request waited for."""

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


class Step(msgspec.Struct, frozen=True):
    """A part of the critical path."""

    span: RecordedSpan
    seconds: float
    """In which the root waited for this span's own work and for none of its children."""


class RepeatedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call made many times under one parent."""

    parent: RecordedSpan
    name: str
    count: int
    seconds: float
    """From the first to the last, without the gaps in which none ran."""
    sequential: bool
    """None overlapped another: one after the other, as in a loop that awaits."""


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """Calls under one parent, each begun after the last had ended."""

    parent: RecordedSpan
    calls: tuple[RecordedSpan, ...]
    seconds: float
    """Of all, one after the other."""
    saved_seconds: float
    """What running them side by side would save, if none needs another's answer: all but the longest."""


def critical_path(spans: Iterable[RecordedSpan]) -> list[Step]:
    """The spans that the longest root's duration is made of, in the order of time; their seconds add up to it.

    At each moment the root waits for the child that ends last of those begun; where none runs, for its own work.
    Raises InvalidInput without spans, or for one whose times are no times.
    """
    roots, children = _tree(spans)
    root = max(roots, key=lambda span: span.seconds)
    steps: list[Step] = []
    # From the end backwards: (span, until), or (span, None, seconds) for a stretch of its own work.
    waiting: list[tuple[RecordedSpan, float, bool]] = [(root, root.end_seconds, False)]
    while waiting:
        span, until, own = waiting.pop()
        if own:
            steps.append(Step(span, until))
            continue
        todo: list[tuple[RecordedSpan, float, bool]] = []
        cursor = until
        for child in sorted(children[span.span_id], key=lambda each: each.end_seconds, reverse=True):
            end = min(child.end_seconds, cursor)
            start = max(child.start_seconds, span.start_seconds)
            if start >= end or start >= cursor:
                continue
            if cursor > end:
                todo.append((span, cursor - end, True))
            todo.append((_clipped(child, start), end, False))
            cursor = start
        if cursor > span.start_seconds:
            todo.append((span, cursor - span.start_seconds, True))
        waiting.extend(reversed(todo))
    steps.reverse()
    return steps


def repeated_calls(spans: Iterable[RecordedSpan], *, at_least: int = 5) -> list[RepeatedCall]:
    """Calls of one name made `at_least` times under one parent, the costliest first.

    at_least: 2 or more. Raises InvalidInput for less, without spans, or for times that are none.
    """
    check_whole("at_least", at_least, low=2, high=2**31)
    found: list[RepeatedCall] = []
    for parent, children in _families(spans):
        by_name: defaultdict[str, list[RecordedSpan]] = defaultdict(list)
        for child in children:
            by_name[child.name].append(child)
        for name, calls in by_name.items():
            if len(calls) >= at_least:
                covered, sequential = _covered(calls)
                found.append(
                    RepeatedCall(
                        parent=parent, name=name, count=len(calls), seconds=covered, sequential=sequential
                    )
                )
    return sorted(found, key=lambda each: -each.seconds)


def waterfalls(spans: Iterable[RecordedSpan], *, saving: float = 0.005) -> list[Waterfall]:
    """Chains of calls under one parent that never overlap, by what running them side by side would save.

    Whether one needed another's answer a trace does not say: look before you change it. saving: seconds below which a
    chain is not worth a line, 0 or more. Raises InvalidInput for another number, without spans, or for times that are
    none.
    """
    check_number("saving", saving, low=0.0)
    found: list[Waterfall] = []
    for parent, children in _families(spans):
        for chain in _chains(children):
            total = sum(call.seconds for call in chain)
            saved = total - max(call.seconds for call in chain)
            if len(chain) > 1 and saved >= saving:
                found.append(Waterfall(parent=parent, calls=tuple(chain), seconds=total, saved_seconds=saved))
    return sorted(found, key=lambda each: -each.saved_seconds)


def _chains(children: Sequence[RecordedSpan]) -> list[list[RecordedSpan]]:
    """The children, split where one begins while an earlier one still runs; those that overlap are in no chain."""
    ordered = sorted(children, key=lambda span: (span.start_seconds, span.end_seconds))
    groups: list[list[RecordedSpan]] = []
    busy_until = float("-inf")
    for span in ordered:
        if span.start_seconds >= busy_until:
            groups.append([span])
        else:
            groups[-1].append(span)
        busy_until = max(busy_until, span.end_seconds)
    chains: list[list[RecordedSpan]] = [[]]
    for group in groups:
        if len(group) == 1:
            chains[-1].extend(group)
        else:
            chains.append([])
    return [chain for chain in chains if chain]


def _covered(calls: Sequence[RecordedSpan]) -> tuple[float, bool]:
    """Seconds in which at least one of `calls` ran, and whether never two."""
    covered, sequential = 0.0, True
    until = float("-inf")
    for call in sorted(calls, key=lambda span: span.start_seconds):
        if call.start_seconds < until:
            sequential = False
        covered += max(0.0, call.end_seconds - max(call.start_seconds, until))
        until = max(until, call.end_seconds)
    return covered, sequential


def _clipped(span: RecordedSpan, start: float) -> RecordedSpan:
    return span if span.start_seconds == start else msgspec.structs.replace(span, start_seconds=start)


def _families(spans: Iterable[RecordedSpan]) -> list[tuple[RecordedSpan, list[RecordedSpan]]]:
    """Every span that has children, with them."""
    roots, children = _tree(spans)
    waiting, found = list(roots), []
    while waiting:
        span = waiting.pop()
        if below := children[span.span_id]:
            found.append((span, below))
            waiting.extend(below)
    return found


def _tree(
    spans: Iterable[RecordedSpan],
) -> tuple[list[RecordedSpan], defaultdict[str, list[RecordedSpan]]]:
    """The roots, and the children by their parent's id. A span that came twice counts once."""
    known = {span.span_id: span for span in spans}
    if not known:
        raise InvalidInput("no spans: give those of at least one trace")
    children: defaultdict[str, list[RecordedSpan]] = defaultdict(list)
    roots: list[RecordedSpan] = []
    for span in known.values():
        if not (isfinite(span.start_seconds) and isfinite(span.end_seconds) and span.seconds >= 0):
            raise InvalidInput(
                f"span {span.span_id!r} ({span.name[:80]!r}) runs from {span.start_seconds} to {span.end_seconds}: "
                f"expected finite seconds, the end not before the start"
            )
        if span.parent_id in known and span.parent_id != span.span_id:
            children[span.parent_id].append(span)
        else:
            roots.append(span)
    if not roots:
        raise InvalidInput("the spans have no root: their parents form a circle")
    return roots, children
