"""The registry as Prometheus reads it: text exposition format 0.0.4, without its client library.

Source: prometheus.io/docs/instrumenting/exposition_formats. The text format knows only classic buckets, so a
histogram shows a fixed, thinned set of its bounds as cumulative `le` series: fixed, because a set that grows
with the data would break `rate()` and sums over instances; thinned, because each bound is one more series.
Full resolution stays in `Histogram.snapshot()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import inf

from fairlead.telemetry.histogram import HistogramSnapshot, upper_bound
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.snapshot import RegistrySnapshot

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(source: MetricRegistry | RegistrySnapshot) -> str:
    """The body of a scrape. Serve it with CONTENT_TYPE.

    Counts go on while it renders; within one histogram the buckets and the count belong together, the sum may
    be a value ahead.
    """
    snapshot = source.snapshot() if isinstance(source, MetricRegistry) else source
    lines: list[str] = []
    for family in snapshot.families:
        name, names = family.name, family.label_names
        lines.append(f"# HELP {name} {_escaped_help(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for values, value in family.values.items():
            lines.append(f"{name}{_braced(_pairs(names, values))} {_number(value)}")
        for values, histogram in family.histograms.items():
            lines.extend(_histogram(name, family.edges, _pairs(names, values), histogram))
    lines.append("")
    return "\n".join(lines)


def _histogram(name: str, edges: tuple[int, ...], pairs: str, histogram: HistogramSnapshot) -> Iterator[str]:
    waiting = sorted(histogram.buckets.items(), reverse=True)
    seen = histogram.zero_count
    head = f"{name}_bucket{{{pairs}," if pairs else f"{name}_bucket{{"
    for edge in edges:
        while waiting and waiting[-1][0] <= edge:
            seen += waiting.pop()[1]
        yield f'{head}le="{_edge(edge)}"}} {seen}'
    seen += sum(count for _, count in waiting)
    yield f'{head}le="+Inf"}} {seen}'
    yield f"{name}_sum{_braced(pairs)} {_number(histogram.sum)}"
    yield f"{name}_count{_braced(pairs)} {seen}"


@lru_cache(maxsize=1024)
def _edge(index: int) -> str:
    # Six digits: the last of seventeen depends on the machine's math library, and instances share series.
    return _number(float(f"{upper_bound(index):.6g}"))


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join([f'{name}="{_escaped_value(value)}"' for name, value in zip(names, values, strict=True)])


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


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
