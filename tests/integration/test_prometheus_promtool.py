"""What we serve to a scraper, judged by the checker that Prometheus ships."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render

_spec = importlib.util.spec_from_file_location(
    "metrics_reference", Path(__file__).resolve().parents[2] / "scripts" / "metrics_reference.py"
)
REFERENCE = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(REFERENCE)


def check(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )


def test_rendered_registry_has_nothing_to_complain_of():
    registry = MetricRegistry()
    registry.counter("feed_requests_total", "Requests by outcome.", ["outcome"]).labels(
        outcome='o"k\\\n'
    ).add(3)
    registry.gauge("feed_in_flight_requests", "Requests that are being served.").set(2)
    latency = registry.histogram(
        "feed_latency_seconds", "Time to answer.\nSecond line with a \\ in it.", ["route"]
    )
    for seconds in (0.0, 0.0004, 0.02, 0.02, 1.8, 1e9):
        latency.labels(route="/feed/ü").observe(seconds)
    registry.histogram("feed_idle_seconds", "Observed by nobody yet.")
    run = check(render(registry))
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_everything_that_can_be_exported_has_nothing_to_complain_of():
    page = render(REFERENCE.everything())
    run = check(page)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert page.count("# TYPE ") > 50


def test_checker_would_complain_of_a_broken_exposition():
    assert check("# TYPE feed counter\nfeed{ 1\n").returncode != 0
