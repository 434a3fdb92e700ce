"""Adds the metrics of many processes up, and takes what was counted before a moment away again.

The naive sum of a fleet's counters goes down: when a worker ends, when snapshots arrive in another order and another
label set becomes the one too many, when one callback fails once. To whoever computes a rate, a counter that goes down
has restarted, and everything that it shows afterwards is new: one dead worker of eight looks like a burst of traffic.

Invariant of `Totals`: a label set that once had a series of its own keeps it, and one that was counted under
`_overflow` stays there. A NaN (a callback that failed) adds nothing; `without_gaps` puts the value before it there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import inf, isfinite, isnan

from msgspec.structs import replace

from fairlead.telemetry.bounds import check_whole
from fairlead.telemetry.histogram import Histogram, HistogramSnapshot
from fairlead.telemetry.snapshot import OVERFLOW, FamilySnapshot, RegistrySnapshot, series_of

__all__ = ["Totals", "merge_snapshots", "since", "without_gaps"]

_LabelSet = tuple[str, ...]
_LARGEST = sys.float_info.max


def merge_snapshots(
    snapshots: Iterable[RegistrySnapshot], *, max_label_sets: int = 1_000
) -> RegistrySnapshot:
    """One snapshot that counts what all of them do.

    Counters and histograms add up; a gauge merges as it declares. A label set beyond `max_label_sets` of its family
    counts under `_overflow`. A family that disagrees with the first of its name (kind, labels, range) is left out.
    """
    totals = Totals(max_label_sets=max_label_sets)
    for snapshot in snapshots:
        totals.add(snapshot)
    return totals.snapshot()


class _Total:
    """One family, while it is being added up."""

    __slots__ = ("chosen_at", "family", "histograms", "values")

    def __init__(self, family: FamilySnapshot) -> None:
        self.family = family
        self.values: dict[_LabelSet, float] = {}
        self.histograms: dict[_LabelSet, Histogram] = {}
        self.chosen_at: dict[_LabelSet, float] = {}


class Totals:
    """A sum in the making, each family within a bound of label sets."""

    def __init__(self, *, max_label_sets: int = 1_000) -> None:
        check_whole("max_label_sets", max_label_sets, low=1, high=2**31)
        self._max_label_sets = max_label_sets
        self._heads: dict[str, FamilySnapshot] = {}
        self._admitted: dict[str, set[_LabelSet]] = {}
        self._owners: dict[str, str] = {}
        self._families: dict[str, _Total] = {}
        self._at, self._start = -inf, inf
        self.disagreeing: set[str] = set()
        """Families that were left out: of another kind, labels, range or merge than the first of that name."""

    def copy(self) -> Totals:
        """The same sum, to go on from. The two agree for ever on which label sets have a series of their own."""
        other = Totals(max_label_sets=self._max_label_sets)
        other._heads, other._admitted, other._owners = self._heads, self._admitted, self._owners
        if self._families:
            other.add(self.snapshot())
        return other

    def add(self, snapshot: RegistrySnapshot, *, gauges: bool = True) -> None:
        """Adds what `snapshot`, decoded or taken in this process, counts.

        gauges: False for a process that has ended: what it counted stays true, what it held is gone.
        """
        self._at = max(self._at, snapshot.at_utc_seconds)
        self._start = min(self._start, snapshot.start_utc_seconds)
        for family in snapshot.families:
            if family.kind == "gauge" and not gauges:
                continue
            if not self._agrees(family):
                self.disagreeing.add(family.name)
                continue
            total = self._families.get(family.name)
            if total is None:
                total = self._families[family.name] = _Total(self._heads[family.name])
            self._add_values(total, family, snapshot.at_utc_seconds)
            self._add_histograms(total, family)

    def fits(self, family: FamilySnapshot) -> bool:
        """Whether the family has the shape of what was added under its name."""
        head = self._heads.get(family.name)
        return head is not None and family.alike(head)

    def forget(self, name: str) -> None:
        """Drops what was added of this family, and its shape: the next one of that name decides anew."""
        head = self._heads.pop(name, None)
        self._families.pop(name, None)
        self._admitted.pop(name, None)
        for series in series_of(head.kind, name) if head is not None else ():
            self._owners.pop(series, None)

    def snapshot(self) -> RegistrySnapshot:
        """What has been added so far; of nothing, a snapshot of time 0."""
        return RegistrySnapshot(
            at_utc_seconds=self._at if self._families else 0.0,
            start_utc_seconds=self._start if self._families else 0.0,
            families=tuple(
                replace(
                    total.family,
                    values=dict(total.values),
                    histograms={labels: each.snapshot() for labels, each in total.histograms.items()},
                )
                for _, total in sorted(self._families.items())
            ),
        )

    def _agrees(self, family: FamilySnapshot) -> bool:
        head = self._heads.get(family.name)
        if head is not None:
            return family.alike(head)
        names = series_of(family.kind, family.name)
        if any(name in self._owners for name in names):
            return False
        self._owners.update(dict.fromkeys(names, family.name))
        self._heads[family.name] = replace(family, values={}, histograms={})
        self._admitted[family.name] = set()
        return True

    def _place(self, family: FamilySnapshot, labels: _LabelSet) -> _LabelSet:
        """Where to count `labels`: in a series of their own, or with the overflow."""
        admitted = self._admitted[family.name]
        if labels in admitted:
            return labels
        overflow = (OVERFLOW,) * len(labels)
        if OVERFLOW in labels or len(admitted) >= self._max_label_sets:
            return overflow
        admitted.add(labels)
        return labels

    def _add_values(self, total: _Total, family: FamilySnapshot, at: float) -> None:
        values = total.values
        for labels, value in family.values.items():
            labels = self._place(family, labels)
            known = values.get(labels)
            if known is None or known != known:
                values[labels] = value
                total.chosen_at[labels] = at
            elif isnan(value):
                continue
            elif family.merge == "sum":
                values[labels] = (
                    max(-_LARGEST, min(known + value, _LARGEST)) if isfinite(value) else known + value
                )
            elif family.merge == "max":
                values[labels] = max(known, value)
            elif family.merge == "min":
                values[labels] = min(known, value)
            elif at >= total.chosen_at[labels]:
                values[labels] = value
                total.chosen_at[labels] = at

    def _add_histograms(self, total: _Total, family: FamilySnapshot) -> None:
        histograms = total.histograms
        for labels, each in family.histograms.items():
            labels = self._place(family, labels)
            histogram = histograms.get(labels)
            if histogram is None:
                histogram = histograms[labels] = Histogram()
            histogram.add_checked(each)


def since(baseline: RegistrySnapshot, now: RegistrySnapshot) -> RegistrySnapshot:
    """What a process counted after `baseline`, both its own; gauges as they are now.

    What `baseline` has and `now` lacks, or has less of, is taken for zero.
    """
    before = {family.name: family for family in baseline.families}
    families = []
    for family in now.families:
        old = before.get(family.name)
        if old is not None and family.kind != "gauge" and family.alike(old):
            family = replace(
                family,
                values={
                    labels: max(0.0, value - old.values.get(labels, 0.0)) if value == value else value
                    for labels, value in family.values.items()
                },
                histograms={
                    labels: _histogram_since(old.histograms[labels], each)
                    if labels in old.histograms
                    else each
                    for labels, each in family.histograms.items()
                },
            )
        families.append(family)
    return replace(now, start_utc_seconds=baseline.at_utc_seconds, families=tuple(families))


def _histogram_since(old: HistogramSnapshot, now: HistogramSnapshot) -> HistogramSnapshot:
    buckets = {index: count - old.buckets.get(index, 0) for index, count in now.buckets.items()}
    return HistogramSnapshot(
        zero_count=max(0, now.zero_count - old.zero_count),
        rejected=max(0, now.rejected - old.rejected),
        sum=max(0.0, now.sum - old.sum),
        buckets={index: count for index, count in buckets.items() if count > 0},
    )


def without_gaps(previous: RegistrySnapshot | None, now: RegistrySnapshot) -> RegistrySnapshot:
    """`now`, where a counter that could not be read keeps the value it had, and one that never could is left out."""
    known = {family.name: family.values for family in previous.families} if previous is not None else {}
    families = []
    for family in now.families:
        if family.kind == "counter" and any(isnan(value) for value in family.values.values()):
            before: dict[_LabelSet, float] = known.get(family.name, {})
            filled = {
                labels: before.get(labels, value) if isnan(value) else value
                for labels, value in family.values.items()
            }
            family = replace(family, values={each: value for each, value in filled.items() if value == value})
        families.append(family)
    return replace(now, families=tuple(families))
