"""What comparisons add up to: counts by field, of the candidate and of the noise, that merge over processes.

A field that differs in 3 % of the answers is broken if control never differs from itself, and nothing if control does
so as often: so both are counted, on the same requests. Of a request whose control was asked twice it is kept which of
the two later answers, the candidate's and control's own, differ from the first. If the candidate answers as control
does, the two are exchangeable (they are asked in an order drawn by lot), so a request that tells them apart falls to
either side with probability one half; `discordant` is what a test of that needs.

Counts only: the test lies in `fairlead.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput
from fairlead.telemetry.event import ShadowCompared
from fairlead.telemetry.histogram import Histogram, HistogramSnapshot

__all__ = ["FieldCounts", "FieldExample", "ShadowReport", "ShadowTally"]

ARMS = ("control", "candidate", "control_beside", "candidate_beside")
_ANSWERED = ("same", "different")
_JUDGED = ("same", "different", "failed", "timeout")


class FieldCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in which a field differed from control's first answer."""

    differed: int = 0
    """The candidate's, of all compared."""
    only_candidate: int = 0
    """The candidate's and not control's second, of those compared twice."""
    only_again: int = 0
    """Control's second and not the candidate's."""
    both: int = 0
    """Both later answers."""


class FieldExample(msgspec.Struct, frozen=True, kw_only=True):
    """One difference, with what is personal in it replaced."""

    request_id: str
    control: str
    candidate: str


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """A mirror's comparisons so far, of one process or of several added up."""

    mirror: str
    outcomes: dict[str, int] = {}
    """Comparisons by outcome (`MirrorOutcome`)."""
    dropped: dict[str, int] = {}
    """Requests that were not compared, by reason (`MirrorDrop`)."""
    compared: int = 0
    """Comparisons whose fields count: all but `cut` and `unreadable`."""
    compared_twice: int = 0
    """Of them, those in which control was asked twice."""
    fields: dict[str, FieldCounts] = {}
    """By field; one that never differed is not in it. `error`: no answer where control gave one, or the reverse."""
    untracked: int = 0
    """Differences in fields beyond the number that is tracked, each once per request."""
    seconds: dict[str, HistogramSnapshot] = {}
    """Times of `control` and `candidate`, of requests that both answered. `control_beside` and `candidate_beside` are
    the fair comparison: of requests in which control was asked again beside the candidate, both after the first answer,
    in an order by lot, as background work."""
    examples: dict[str, list[FieldExample]] = {}

    def discordant(self) -> dict[str, tuple[int, int]]:
        """By field that told the two later answers apart: requests of (only control's second, only the candidate)."""
        return {
            path: (counts.only_again, counts.only_candidate)
            for path, counts in self.fields.items()
            if counts.only_again or counts.only_candidate
        }

    def quantile(self, arm: str, q: float) -> float:
        """Seconds within which a share `q` of that arm's answers came; NaN without any. Raises InvalidInput."""
        if arm not in ARMS:
            raise InvalidInput(f"arm {arm!r}: one of {', '.join(ARMS)}")
        snapshot = self.seconds.get(arm)
        return (Histogram.from_snapshot(snapshot) if snapshot is not None else Histogram()).quantile(q)


class ShadowTally:
    """Adds comparisons up, as a mirror does; also from events that were recorded, and reports of other processes.

    fields: tracked at most, 1 to 10,000; differences in later ones are only counted. examples: kept per field, 0 to 20.
    """

    def __init__(self, mirror: str, *, fields: int = 200, examples: int = 3) -> None:
        check_whole("ShadowTally.fields", fields, low=1, high=10_000)
        check_whole("ShadowTally.examples", examples, low=0, high=20)
        self._mirror = mirror
        self._most_fields = fields
        self._most_examples = examples
        self._outcomes: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._compared = self._twice = self._untracked = 0
        # By field: differed, only the candidate, only again, both.
        self._fields: dict[str, list[int]] = {}
        self._seconds = {arm: Histogram() for arm in ARMS}
        self._examples: dict[str, list[FieldExample]] = {}

    def add(self, event: ShadowCompared) -> None:
        """Counts one comparison; raises InvalidInput for another mirror's."""
        self._check(event.mirror)
        self._outcomes[event.outcome] = self._outcomes.get(event.outcome, 0) + 1
        if event.outcome not in _JUDGED:
            return
        self._compared += 1
        self._twice += event.again
        self._untracked += event.unnamed
        differing = frozenset(event.differing)
        again = frozenset(event.differing_again) if event.again else frozenset()
        for path in sorted(differing | again):  # in one order, so that processes track the same fields
            here = path in differing
            place = None if not event.again else 3 if here and path in again else 1 if here else 2
            self._count(path, here, place)
        if event.outcome in _ANSWERED and event.candidate_seconds is not None and "error" not in differing:
            self._seconds["control"].observe(event.control_seconds)
            self._seconds["candidate"].observe(event.candidate_seconds)
            if event.again_seconds is not None:
                self._seconds["control_beside"].observe(event.again_seconds)
                self._seconds["candidate_beside"].observe(event.candidate_seconds)

    def drop(self, reason: str) -> None:
        """Counts one request that was not compared."""
        self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def wants_example(self, path: str) -> bool:
        """Whether another example of the field would be kept."""
        return path in self._fields and len(self._examples.get(path, ())) < self._most_examples

    def example(self, path: str, example: FieldExample) -> None:
        """Keeps it, if `wants_example`."""
        if self.wants_example(path):
            self._examples.setdefault(path, []).append(example)

    def merge(self, report: ShadowReport) -> None:
        """Adds everything that another process counted. Raises InvalidInput for another mirror's report."""
        self._check(report.mirror)
        for name, count in report.outcomes.items():
            self._outcomes[name] = self._outcomes.get(name, 0) + count
        for name, count in report.dropped.items():
            self._dropped[name] = self._dropped.get(name, 0) + count
        self._compared += report.compared
        self._twice += report.compared_twice
        self._untracked += report.untracked
        for path, counts in report.fields.items():
            row = self._row(path)
            if row is None:
                self._untracked += counts.differed + counts.only_again
            else:
                for place, count in enumerate(
                    (counts.differed, counts.only_candidate, counts.only_again, counts.both)
                ):
                    row[place] += count
        for arm, snapshot in report.seconds.items():
            if arm in self._seconds:
                self._seconds[arm].merge(snapshot)
        for path, examples in report.examples.items():
            for example in examples:
                self.example(path, example)

    def report(self) -> ShadowReport:
        """Everything so far."""
        return ShadowReport(
            mirror=self._mirror,
            outcomes=dict(self._outcomes),
            dropped=dict(self._dropped),
            compared=self._compared,
            compared_twice=self._twice,
            fields={
                path: FieldCounts(differed=row[0], only_candidate=row[1], only_again=row[2], both=row[3])
                for path, row in self._fields.items()
            },
            untracked=self._untracked,
            seconds={
                arm: histogram.snapshot() for arm, histogram in self._seconds.items() if histogram.count
            },
            examples={path: list(examples) for path, examples in self._examples.items()},
        )

    @classmethod
    def of(cls, events: Iterable[ShadowCompared], *, fields: int = 200) -> ShadowReport:
        """The report of recorded events, all of one mirror. Raises InvalidInput for none."""
        tally: ShadowTally | None = None
        for event in events:
            tally = tally or cls(event.mirror, fields=fields)
            tally.add(event)
        if tally is None:
            raise InvalidInput("no comparison was recorded: read the events of a mirror that has a sink")
        return tally.report()

    def outcome(self, name: str) -> int:
        """Comparisons of that outcome."""
        return self._outcomes.get(name, 0)

    def drops(self, reason: str) -> int:
        """Requests dropped for that reason."""
        return self._dropped.get(reason, 0)

    def _count(self, path: str, differed: bool, place: int | None) -> None:
        row = self._row(path)
        if row is None:
            self._untracked += 1
            return
        row[0] += differed
        if place is not None:
            row[place] += 1

    def _row(self, path: str) -> list[int] | None:
        row = self._fields.get(path)
        if row is None and len(self._fields) < self._most_fields:
            row = self._fields[path] = [0, 0, 0, 0]
        return row

    def _check(self, mirror: str) -> None:
        if mirror != self._mirror:
            raise InvalidInput(
                f"this is of the mirror {mirror!r:.80}, and {self._mirror!r:.80} is counted here"
            )
