"""What a scraper reads is what was recorded; Prometheus' own client library is the judge of the syntax."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import CONTENT_TYPE, render


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"the series {key} appears twice"
            found[key] = sample.value
    return found


def test_the_exposition_reads_as_documented() -> None:
    registry = MetricRegistry()
    registry.counter("feed_loads_total", "Feeds loaded.").add(3)
    depth = registry.gauge("depth", 'Depth of the "queue",\nby C:\\route.', labels=("route",))
    depth.labels(route='a"b\\c\nd').set(2)
    waits = registry.histogram("wait_seconds", "Wait.", smallest=0.5, largest=1.0)
    waits.observe_many([0.0, 0.5, 0.7, 1.0, 4.0])
    assert render(registry) == (
        '# HELP depth Depth of the "queue",\\nby C:\\\\route.\n'
        "# TYPE depth gauge\n"
        'depth{route="a\\"b\\\\c\\nd"} 2.0\n'
        "# HELP feed_loads_total Feeds loaded.\n"
        "# TYPE feed_loads_total counter\n"
        "feed_loads_total 3.0\n"
        "# HELP wait_seconds Wait.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{le="0.5"} 2\n'
        'wait_seconds_bucket{le="0.594604"} 2\n'
        'wait_seconds_bucket{le="0.707107"} 3\n'
        'wait_seconds_bucket{le="0.840896"} 3\n'
        'wait_seconds_bucket{le="1.0"} 4\n'
        'wait_seconds_bucket{le="+Inf"} 5\n'
        "wait_seconds_sum 6.2\n"
        "wait_seconds_count 5\n"
    )
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_an_empty_registry_renders_to_nothing() -> None:
    assert render(MetricRegistry()) == ""


def test_a_family_without_children_shows_its_type_only() -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.", labels=("route",))
    assert render(registry).splitlines() == ["# HELP loads_total Loads.", "# TYPE loads_total counter"]


def test_numbers_that_are_not_finite_are_written_in_prometheus_words() -> None:
    registry = MetricRegistry()
    for name, value in (("a", math.nan), ("b", math.inf), ("c", -math.inf), ("d", 1e300)):
        registry.gauge(name, "Help.").set(value)
    read = samples(render(registry))
    assert math.isnan(read["a", frozenset()])
    assert [read[name, frozenset()] for name in "bcd"] == [math.inf, -math.inf, 1e300]
    assert "a NaN\n" in render(registry)


def test_a_scrape_survives_a_callback_that_raises() -> None:
    registry = MetricRegistry()
    registry.gauge("broken", "Broken.").track(lambda: 1 / 0)
    registry.counter("fine_total", "Fine.").add()
    assert samples(render(registry))["fine_total", frozenset()] == 1.0


def test_a_label_with_a_lone_surrogate_can_still_be_sent() -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.", labels=("agent",)).labels(agent="\ud800").add()
    assert render(registry).encode()


@given(st.dictionaries(st.text(max_size=40), st.integers(min_value=0, max_value=10**9), max_size=20))
def test_any_label_value_comes_back_from_the_parser_unchanged(counts: dict[str, int]) -> None:
    registry = MetricRegistry()
    family = registry.counter("loads_total", "Loads.", labels=("key",))
    for key, count in counts.items():
        family.labels(key=key).add(count)
    read = {dict(labels)["key"]: value for (_, labels), value in samples(render(registry)).items()}
    assert read == counts


@given(st.lists(st.floats(min_value=0.0, max_value=1e6)))
def test_buckets_are_cumulative_and_each_counts_what_is_at_most_its_edge(observed: list[float]) -> None:
    registry = MetricRegistry()
    registry.histogram("wait_seconds", "Wait.").observe_many(observed)
    read = samples(render(registry))
    edges = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in read.items()
        if name == "wait_seconds_bucket"
    )
    assert edges[-1] == (math.inf, len(observed))
    assert read["wait_seconds_count", frozenset()] == len(observed)
    for edge, value in edges:
        # An edge is printed with six digits, so a value that near to it may lie on either side.
        assert sum(each < edge * (1 - 1e-5) for each in observed) <= value
        assert value <= sum(each <= edge * (1 + 1e-5) for each in observed)


def test_an_edge_at_a_power_of_two_is_exact_so_that_what_it_counts_is_not_more() -> None:
    registry = MetricRegistry()
    registry.histogram("a_bytes", "A.", smallest=1024, largest=2**24).observe(2**21)
    assert 'a_bytes_bucket{le="2097152.0"} 1' in render(registry)
