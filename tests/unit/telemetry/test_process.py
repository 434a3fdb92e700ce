"""What a scrape says of the process is what the system says of it."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry, export_all, export_process
from fairlead.telemetry import process as process_module


def read(registry: MetricRegistry) -> dict[str, float]:
    return {
        family.name: sum(family.values.values())
        for family in registry.snapshot().families
        if family.kind != "histogram"
    }


@pytest.fixture(autouse=True)
def _callbacks_of_this_test_alone() -> Iterator[None]:
    before = gc.callbacks[:]
    yield
    gc.callbacks[:] = before


@pytest.fixture
def registry() -> MetricRegistry:
    registry = MetricRegistry()
    export_process(registry)
    return registry


def test_every_value_can_be_read(registry: MetricRegistry) -> None:
    assert [name for name, value in read(registry).items() if not value >= 0.0] == []


def test_memory_is_that_of_the_status_file(registry: MetricRegistry) -> None:
    resident = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    assert read(registry)["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)


def test_an_opened_file_and_a_started_thread_are_counted(registry: MetricRegistry) -> None:
    before = read(registry)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    with open(os.devnull, "rb"):
        thread.start()
        after = read(registry)
    done.set()
    thread.join()
    assert after["process_open_fds"] == before["process_open_fds"] + 1
    assert after["process_threads"] == before["process_threads"] + 1
    assert after["process_open_fds"] <= after["process_max_fds"]


def test_processor_time_grows_with_work(registry: MetricRegistry) -> None:
    before = read(registry)["process_cpu_seconds_total"]
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    assert read(registry)["process_cpu_seconds_total"] >= before + 0.02


def test_the_process_started_in_the_past_and_not_long_ago(registry: MetricRegistry) -> None:
    assert time.time() - 86_400 < read(registry)["process_start_time_seconds"] < time.time()


def test_a_collection_is_counted_and_its_pause_timed_once(registry: MetricRegistry) -> None:
    export_process(registry)
    pauses = registry.histogram(
        "python_gc_pause_seconds",
        "Time that the garbage collector held all Python code up, for each collection.",
        labels=("generation",),
        smallest=0.00001,
        largest=10.0,
    ).labels(generation="2")
    before = pauses.count
    collections = gc.get_stats()[2]["collections"]
    gc.collect()
    assert pauses.count == before + 1
    [family] = [each for each in registry.snapshot().families if each.name == "python_gc_collections_total"]
    assert family.values[("2",)] == collections + 1


def test_a_system_without_proc_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_module, "_PROC", tmp_path)
    with pytest.raises(InvalidInput, match="Linux only"):
        export_process(MetricRegistry())


def test_one_call_shows_the_process_and_all_parts() -> None:
    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def export(self, registry: MetricRegistry) -> None:
            registry.counter(f"{self.name}_total", "Counts.").add()

    registry = MetricRegistry()
    export_all(registry, Part("one"), Part("other"))
    assert {"one_total", "other_total", "process_threads"} <= {family.name for family in registry}
