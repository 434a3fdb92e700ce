"""Counters, gauges and histograms whose memory is bounded.

One label filled from a request (a user id, a raw path) multiplies every series until the process, or the
server that scrapes it, runs out of memory. Here a family holds at most `max_label_sets` children; whatever
comes after them is counted together, in a child whose labels all read `_overflow`: the total stays right and
the mistake is visible.

Look a child up once and keep it: `requests = registry.counter(…, labels=("route",)).labels(route="/feed")`.
Recording then costs a method call. All of it belongs to one process; Prometheus adds the processes up.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, floor, inf, isfinite, log2
from typing import Any, Generic, TypeVar, get_args, overload

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput
from fairlead.telemetry.histogram import Histogram, HistogramSnapshot
from fairlead.telemetry.snapshot import OVERFLOW, FamilySnapshot, Kind, Merge, RegistrySnapshot, series_of

__all__ = ["Counter", "Family", "Gauge", "MetricRegistry"]

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}", re.ASCII)
_LONGEST_LABEL_VALUE = 256
_MOST_EDGES = 200
_LARGEST = sys.float_info.max  # where a count stops: one that is infinite is no number to subtract from
_EDGE_STEP = 8  # every eighth bucket bound: 2^(1/4), a factor of 1.19 between neighbouring `le` edges


class Counter:
    """A number that only grows, until the process restarts: added to, or read from a callback when scraped."""

    __slots__ = ("_read", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._read: Callable[[], float] | None = None

    def add(self, amount: float = 1.0) -> None:
        """Adds `amount`, finite and >= 0; raises InvalidInput for anything else."""
        if not 0.0 <= amount < inf:
            raise InvalidInput(f"a counter only grows: add({amount!r}) needs a finite number, 0 or more")
        self._value += amount

    def track(self, read: Callable[[], float]) -> None:
        """Adds what `read` says at each scrape, from the scraping thread: a count that something else keeps.

        It must only grow. One that raises, or says what no count can be, makes the value NaN. The last
        callback given is the one read.
        """
        self._read = read

    @property
    def value(self) -> float:
        read = self._read
        if read is None:
            return min(self._value, _LARGEST)
        try:
            value = self._value + float(read())
        except Exception:  # foreign code; NaN is Prometheus' own word for "no value"
            return float("nan")
        return value if 0.0 <= value < inf else float("nan")


class Gauge:
    """A number that goes up and down: set by hand, or read from a callback when it is scraped."""

    __slots__ = ("_read", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Replaces the value. Raises ValueError or TypeError here, not at the scrape, for what is no number."""
        self._value = float(value)
        self._read = None

    def add(self, amount: float = 1.0) -> None:
        """Adds `amount`, which may be negative. Has no effect on a gauge that tracks a callback."""
        self._value += amount

    def track(self, read: Callable[[], float]) -> None:
        """Reads the value from `read` at each scrape, from the scraping thread; keep it quick.

        A callback that raises makes the value NaN: a gauge must not take the other metrics down with it.
        """
        self._read = read

    @property
    def value(self) -> float:
        read = self._read
        if read is None:
            return self._value
        try:
            return float(read())
        except Exception:  # foreign code; NaN is Prometheus' own word for "no value"
            return float("nan")


_Child = TypeVar("_Child", bound=Counter | Gauge | Histogram)


class Family(Generic[_Child]):
    """All children of one metric, told apart by the values of its labels."""

    __slots__ = (
        "_children",
        "_lock",
        "_make",
        "_overflow",
        "edges",
        "help",
        "kind",
        "label_names",
        "max_label_sets",
        "merge",
        "name",
    )

    def __init__(
        self,
        *,
        name: str,
        help: str,
        kind: Kind,
        label_names: tuple[str, ...],
        max_label_sets: int,
        make: Callable[[], _Child],
        edges: tuple[int, ...] = (),
        merge: Merge = "sum",
    ) -> None:
        self.name = name
        self.help = help
        self.kind: Kind = kind
        self.label_names = label_names
        self.max_label_sets = max_label_sets
        self.edges = edges
        """Bucket indexes whose upper bounds a text scrape shows as `le`; empty unless a histogram."""
        self.merge: Merge = merge
        """How the gauges of several processes become one; counters and histograms always add up."""
        self._make = make
        self._children: dict[tuple[str, ...], _Child] = {}
        self._overflow: _Child | None = None
        self._lock = threading.Lock()

    def labels(self, **values: str) -> _Child:
        """The child with these label values, made on first use, or `_overflow` once there are too many.

        A value longer than 256 characters goes to `_overflow` too. Raises InvalidInput unless exactly the
        family's labels are given.
        """
        try:
            key = tuple([values[name] for name in self.label_names])
        except KeyError:
            key = ()
        if len(key) != len(values) or len(key) != len(self.label_names):
            raise InvalidInput(
                f"{self.name}: got labels {sorted(values)}, expected exactly {sorted(self.label_names)}"
            )
        child = self._children.get(key)
        return child if child is not None else self._make_child(key)

    def _make_child(self, key: tuple[str, ...]) -> _Child:
        # A lone surrogate (a badly decoded header) cannot be sent as UTF-8 and would break the whole scrape.
        key = tuple(str(value).encode("utf-8", "backslashreplace").decode() for value in key)
        too_long = any(len(value) > _LONGEST_LABEL_VALUE for value in key)
        with self._lock:
            child = self._children.get(key)
            if child is not None:
                return child
            if too_long or len(self._children) >= self.max_label_sets or OVERFLOW in key:
                if self._overflow is None:
                    self._overflow = self._make()
                return self._overflow
            child = self._children[key] = self._make()
            return child

    def children(self) -> list[tuple[Mapping[str, str], _Child]]:
        """Every child with its labels, in order of creation, the overflow last."""
        return [(dict(zip(self.label_names, key, strict=True)), child) for key, child in self._items()]

    def snapshot(self) -> FamilySnapshot:
        """All values as plain data. Callbacks are called, in this thread."""
        values: dict[tuple[str, ...], float] = {}
        histograms: dict[tuple[str, ...], HistogramSnapshot] = {}
        for key, child in self._items():
            if isinstance(child, Histogram):
                histograms[key] = child.snapshot()
            else:
                values[key] = child.value
        return FamilySnapshot(
            name=self.name,
            help=self.help,
            kind=self.kind,
            label_names=self.label_names,
            merge=self.merge,
            edges=self.edges,
            values=values,
            histograms=histograms,
        )

    def _items(self) -> list[tuple[tuple[str, ...], _Child]]:
        with self._lock:
            found = list(self._children.items())
            if self._overflow is not None:
                found.append(((OVERFLOW,) * len(self.label_names), self._overflow))
        return found


_registries: weakref.WeakSet[MetricRegistry] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that it does not have may hold copies of them."""
    for registry in list(_registries):
        registry._lock = threading.Lock()
        for family in list(registry._families.values()):
            family._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)


class MetricRegistry:
    """The metrics of one process, by name.

    Asking again for a name with the same type and labels returns what exists, so that two parts may share a
    metric. Without `labels` the metric itself comes back, with `labels` its family.

    >>> registry = MetricRegistry()
    >>> registry.counter("feed_loads_total", "Feeds loaded.").add()
    >>> waits = registry.histogram("feed_wait_seconds", "Time a feed waited.", labels=("route",))
    >>> waits.labels(route="/feed").observe(0.012)
    """

    def __init__(self, *, max_label_sets: int = 100, clock: Clock = SYSTEM_CLOCK) -> None:
        """max_label_sets: children per family before `_overflow`, 1 or more. 100: a scrape stays under a
        megabyte. clock: stamps the snapshots.
        """
        if isinstance(max_label_sets, bool) or not isinstance(max_label_sets, int) or max_label_sets < 1:
            raise InvalidInput(f"max_label_sets = {max_label_sets!r}: expected a whole number, 1 or more")
        self._max_label_sets = max_label_sets
        self._clock = clock
        self._start_utc_seconds = clock.utc()
        self._families: dict[str, Family[Any]] = {}
        self._owners: dict[str, str] = {}
        self._lock = threading.Lock()
        _registries.add(self)

    @overload
    def counter(self, name: str, help: str) -> Counter: ...
    @overload
    def counter(self, name: str, help: str, labels: Sequence[str]) -> Family[Counter]: ...
    def counter(self, name: str, help: str, labels: Sequence[str] | None = None) -> Counter | Family[Counter]:
        """A number that only grows, its name ends in `_total`. Raises InvalidInput for a bad name."""
        if not name.endswith("_total"):
            raise InvalidInput(f"counter {name!r}: by convention its name ends in '_total'")
        family = self._family(name, help, labels, "counter", Counter)
        return family.labels() if labels is None else family

    @overload
    def gauge(self, name: str, help: str, *, merge: Merge = ...) -> Gauge: ...
    @overload
    def gauge(self, name: str, help: str, labels: Sequence[str], *, merge: Merge = ...) -> Family[Gauge]: ...
    def gauge(
        self, name: str, help: str, labels: Sequence[str] | None = None, *, merge: Merge = "sum"
    ) -> Gauge | Family[Gauge]:
        """A number that goes up and down. Raises InvalidInput for a bad or taken name.

        merge: what several processes show together: the `sum` (things held), the `max` (the worst of them), the
            `min`, or the `last` (of the newest snapshot: a version, a setting).
        """
        if merge not in get_args(Merge):
            raise InvalidInput(f"{name}: merge = {merge!r}: expected one of {', '.join(get_args(Merge))}")
        family = self._family(name, help, labels, "gauge", Gauge, merge=merge)
        return family.labels() if labels is None else family

    @overload
    def histogram(
        self, name: str, help: str, *, smallest: float = ..., largest: float = ...
    ) -> Histogram: ...
    @overload
    def histogram(
        self, name: str, help: str, labels: Sequence[str], *, smallest: float = ..., largest: float = ...
    ) -> Family[Histogram]: ...
    def histogram(
        self,
        name: str,
        help: str,
        labels: Sequence[str] | None = None,
        *,
        smallest: float = 0.0005,
        largest: float = 30.0,
    ) -> Histogram | Family[Histogram]:
        """A distribution, in the unit that its name ends with (`_seconds`, `_bytes`).

        smallest, largest: the range that a text scrape resolves, to a factor of 1.19; the default suits
            latencies. The
        histogram itself keeps every value within 1.1 %. Raises InvalidInput for a bad or taken name, or a bad
        range.
        """
        family = self._family(name, help, labels, "histogram", Histogram, _edges(name, smallest, largest))
        return family.labels() if labels is None else family

    def __iter__(self) -> Iterator[Family[Any]]:
        """The families in order of their names."""
        with self._lock:
            families = sorted(self._families.items())
        return iter([family for _, family in families])

    def snapshot(self) -> RegistrySnapshot:
        """Everything as plain data, to send, store, merge or show. Counting goes on while it is taken."""
        return RegistrySnapshot(
            at_utc_seconds=self._clock.utc(),
            start_utc_seconds=self._start_utc_seconds,
            families=tuple([family.snapshot() for family in self]),
        )

    def _family(
        self,
        name: str,
        help: str,
        labels: Sequence[str] | None,
        kind: Kind,
        make: Callable[[], _Child],
        edges: tuple[int, ...] = (),
        merge: Merge = "sum",
    ) -> Family[_Child]:
        label_names = _checked_labels(name, labels, kind)
        if not _METRIC_NAME.fullmatch(name):
            raise InvalidInput(
                f"metric name {name!r}: use letters, digits, '_' and ':', not beginning with a digit"
            )
        if not 0 < len(help.strip()) <= 2_000:
            raise InvalidInput(
                f"{name}: say in a sentence what it measures; the help text has {len(help)} characters"
            )
        samples = series_of(kind, name)
        with self._lock:
            known = self._families.get(name)
            if known is not None:
                if (known.kind, known.label_names, known.edges, known.merge) != (
                    kind,
                    label_names,
                    edges,
                    merge,
                ):
                    raise InvalidInput(
                        f"{name} is already a {known.kind} with labels {known.label_names}: "
                        f"it cannot also be a {kind} with labels {label_names}, or another range or merge"
                    )
                return known
            for sample in samples:
                if sample in self._owners:
                    raise InvalidInput(
                        f"{name}: its series {sample} belongs to {self._owners[sample]} already"
                    )
            family = Family(
                name=name,
                help=help,
                kind=kind,
                label_names=label_names,
                max_label_sets=self._max_label_sets,
                make=make,
                edges=edges,
                merge=merge,
            )
            self._families[name] = family
            self._owners.update(dict.fromkeys(samples, name))
            return family


def _checked_labels(name: str, labels: Sequence[str] | None, kind: Kind) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise InvalidInput(f"{name}: labels = {labels!r} is one string; pass a tuple of names")
    names = tuple(labels or ())
    for label in names:
        if not _LABEL_NAME.fullmatch(label) or (kind == "histogram" and label == "le"):
            raise InvalidInput(
                f"{name}: label {label!r}: use letters, digits and '_', not beginning with a digit or '__'; "
                f"a histogram's 'le' is taken"
            )
    if len(set(names)) != len(names) or len(names) > 20:
        raise InvalidInput(f"{name}: labels {names} name one twice, or are more than 20")
    return names


def _edges(name: str, smallest: float, largest: float) -> tuple[int, ...]:
    if not (isfinite(smallest) and isfinite(largest) and 0 < smallest < largest):
        raise InvalidInput(
            f"{name}: range {smallest!r} to {largest!r}: expected 0 < smallest < largest, both finite"
        )
    per_octave = 32 // _EDGE_STEP
    first, last = floor(log2(smallest) * per_octave), ceil(log2(largest) * per_octave)
    if last - first >= _MOST_EDGES:
        raise InvalidInput(
            f"{name}: range {smallest!r} to {largest!r} takes {last - first + 1} edges in every scrape, "
            f"at most {_MOST_EDGES}: narrow it"
        )
    return tuple(range(first * _EDGE_STEP, last * _EDGE_STEP + 1, _EDGE_STEP))
