"""What a process takes of its machine: processor, memory, files, threads, and the pauses of the garbage collector.

Utilisation, saturation, errors (USE): a slow service whose routes look healthy is short of something. The names are
those that Prometheus' own clients use, so that dashboards made for them work. Read from /proc at the scrape, which
costs a request nothing; only the collector's pauses are timed as they happen, at about a microsecond a collection.

Linux only: there is no /proc elsewhere. Per process; memory, files and threads of several processes add up.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from fairlead.errors import InvalidInput
from fairlead.telemetry.histogram import Histogram
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["Exporting", "export_all", "export_process"]

_PROC = Path("/proc/self")


class Exporting(Protocol):
    """What shows its counts in a registry: Cache, Policy, HotKeys, Scheduler and others."""

    def export(self, registry: MetricRegistry) -> None: ...


def export_all(registry: MetricRegistry, *parts: Exporting) -> None:
    """Shows the process (`export_process`) and each of `parts` in `registry`: one line at the start of a service."""
    export_process(registry)
    for part in parts:
        part.export(registry)


def export_process(registry: MetricRegistry) -> None:
    """Shows processor, memory, files, threads and garbage collection of this process in `registry`.

    Raises InvalidInput where there is no /proc. Safe to call again.
    """
    if not (_PROC / "stat").exists():
        raise InvalidInput(
            "export_process: reads /proc/self, which this system lacks; it works on Linux only"
        )
    page = resource.getpagesize()
    registry.counter("process_cpu_seconds_total", "Processor time of all threads, user and system.").track(
        time.process_time
    )
    registry.counter(
        "process_main_thread_wait_seconds_total",
        "Time that the main thread could have run and waited for a processor.",
    ).track(lambda: int((_PROC / "schedstat").read_text().split()[1]) / 1e9)
    gauges: tuple[tuple[str, str, Literal["sum", "min"], Callable[[], float]], ...] = (
        ("resident_memory_bytes", "Memory in RAM.", "sum", lambda: _statm(1) * page),
        ("virtual_memory_bytes", "Address space.", "sum", lambda: _statm(0) * page),
        ("open_fds", "Open files, sockets and pipes.", "sum", lambda: len(os.listdir(_PROC / "fd")) - 1),
        ("max_fds", "Open files that are allowed.", "sum", _most_files),
        ("threads", "Threads.", "sum", lambda: float(_stat(17))),
        ("start_time_seconds", "When the process started, in seconds since 1970.", "min", _started_at),
    )
    for name, meaning, merge, read in gauges:
        registry.gauge(f"process_{name}", meaning, merge=merge).track(read)
    _export_collector(registry)


def _statm(field: int) -> int:
    return int((_PROC / "statm").read_text().split()[field])


def _stat(field: int) -> int:
    """A field of /proc/self/stat, counted from the state; the name before it may hold spaces and brackets."""
    return int((_PROC / "stat").read_text().rpartition(")")[2].split()[field])


def _most_files() -> float:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if most == resource.RLIM_INFINITY else float(most)


def _started_at() -> float:
    since_boot = _stat(19) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _export_collector(registry: MetricRegistry) -> None:
    pauses = registry.histogram(
        "python_gc_pause_seconds",
        "Time that the garbage collector held all Python code up, for each collection.",
        labels=("generation",),
        smallest=0.00001,
        largest=10.0,
    )
    for generation in range(3):
        label = str(generation)
        for what, meaning in (
            ("collections", "Collections."),
            ("collected", "Objects that were collected."),
            ("uncollectable", "Objects that could not be collected."),
        ):
            name = (
                "python_gc_collections_total" if what == "collections" else f"python_gc_objects_{what}_total"
            )
            counter = registry.counter(name, meaning, labels=("generation",)).labels(generation=label)
            counter.track(lambda generation=generation, what=what: gc.get_stats()[generation][what])  # type: ignore[misc]
    watch = _Pauses([pauses.labels(generation=str(each)) for each in range(3)])
    for known in [each for each in gc.callbacks if isinstance(each, _Pauses)]:
        if known.histograms[0] is watch.histograms[0]:
            return
    gc.callbacks.append(watch)


class _Pauses:
    """Times collections; called by the collector, in whatever thread allocated last."""

    __slots__ = ("_began", "histograms")

    def __init__(self, histograms: list[Histogram]) -> None:
        self.histograms = histograms
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.histograms[info["generation"]].observe(time.perf_counter() - self._began)
