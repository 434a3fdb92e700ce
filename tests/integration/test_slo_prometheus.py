"""The rules that we write, as promtool and a real Prometheus understand them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from fairlead.cli import main
from fairlead.cli.exit_codes import ExitCode
from fairlead.slo import Counters, LatencyBuckets, Objective, RollingPeriod, prometheus_rules

DAY = 86400.0
FEED = Objective(
    name="feed", title='Feed "answers"', target=Decimal("0.999"), period=RollingPeriod(seconds=30 * DAY),
    owner="team feed", runbook="https://runbooks/feed", minimum_events=100, labels={"tier": "1"},
    prometheus=Counters(good='http_requests_total{status!~"5.."}', valid="http_requests_total"),
)  # fmt: skip
LATENCY = Objective(
    name="feed_latency", title="Feed is fast", target=Decimal("0.99"), period=RollingPeriod(seconds=7 * DAY),
    owner="team feed", runbook="https://runbooks/feed",
    prometheus=LatencyBuckets(histogram="http_request_duration_seconds", le="0.3", where='route="/feed"'),
)  # fmt: skip

RULES_TEST = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      # 600 requests a minute; from minute 120 on half of them fail, for half an hour.
      - series: 'http_requests_total{status="200"}'
        values: '0+600x120 72300+300x29 81600+600x120'
      - series: 'http_requests_total{status="500"}'
        values: '0+0x120 300+300x29 9000+0x120'
    alert_rule_test:
      - eval_time: 110m
        alertname: ErrorBudgetBurn
        exp_alerts: []
      - eval_time: 145m
        alertname: ErrorBudgetBurn
        exp_alerts:
EXPECTED
    promql_expr_test:
      - expr: 'slo:error_budget:ratio{slo="feed"}'
        eval_time: 10m
        exp_samples: [{labels: 'slo:error_budget:ratio{slo="feed", tier="1"}', value: BUDGET}]
      - expr: 'slo:error_ratio:rate5m{slo="feed"}'
        eval_time: 140m
        exp_samples: [{labels: 'slo:error_ratio:rate5m{slo="feed", tier="1"}', value: 0.5}]
"""


def rules_test(*, budget: str = "0.001", first: str = "page") -> str:
    """What promtool is to expect of the rules; budget and the first alert's severity may be wrong on purpose."""
    rows = [
        (first, "14.4", "2%", "1h", "5m"),
        ("page", "6", "5%", "6h", "30m"),
        ("ticket", "3", "10%", "1d", "2h"),
        ("ticket", "1", "10%", "3d", "6h"),
    ]
    alerts = []
    for severity, rate, share, long, short in rows:
        alerts.append(
            {
                "exp_labels": {
                    "slo": "feed", "tier": "1", "severity": severity, "owner": "team feed", "long_window": long,
                },
                "exp_annotations": {
                    "summary": f'Feed "answers": the error budget burns {rate} times too fast',
                    "description": f"More than {share} of the budget of 30 days, rolling went within {long}, and it "
                    f"still burns over {short}. Objective: 99.9 % of events good.",
                    "runbook_url": "https://runbooks/feed",
                },
            }
        )  # fmt: skip
    # JSON is YAML.
    listed = "\n".join(f"          - {json.dumps(alert)}" for alert in alerts)
    return RULES_TEST.replace("EXPECTED", listed).replace("BUDGET", budget)


def promtool(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(prometheus_rules([FEED, LATENCY]))
    return path


def test_promtool_finds_nothing_wrong(rules: Path) -> None:
    found = promtool("check", "rules", "--lint-fatal", rules.name, cwd=rules.parent)
    assert found.returncode == 0, found.stdout + found.stderr
    text = rules.read_text()
    assert "0.0144" in text
    assert "0.001" in text
    assert not re.search(r"0000000\d", text), "a float that was not meant"


def test_promtool_plays_an_outage_as_expected(rules: Path) -> None:
    (rules.parent / "test.yaml").write_text(rules_test())
    found = promtool("test", "rules", "test.yaml", cwd=rules.parent)
    assert found.returncode == 0, found.stdout + found.stderr


def test_promtool_refuses_a_wrong_expectation(rules: Path) -> None:
    (rules.parent / "test.yaml").write_text(rules_test(budget="0.002"))
    found = promtool("test", "rules", "test.yaml", cwd=rules.parent)
    assert found.returncode != 0
    (rules.parent / "test.yaml").write_text(rules_test(first="ticket"))
    assert promtool("test", "rules", "test.yaml", cwd=rules.parent).returncode != 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def history(now: int, outage_minutes: int) -> str:
    """A week of 60 requests a minute, by the minute, with an outage of half of them until now."""
    lines = ["# TYPE http_requests counter"]
    good = bad = 0
    series: dict[str, list[str]] = {"200": [], "500": []}
    for minute in range(7 * 1440, -1, -1):
        failed = 30 if minute < outage_minutes else 0
        good, bad = good + 60 - failed, bad + failed
        at = now - 60 * minute
        series["200"].append(f'http_requests_total{{status="200"}} {good} {at}')
        series["500"].append(f'http_requests_total{{status="500"}} {bad} {at}')
    return "\n".join([*lines, *series["200"], *series["500"], "# EOF", ""])


def alerts(folder: Path, outage_minutes: int) -> set[str]:
    """The long windows of the alerts that fire in a real Prometheus over a back-filled week."""
    now = int(time.time())
    (folder / "history.txt").write_text(history(now, outage_minutes))
    (folder / "rules.yaml").write_text(prometheus_rules([FEED]))
    filled = promtool("tsdb", "create-blocks-from", "openmetrics", "history.txt", "data", cwd=folder)
    assert filled.returncode == 0, filled.stdout + filled.stderr
    (folder / "prometheus.yml").write_text("global: {evaluation_interval: 200ms}\nrule_files: [rules.yaml]\n")
    port = free_port()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=60d",
            ],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            end = time.monotonic() + 20
            while True:
                assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
                try:
                    groups = client.get("/api/v1/rules").json()["data"]["groups"]
                    found = [rule for group in groups for rule in group["rules"]]
                except (httpx.TransportError, ValueError, KeyError):
                    time.sleep(0.05)
                    continue
                # Alerts stand on recorded series: two evaluations of each group, then they are what they are.
                ratio = client.get("/api/v1/query", params={"query": "slo:error_ratio:rate3d"}).json()[
                    "data"
                ]["result"]
                if found and ratio and all(rule["health"] == "ok" for rule in found):
                    break
                time.sleep(0.05)
            time.sleep(0.6)
            firing = client.get("/api/v1/alerts").json()["data"]["alerts"]
            return {alert["labels"]["long_window"] for alert in firing if alert["state"] == "firing"}
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_real_prometheus_fires_in_an_outage_and_is_silent_in_a_clean_week(tmp_path: Path) -> None:
    outage, clean = tmp_path / "outage", tmp_path / "clean"
    outage.mkdir()
    clean.mkdir()
    assert {"1h", "6h"} <= alerts(outage, outage_minutes=45)
    assert alerts(clean, outage_minutes=0) == set()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairlead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(["slo", *words])
        return code, *capsys.readouterr()

    return called


def test_an_openslo_document_becomes_rules_that_promtool_takes(fairlead: Run, tmp_path: Path) -> None:
    Path("open.yaml").write_text(
        "apiVersion: openslo/v1\nkind: SLO\nmetadata: {name: feed-answers, displayName: Feed answers}\n"
        "spec:\n  budgetingMethod: Occurrences\n  timeWindow: [{duration: 28d, isRolling: true}]\n"
        "  objectives: [{target: 0.9995}]\n  indicator:\n    metadata: {name: x}\n    spec:\n      ratioMetric:\n"
        "        good: {metricSource: {type: Prometheus, spec: {query: "
        "'sum(rate(http_requests_total{status!~\"5..\"}[5m]))'}}}\n"
        "        total: {metricSource: {type: Prometheus, spec: {query: http_requests_total}}}\n"
    )
    code, _, err = fairlead(
        "import", "open.yaml", "-o", "slo.toml", "--owner", "team feed", "--runbook", "docs/feed.md"
    )
    assert (code, err) == (ExitCode.OK, "")
    code, out, _ = fairlead("check", "slo.toml")
    assert code == ExitCode.OK
    assert "99.95 % of 28 days, rolling: 20.2 min of outage" in out
    assert fairlead("rules", "slo.toml", "-o", "rules.yaml")[0] == ExitCode.OK
    found = promtool("check", "rules", "--lint-fatal", "rules.yaml", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
