"""OpenSLO documents are taken over whole, or left out with the reason; hostile YAML is refused."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.slo import CalendarPeriod, RollingPeriod
from fairlead.slo.openslo import import_openslo

V1 = """
apiVersion: openslo/v1
kind: SLI
metadata: {name: feed-ratio}
spec:
  ratioMetric:
    good:
      metricSource: {type: Prometheus, spec: {query: 'sum(rate(http_requests_total{status!~"5.."}[5m]))'}}
    total:
      metricSource: {type: Prometheus, spec: {query: 'sum(rate(http_requests_total[5m]))'}}
---
apiVersion: openslo/v1
kind: SLO
metadata: {name: feed-answers, displayName: Feed answers, annotations: {owner: team feed, runbook: "https://r/feed"}}
spec:
  indicatorRef: feed-ratio
  budgetingMethod: Occurrences
  timeWindow:
    - duration: 30d
      isRolling: true
  objectives:
    - displayName: strict
      target: 0.999
    - displayName: lax
      targetPercent: 99.5
"""
ALPHA = """
apiVersion: openslo/v1alpha
kind: SLO
metadata: {name: feed}
spec:
  description: Feed answers
  budgetingMethod: Occurrences
  timeWindows:
    - count: 1
      unit: Month
      isRolling: false
      calendar: {startTime: "2026-01-01 00:00:00", timeZone: Europe/Vienna}
  objectives:
    - target: 0.98
      ratioMetrics:
        good: {source: prometheus, query: 'http_requests_total{status="200"}'}
        total: {source: prometheus, query: http_requests_total}
"""


def test_version_one_with_a_reference_and_two_objectives() -> None:
    found = import_openslo(V1.encode())
    assert found.left_out == ()
    strict, lax = found.objectives
    assert (strict.name, lax.name) == ("feed_answers_strict", "feed_answers_lax")
    assert (strict.target, lax.target) == (Decimal("0.999"), Decimal("0.995"))
    assert strict.period == RollingPeriod(seconds=30 * 86400.0)
    assert strict.prometheus is not None
    assert strict.prometheus.good == 'http_requests_total{status!~"5.."}'
    assert strict.prometheus.valid == "http_requests_total"
    assert (strict.owner, strict.runbook) == ("team feed", "https://r/feed")


def test_version_one_alpha_with_a_calendar() -> None:
    found = import_openslo(ALPHA.encode(), owner="team feed", runbook="docs/feed.md")
    assert found.objectives[0].period == CalendarPeriod(unit="month", time_zone="Europe/Vienna")
    assert found.objectives[0].target == Decimal("0.98")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("budgetingMethod: Occurrences", "budgetingMethod: Timeslices", "budgets are counted in events"),
        ("  ratioMetric:\n", "  ratioMetric:\n    counter: false\n", "counter: false: rates and increases"),
        (
            "budgetingMethod: Occurrences",
            "composite: {maxBurnRate: {value: 1}}",
            "a composite: it is judged by",
        ),
        ("displayName: strict", "composite: {components: {}, maxDelay: 45m}", "a composite: it is judged by"),
        (
            "displayName: strict",
            "displayName: strict\n      compositeWeight: 0.5",
            "each objective is judged by itself",
        ),
        ("indicatorRef: feed-ratio", "indicatorRef: other", "'other' is not in this file"),
        ("'sum(rate(http_requests_total[5m]))'", "'a / b'", "more than a sum of a rate of one selector"),
        (
            "type: Prometheus, spec: {query: 'sum(rate(http_requests_total[5m]))'",
            "type: Datadog, spec: {query: x",
            "asked of datadog",
        ),
        ("  ratioMetric:", "  thresholdMetric:", "a thresholdMetric: give a histogram"),
        ("duration: 30d", "duration: 30y", "duration '30y'"),
        ("target: 0.999", "target: 1", "1 leaves no budget"),
        ("annotations: {owner: team feed, ", "annotations: {", "owner is missing"),
        ("    good:", "    bad:", "without good and total"),
    ],
)
def test_what_cannot_be_taken_over_is_said(old: str, new: str, said: str) -> None:
    found = import_openslo(V1.replace(old, new).encode())
    assert any(said in reason for reason in found.left_out), found.left_out


def test_other_kinds_and_versions_are_said() -> None:
    more = (
        V1 + "---\napiVersion: openslo/v1\nkind: AlertPolicy\nmetadata: {name: p}\n---\napiVersion: "
        "openslo/v3\nkind: SLO\n"
    )
    found = import_openslo(more.encode())
    assert len(found.objectives) == 2
    assert len(found.left_out) == 2


BOMB = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "anchors and aliases"),
        (b"x: !!python/object/apply:os.system ['true']", "no YAML"),
        (b"[" * 10_000, "nested deeper|no YAML"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested deeper"),
        (b"x" * (1024 * 1024 + 1), "larger than"),
        (b"\xff\xfe\x00\x01\x02", "no YAML|no mapping|no document"),
        (b"- 1\n- 2\n", "no mapping"),
        (b"", "no document of kind SLO"),
        (b"apiVersion: openslo/v1\nkind: Service\n", "no document of kind SLO"),
        (b"a: 2026-13-45\n", "no YAML|no document"),
    ],
)
def test_hostile_yaml_is_refused_at_once(content: bytes, said: str) -> None:
    began = time.process_time()
    with pytest.raises(BrokenDocument, match=said):
        import_openslo(content, name="x.yaml")
    assert time.process_time() - began < 1.0


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["0.999", "feed-ratio", "30d", "Occurrences", "Feed answers"]))
def test_any_words_in_a_document_are_taken_over_or_refused(words: str, place: str) -> None:
    try:
        found = import_openslo(V1.replace(place, words, 1).encode("utf-8", "surrogatepass"))
    except InvalidInput:
        return
    assert len(found.objectives) + len(found.left_out) >= 1
