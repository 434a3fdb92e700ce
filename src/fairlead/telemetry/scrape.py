"""Prometheus' text, read back into numbers.

Source: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4. Only samples are kept: help, types and time
stamps say nothing that two scrapes a known time apart need. A page that was cut off, or is the HTML of a proxy's error,
is refused with its line: half a page would look like a service at rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf, nan

from fairlead.errors import BrokenDocument

__all__ = ["Scrape"]

_LARGEST = 64 * 2**20
_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(?P<labels>.*)\})?\s+(?P<value>[^\s{}]+)(?:\s+-?\d+)?\s*"
)
_LABEL = re.compile(r'\s*(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"(?P<value>(?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")
_WORDS = {"nan": nan, "+inf": inf, "inf": inf, "-inf": -inf}

Labels = Mapping[str, str]


class Scrape:
    """The samples of one page, by name.

    >>> page = Scrape('# TYPE x_total counter\\nx_total{route="/feed"} 3.0\\n')
    >>> page.total("x_total"), page.total("y_total")
    (3.0, None)
    """

    def __init__(self, text: str) -> None:
        """Raises BrokenDocument, naming the line, for what is no page of metrics."""
        if len(text) > _LARGEST:
            raise BrokenDocument(
                f"a page of metrics of {len(text):,} characters; the largest read is {_LARGEST:,}"
            )
        self._samples: dict[str, list[tuple[Labels, float]]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                name, labels, value = _sample(line, number)
                self._samples.setdefault(name, []).append((labels, value))
        if not self._samples:
            raise BrokenDocument("a page of metrics without a sample: was it read from /metrics?")

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """Every series of that name with its value, NaN left out."""
        return [(labels, value) for labels, value in self._samples.get(name, ()) if value == value]

    def total(self, name: str) -> float | None:
        """The sum of its series; None when the page has none."""
        values = [value for _, value in self.samples(name)]
        return sum(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums by the value of one label; a series without it counts under the empty one."""
        found: dict[str, float] = {}
        for labels, value in self.samples(name):
            key = labels.get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound, all its series together."""
        found: dict[float, float] = {}
        for bound, count in self.by(f"{name}_bucket", "le").items():
            edge = _number(bound)
            if edge is not None:
                found[edge] = found.get(edge, 0.0) + count
        return dict(sorted(found.items()))


def _sample(line: str, number: int) -> tuple[str, Labels, float]:
    match = _SAMPLE.fullmatch(line)
    value = None if match is None else _number(match["value"])
    labels = None if match is None else dict(_labels(match["labels"] or ""))
    if match is None or value is None or labels is None or "" in labels:
        raise BrokenDocument(f"line {number} of a page of metrics is no sample: {line[:80]!r}")
    return match["name"], labels, value


def _labels(text: str) -> Iterator[tuple[str, str]]:
    """The pairs; one with an empty name for what is none."""
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            yield "", text[at:]
            return
        yield (
            match["name"],
            _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], match["value"]),
        )
        at = match.end()


def _number(text: str) -> float | None:
    word = _WORDS.get(text.lower())
    if word is not None:
        return word
    try:
        return float(text)
    except ValueError:
        return None
