"""A diagnosis as text: read from the top, each rung shorter than a screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairlead.charts import format_value, unit_of
from fairlead.cli.outcome import one_line
from fairlead.diagnosis.cohorts import Compared
from fairlead.diagnosis.run_facts import (
    Change,
    Hypothesis,
    Journal,
    PhaseBottleneck,
    RunDiagnosis,
    SlowRequest,
)

__all__ = ["as_text"]

_WIDTH = 118
_COHORTS = 6
_HYPOTHESES = 5
_ORDER = {"worse": 0, "no interval": 1, "better": 2}


def as_text(found: RunDiagnosis, directory: Path) -> str:
    """All rungs. Names out of the record cannot drive the terminal."""
    lines: list[str] = []
    for line in _lines(found, directory):
        lead = line[: len(line) - len(line.lstrip())]
        lines.append(lead + one_line(line[len(lead) :]))
    return "\n".join(lines)


def _lines(found: RunDiagnosis, directory: Path) -> Iterator[str]:
    yield from _wrapped(found.summary, "")
    if found.hypotheses:
        first = found.hypotheses[0]
        yield from _wrapped(f"Most likely: {first.claim} ({first.strength:.2f} of 1).", "")
    if found.next_steps:
        yield from _wrapped(f"Next: {found.next_steps[0].command}", "")

    yield from _head(1, "reproduce")
    yield f"  {found.command}"
    if found.valid:
        yield f"  valid; seed {found.seed} decides arrivals, keys and service times"
    for reason in found.reasons:
        yield from _wrapped(reason if found.valid else f"NOT VALID: {reason}", "  ")
    yield from _standings(found)
    for missed in found.missed_targets:
        yield from _wrapped(f"missed: {missed}", "  ")

    yield from _head(2, "look: events, logs and traces")
    yield from _journal(found.journal, found.arm)

    yield from _head(3, "compare: who is hit more than the rest")
    for each in found.compared:
        yield from _cohorts(each)

    yield from _head(4, "isolate: what the change did")
    yield from _changes(found.changes)

    yield from _head(5, "suspect: what it may be, the largest share of the trouble first")
    yield from _bottlenecks(found.bottlenecks, found)
    for number, hypothesis in enumerate(found.hypotheses[:_HYPOTHESES], 1):
        yield from _hypothesis(number, hypothesis)
    if not found.hypotheses:
        yield "  nothing: no request was slow, failed or degraded more than the rest"
    for innocent in found.ruled_out:
        yield from _wrapped(f"not it: {innocent}", "  ")

    yield from _head(6, "try: one thing at a time")
    for step in found.next_steps:
        yield f"  {step.command}"
        yield from _wrapped(f"changes {step.changes}: {step.tells}", "      ")
    yield ""
    yield f"figures and charts: {directory / 'report.html'}"


def _head(number: int, title: str) -> Iterator[str]:
    yield ""
    yield f"{number}  {title}"


def _wrapped(text: str, indent: str, hang: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]


def _seconds(value: float | None) -> str:
    return "–" if value is None else format_value(value, "seconds")


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _table(rows: Sequence[Sequence[str]], indent: str = "  ") -> Iterator[str]:
    """Columns to the left, figures to the right of theirs."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield (indent + "  ".join(cells)).rstrip()


def _standings(found: RunDiagnosis) -> Iterator[str]:
    slow = f"slow (> {_seconds(found.slow_seconds)}) or failed"
    rows = [("arm", "phase", "n", "p99", "95 % interval", "× its calmest", "failed", "degraded", slow)]
    others = {each.arm for each in found.standings} - set(_shown(found))
    for each in found.standings:
        if each.arm in others:
            continue
        bounds = f"{_seconds(each.p99_low)} – {_seconds(each.p99_high)}"
        rows.append(
            (
                each.arm,
                found.titles.get(each.phase, each.phase),
                f"{each.n:,}",
                _seconds(each.p99_seconds),
                "too few" if each.p99_low is None or each.p99_high is None else bounds,
                "–" if each.times_calmest is None else f"{each.times_calmest:.1f}",
                _percent(each.failed_share),
                _percent(each.degraded_share),
                _percent(each.bad_share),
            )
        )
    yield from _table(rows)
    if others:
        yield from _wrapped(f"and {len(others)} more arms, each by --arm: {', '.join(sorted(others))}", "  ")


def _journal(journal: Journal, arm: str) -> Iterator[str]:
    counted = ", ".join(f"{folder} {n:,}" for folder, n in journal.events.items())
    cut = f"; lines cut off at the end of a file: {journal.truncated}" if journal.truncated else ""
    twice = f"; {journal.duplicates} delivered twice, counted once" if journal.duplicates else ""
    yield from _wrapped(f"events: {counted}{cut}{twice}", "  ")
    ended = ", ".join(f"{ending} {n:,}" for ending, n in journal.endings.items())
    yield from _wrapped(f"requests of {arm} ended: {ended}", "  ")
    yield from _listed("changes of state", journal.states, "none: no breaker opened, no limit told of a move")
    yield from _listed(
        f"what the policies of {arm} did", journal.actions, "nothing that was not the straight way"
    )
    yield from _slowest(f"slowest requests of {arm}, at the client", journal.slowest)
    yield from _slowest("… and at the server, whose ids are its own", journal.slowest_at_server)
    yield from _listed("dead letters", journal.dead_letters, "none")
    yield from _listed("logs", journal.log_lines, "nothing but the usual lines")
    yield from _listed("traces", journal.traces, "none")


def _listed(title: str, lines: Sequence[str], none: str) -> Iterator[str]:
    if len(lines) <= 1:
        yield from _wrapped(f"{title}: {lines[0] if lines else none}", "  ")
        return
    yield f"  {title}:"
    for line in lines:
        yield from _wrapped(line, "    ")


def _slowest(title: str, requests: Sequence[SlowRequest]) -> Iterator[str]:
    if requests:
        yield f"  {title}:"
        yield from _table(
            [(each.request_id, each.phase, _seconds(each.seconds), each.said) for each in requests], "    "
        )


def _cohorts(each: Compared) -> Iterator[str]:
    yield from _wrapped(
        f"{each.what}: {each.bad:,} of {each.n:,}; {each.comparisons} compared, with intervals that hold together",
        "  ",
    )
    worse = each.worse
    rows = [
        (
            f"{cohort.dimension} = {cohort.value}" + (" (an outcome)" if cohort.outcome else ""),
            f"{_percent(cohort.share)} of {cohort.n:,}",
            f"the rest {_percent(cohort.rest_share)}",
            f"{cohort.difference * 100:+.1f} points [{cohort.low * 100:+.1f}, {cohort.high * 100:+.1f}]",
            f"{cohort.excess:,.0f} more than its share",
        )
        for cohort in worse[:_COHORTS]
    ]
    if rows:
        yield from _table(rows, "    ")
    if len(worse) > _COHORTS:
        yield f"    and {len(worse) - _COHORTS} lighter ones (--json has all)"
    if not worse and each.comparisons:
        yield "    nobody is hit more than chance explains"
    if each.refused:
        yield from _wrapped(f"too few to say: {'; '.join(each.refused[:4])}", "    ")
        if len(each.refused) > 4:
            yield f"    and {len(each.refused) - 4} more"


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    by_what: dict[str, list[Change]] = {}
    for change in changes:
        by_what.setdefault(change.what, []).append(change)
    for what, rows in by_what.items():
        told = [row for row in rows if row.verdict in ("better", "worse")]
        others = sum(row.verdict == "not told apart" for row in rows)
        bare = sum(row.verdict == "no interval" for row in rows)
        rest = f"; {others} not told apart" if others else ""
        rest += f"; {bare} moved, without an interval to tell by" if bare else ""
        yield from _wrapped(
            f"{what}: {len(told)} of {len(rows)} figures moved by more than their intervals{rest}", "  "
        )
        if told:
            shown = [
                (
                    f"{row.metric}, {row.phase}",
                    f"{format_value(row.before, unit_of(row.unit))} → {format_value(row.after, unit_of(row.unit))}",
                    row.verdict,
                )
                for row in sorted(told, key=lambda row: _ORDER[row.verdict])
            ]
            yield from _table(shown, "    ")


def _much(row: Change) -> bool:
    """A figure without an interval is shown when it moved by more than a third."""
    return row.verdict == "no interval" and abs(row.after - row.before) > abs(row.before) / 3


def _bottlenecks(rows: Sequence[PhaseBottleneck], found: RunDiagnosis) -> Iterator[str]:
    if not rows:
        yield from _wrapped(found.bottlenecks_missing, "  ")
        return
    yield "  what the gauges say (processor, loop, locks, files, calls):"
    groups: dict[tuple[str, str, str], list[PhaseBottleneck]] = {}
    for row in rows:
        if row.arm in _shown(found):
            named = row.downstream or "" if row.found.verdict == "downstream" else ""
            groups.setdefault((row.arm, row.found.verdict, named), []).append(row)
    for (arm, verdict, named), each in groups.items():
        by = f" ({named})" if named else ""
        where = ", ".join(
            f"{found.titles.get(row.phase, row.phase)} ({row.agreeing} of {row.cycles} cycles)"
            for row in each
        )
        yield from _wrapped(f"{arm}: {verdict}{by} in {where}: {each[0].found.reason}", "    ")
    yield ""


def _shown(found: RunDiagnosis) -> tuple[str, ...]:
    """The arm that is looked into, and the first one to see it against; an ablation can have eighteen."""
    return (found.standings[0].arm, found.arm)


def _hypothesis(number: int, hypothesis: Hypothesis) -> Iterator[str]:
    yield from _wrapped(f"{number}. {hypothesis.claim}  ({hypothesis.strength:.2f} of 1)", "  ")
    for said in hypothesis.evidence:
        yield from _wrapped(f"for:     {said}", "     ", "         ")
    for said in hypothesis.against:
        yield from _wrapped(f"against: {said}", "     ", "         ")
    yield from _wrapped(f"wrong if {hypothesis.disproved_by}", "     ", "         ")
