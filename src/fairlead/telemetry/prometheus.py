"""The registry as Prometheus reads it: text exposition format 0.0.4, without its client library.

Source: prometheus.io/docs/instrumenting/exposition_formats. The text format knows only classic buckets, so a
histogram shows a fixed, thinned set of its bounds as cumulative `le` series: fixed, because a set that grows
with the data would break `rate()` and sums over instances; thinned, because each bound is one more series.
Full resolution stays in `Histogram.snapshot()`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from fairlead.telemetry.histogram import Histogram, upper_bound
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(registry: MetricRegistry) -> str:
    """The body of a scrape. Serve it with CONTENT_TYPE.

    Counts go on while it renders; within one histogram the buckets and the count belong together, the sum may
    be a value ahead.
    """
    lines: list[str] = []
    for family in registry:
        lines.append(f"# HELP {family.name} {_escaped_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, child in family.children():
            if isinstance(child, Histogram):
                lines.extend(_histogram(family.name, family.edges, labels, child))
            else:
                lines.append(f"{family.name}{_labels(labels)} {_number(child.value)}")
    return "".join(f"{line}\n" for line in lines)


def _histogram(
    name: str, edges: tuple[int, ...], labels: Mapping[str, str], histogram: Histogram
) -> Iterator[str]:
    snapshot = histogram.snapshot()
    waiting = sorted(snapshot.buckets.items(), reverse=True)
    seen = snapshot.zero_count
    for edge in edges:
        while waiting and waiting[-1][0] <= edge:
            seen += waiting.pop()[1]
        yield f"{name}_bucket{_labels({**labels, 'le': _edge(edge)})} {seen}"
    seen += sum(count for _, count in waiting)
    yield f"{name}_bucket{_labels({**labels, 'le': _number(inf)})} {seen}"
    yield f"{name}_sum{_labels(labels)} {_number(snapshot.sum)}"
    yield f"{name}_count{_labels(labels)} {seen}"


def _edge(index: int) -> str:
    # Six digits: the last of seventeen depends on the machine's math library, and instances share series.
    return _number(float(f"{upper_bound(index):.6g}"))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped_value(value)}"' for name, value in labels.items()) + "}"


def _escaped_value(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
