"""What a reading says of servers that refuse, hang, answer nonsense, restart or are missing; no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs

import httpx
import pytest

from fairlead.errors import InvalidInput
from fairlead.metrics.instances import Instances
from fairlead.metrics.prometheus import PrometheusServer


def vector(*values: str) -> httpx.Response:
    result = [{"metric": {}, "value": [1.0, value]} for value in values]
    return httpx.Response(200, json={"status": "success", "data": {"resultType": "vector", "result": result}})


def server(answer: Callable[[str], httpx.Response], **settings: object) -> PrometheusServer:
    def handle(request: httpx.Request) -> httpx.Response:
        return answer(parse_qs(request.content.decode())["query"][0])

    return PrometheusServer("http://prometheus:9090", transport=httpx.MockTransport(handle), **settings)  # type: ignore[arg-type]


def healthy(value: str, age: str = "3", n: str = "100") -> Callable[[str], httpx.Response]:
    def answer(query: str) -> httpx.Response:
        if query.startswith("time()"):
            return vector(age)
        return vector(n) if query.startswith("sum(increase(") and "/" not in query else vector(value)

    return answer


def test_a_rate_is_asked_for_with_its_window_and_exact_labels() -> None:
    reading = server(healthy("2.5")).rate("jobs_total", 600.0, {"state": 'it"s\\ done\n', "a": "b"})
    assert (reading.value, reading.reason, reading.n, reading.window_seconds) == (2.5, None, 100.0, 600.0)
    assert reading.query == 'sum(rate(jobs_total{a="b",state="it\\"s\\\\ done\\n"}[600000ms]))'


def test_no_error_ever_counted_is_zero_and_not_unknown() -> None:
    reading = server(healthy("0")).ratio("errors_total", "requests_total", 60.0, where={"code": "500"})
    assert (reading.value, reading.reason) == (0.0, None)
    assert "or vector(0)" in reading.query


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (lambda query: vector(), "no_data", "has no series"),
        (healthy("1", age="90"), "stale", "is 90 s old"),
        (healthy("NaN"), "no_data", "nothing was counted"),
        (healthy("+Inf"), "no_data", "nothing was counted"),
        (lambda query: vector("1", "2"), "query_error", "2 series where one was asked for"),
        (
            lambda query: httpx.Response(400, json={"status": "error", "error": "parse error: bad"}),
            "query_error",
            r"refused \(400\): parse error: bad",
        ),
        (
            lambda query: httpx.Response(502, text="<html>"),
            "query_error",
            "status 502, no answer of a Prometheus",
        ),
        (lambda query: httpx.Response(200, json=[1]), "query_error", "no answer of a Prometheus"),
        (
            lambda query: httpx.Response(200, json={"status": "success"}),
            "query_error",
            "no answer of a Prometheus",
        ),
        (lambda query: httpx.Response(200, text="[" * 100_000), "query_error", "no answer of a Prometheus"),
        (
            lambda query: httpx.Response(200, content=b"x" * (17 * 2**20)),
            "query_error",
            "more than 16,777,216 bytes",
        ),
    ],
)
def test_why_there_is_no_value_is_told_apart(
    answer: Callable[[str], httpx.Response], reason: str, detail: str
) -> None:
    reading = server(answer).rate("jobs_total", 60.0)
    assert (reading.value, reading.reason) == (None, reason)
    assert re.search(detail, reading.detail), reading.detail


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")]
)
def test_a_server_that_cannot_be_reached_is_a_reason_and_no_exception(error: httpx.HTTPError) -> None:
    def answer(query: str) -> httpx.Response:
        raise error

    reading = server(answer, token="s3cret").rate("jobs_total", 60.0)
    assert reading.reason == "query_error"
    assert "s3cret" not in repr(reading)


def test_a_native_histogram_is_asked_without_buckets() -> None:
    reading = server(healthy("0.2")).quantile("wait_seconds", 0.99, 60.0, native=True)
    assert reading.query == "histogram_quantile(0.99, sum(rate(wait_seconds[60000ms])))"
    classic = server(healthy("0.2")).quantile("wait_seconds", 0.99, 60.0)
    assert classic.query == "histogram_quantile(0.99, sum by (le) (rate(wait_seconds_bucket[60000ms])))"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: server(healthy("1")).rate('x"} or on() vector(0) #', 60.0),
        lambda: server(healthy("1")).rate("x", 60.0, {'a"': "b"}),
        lambda: server(healthy("1")).rate("x", 0.0),
        lambda: server(healthy("1")).quantile("x", 99, 60.0),
        lambda: PrometheusServer("ftp://x"),
        lambda: PrometheusServer("http://x", timeout=0.0),
        lambda: Instances([]),
        lambda: Instances(["http://a", "http://a"]),
    ],
)
def test_what_is_no_question_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        wrong()


class Pages:
    """Two instances whose pages a test writes."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.now = 100.0
        self.instances = Instances(
            ["http://a/metrics", "http://b/metrics"],
            transport=httpx.MockTransport(self._handle),
            monotonic=lambda: self.now,
        )

    def _handle(self, request: httpx.Request) -> httpx.Response:
        page = self.pages.get(request.url.host)
        return httpx.Response(503) if page is None else httpx.Response(200, text=page)


@pytest.fixture
def pages() -> Pages:
    return Pages()


def test_what_instances_counted_is_added_up_and_a_restart_counts_from_zero(pages: Pages) -> None:
    pages.pages = {"a": 'jobs_total{s="ok"} 100\njobs_total{s="bad"} 1\n', "b": 'jobs_total{s="ok"} 900\n'}
    before = pages.instances.scrape()
    pages.pages = {"a": 'jobs_total{s="ok"} 130\njobs_total{s="bad"} 4\n', "b": 'jobs_total{s="ok"} 20\n'}
    pages.now += 10.0
    after = pages.instances.scrape()
    rate = pages.instances.rate(before, after, "jobs_total", {"s": "ok"})
    assert (rate.value, rate.n, rate.window_seconds) == (5.0, 50.0, 10.0)
    share = pages.instances.ratio(before, after, "jobs_total", "jobs_total", where={"s": "bad"})
    assert share.value == pytest.approx(3 / 53)


def test_an_instance_without_a_page_makes_it_unknown(pages: Pages) -> None:
    pages.pages = {"a": "x_total 1\n", "b": "x_total 1\n"}
    before = pages.instances.scrape()
    pages.now += 10.0
    for page in (None, "<html>busy</html>"):
        pages.pages = {"a": "x_total 2\n"} | ({} if page is None else {"b": page})
        reading = pages.instances.rate(before, pages.instances.scrape(), "x_total")
        assert reading.reason == "query_error"
        assert "http://b/metrics did not give its page" in reading.detail


def test_a_series_that_is_not_there_and_a_clock_that_stood_are_reasons(pages: Pages) -> None:
    pages.pages = {"a": "x_total 1\n", "b": "x_total 1\n"}
    before = pages.instances.scrape()
    assert pages.instances.rate(before, pages.instances.scrape(), "x_total").reason == "query_error"
    pages.now += 1.0
    after = pages.instances.scrape()
    assert pages.instances.rate(before, after, "y_total").reason == "no_data"
    assert pages.instances.ratio(before, after, "x_total", "x_total").reason == "no_data"
    assert pages.instances.quantile(before, after, "wait", 0.5).reason == "no_data"
    assert pages.instances.rate(before, after, "x_total").value == 0.0


def test_a_quantile_lies_within_its_bucket(pages: Pages) -> None:
    def histogram(*counts: int) -> str:
        edges = ("0.1", "0.2", "+Inf")
        return "".join(f'wait_bucket{{le="{le}"}} {count}\n' for le, count in zip(edges, counts, strict=True))

    pages.pages = {"a": histogram(10, 10, 10), "b": histogram(0, 0, 0)}
    before = pages.instances.scrape()
    pages.now += 10.0
    pages.pages = {"a": histogram(60, 90, 100), "b": histogram(0, 10, 10)}
    after = pages.instances.scrape()
    median = pages.instances.quantile(before, after, "wait", 0.5)
    assert (median.value, median.n) == (pytest.approx(0.1), 100.0)
    assert pages.instances.quantile(before, after, "wait", 0.7).value == pytest.approx(0.15)
    beyond = pages.instances.quantile(before, after, "wait", 0.95)
    assert beyond.value == 0.2
    assert "at least 0.2" in beyond.detail


@pytest.mark.parametrize("count", ["+Inf", "1e308"])
def test_a_count_that_is_not_finite_is_a_query_error_and_no_figure(pages: Pages, count: str) -> None:
    pages.pages = {"a": f"x_total {'+Inf' if count == '+Inf' else '0'}\n", "b": "x_total 0\n"}
    before = pages.instances.scrape()
    pages.now += 1.0
    pages.pages = {"a": f"x_total {count}\n", "b": f"x_total {count}\n"}
    after = pages.instances.scrape()
    assert pages.instances.rate(before, after, "x_total").reason == "query_error"
    assert pages.instances.ratio(before, after, "x_total", "x_total").reason == "query_error"


def test_buckets_of_two_layouts_are_not_added_up(pages: Pages) -> None:
    pages.pages = {
        "a": 'wait_bucket{le="1"} 0\nwait_bucket{le="2"} 0\nwait_bucket{le="+Inf"} 0\n',
        "b": 'wait_bucket{le="1.5"} 0\nwait_bucket{le="+Inf"} 0\n',
    }
    before = pages.instances.scrape()
    pages.now += 1.0
    pages.pages = {
        "a": 'wait_bucket{le="1"} 90\nwait_bucket{le="2"} 100\nwait_bucket{le="+Inf"} 100\n',
        "b": 'wait_bucket{le="1.5"} 1\nwait_bucket{le="+Inf"} 100\n',
    }
    found = pages.instances.quantile(before, pages.instances.scrape(), "wait", 0.5)
    assert found.reason == "query_error"
    assert "different buckets" in found.detail


@pytest.mark.parametrize("token", ["secret\n", "two words", "gehörig", ""])
def test_a_token_that_no_header_carries_is_refused_without_being_said(token: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        PrometheusServer("http://prometheus:9090", token=token)
    assert not token or token.strip() not in str(refusal.value)


@pytest.mark.parametrize(
    ("result", "value", "reason"),
    [
        ({"resultType": "vector", "result": [{"metric": {}, "value": [1, "0.25"]}]}, 0.25, None),
        ({"resultType": "scalar", "result": [1, "3"]}, 3.0, None),
        ({"resultType": "vector", "result": []}, None, "no_data"),
        ({"resultType": "vector", "result": [{"metric": {}, "value": [1, "NaN"]}]}, None, "no_data"),
        ({"resultType": "vector", "result": [{"metric": {}, "value": [1, "1"]}] * 2}, None, "query_error"),
        ({"resultType": "string", "result": "x"}, None, "query_error"),
    ],
    ids=["number", "scalar", "nothing", "nan", "two", "text"],
)
def test_a_query_of_ones_own_yields_one_number_or_a_reason(
    result: dict[str, object], value: float | None, reason: str | None
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert b"sum%28up%29" in request.content
        return httpx.Response(200, json={"status": "success", "data": result})

    transport = httpx.MockTransport(answer)
    with PrometheusServer("http://prometheus:9090", transport=transport) as server:
        found = server.value("sum(up)")
    assert (found.value, found.reason, found.query) == (value, reason, "sum(up)")


@pytest.mark.parametrize("query", ["", "  ", "x" * 4_001])
def test_a_query_that_is_none_is_refused(query: str) -> None:
    with (
        PrometheusServer("http://prometheus:9090") as server,
        pytest.raises(InvalidInput, match="write PromQL"),
    ):
        server.value(query)
