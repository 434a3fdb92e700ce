"""The walk of docs/guides/black-box.md: a real HAProxy and a real Prometheus in front of a site that is not ours."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fairlead.testing import HaproxyServer

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/black-box.md").read_text(encoding="utf-8")
METRICS = """
frontend metrics
    bind 127.0.0.1:{metrics}
    http-request use-service prometheus-exporter
"""
SCRAPE = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: haproxy
    static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
"""


def block(kind: str) -> str:
    """The one block of the guide that is of this kind."""
    (found,) = re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.S)
    return str(found)


@contextmanager
def running(words: list[str], ready: Callable[[], bool], cwd: Path) -> Iterator[None]:
    process = subprocess.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(ready)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2.0).status_code < 500
    return False


PAGES = 50


@contextmanager
def site(folder: Path, pages: int) -> Iterator[int]:
    """Python's own file server: old and new version of a site, with so many of its pages."""
    folder.mkdir()
    for number in range(pages):
        (folder / f"page{number}.html").write_text("<p>a page</p>", encoding="utf-8")
    (folder / "index.html").write_text("<p>home</p>", encoding="utf-8")
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(words, lambda: answers(f"http://127.0.0.1:{port}/"), folder):
        yield port


@contextmanager
def users(proxy: HaproxyServer) -> Iterator[None]:
    """People who ask for a page each, with an id, some two hundred a second."""
    stop = threading.Event()

    numbers = count()

    def ask() -> None:
        while not stop.wait(0.01):
            number = next(numbers)
            connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5.0)
            with suppress(OSError, http.client.HTTPException):
                page = f"/page{number % PAGES}.html"
                connection.request("GET", page, headers={"x-user-id": f"user-{number}"})
                connection.getresponse().read()
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("pages", "code"), [(PAGES, 0), (0, 3), (PAGES - 1, 3)], ids=["good", "broken", "worse-than-control"]
)
def test_a_site_behind_a_proxy_gets_a_guarded_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, code: int
) -> None:
    map_file = tmp_path / "site.map"
    map_file.touch()
    metrics, prometheus, log = free_port(), free_port(), free_udp_port()
    monkeypatch.setenv("FAIRLEAD_LOG_KEY", "YSBzZWNyZXQgb2YgdGhpcyB0ZXN0")
    with site(tmp_path / "old", PAGES) as old, site(tmp_path / "new", pages) as new:

        def configuration(port: int) -> str:
            text = block("haproxy").replace("/var/lib/fairlead/site.map", str(map_file))
            text = text.replace(":8080", f":{port}").replace(":8001", f":{old}").replace(":8002", f":{new}")
            text = text.replace(":5140", f":{log}")
            return text + METRICS.format(metrics=metrics)

        (tmp_path / "prometheus.yml").write_text(SCRAPE.format(metrics=metrics), encoding="utf-8")
        server = [
            "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{prometheus}", "--log.level=error",
        ]  # fmt: skip
        change = block("toml")
        for was, now in (("10m", "8s"), ("30m", "20s"), ('"1m"', '"3s"'), ("[1m]", "[10s]")):
            change = change.replace(was, now)  # the same walk, in seconds in place of minutes
        (tmp_path / "site.toml").write_text(change, encoding="utf-8")
        url = f"http://127.0.0.1:{prometheus}"
        with (
            HaproxyServer(configuration) as proxy,
            running(server, lambda: answers(f"{url}/-/ready"), tmp_path),
            users(proxy),
        ):
            until(
                lambda: bool(
                    httpx.get(
                        f"{url}/api/v1/query", params={"query": "haproxy_backend_http_responses_total"}
                    ).json()["data"]["result"]
                )
            )
            started = subprocess.run(
                [
                    sys.executable, "-m", "fairlead.cli", "rollout", "start", "site.toml", "--haproxy", proxy.socket,
                    "--map", str(map_file), "--haproxy-log", f"127.0.0.1:{log}", "--events", str(tmp_path / "log"),
                    "--prometheus", url, "--store", str(tmp_path / "fairlead.db"),
                ],
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                capture_output=True, text=True, timeout=110, check=False,
            )  # fmt: skip
            assert started.returncode == code, started.stdout + started.stderr
            served = " ".join(proxy.command(f"show map {map_file}"))
            assert ("slots 10000" in served) is (code == 0)
            assert ("slots 0" in served) is (code != 0)
    assert "lines received" in started.stdout
    assert "; 0 lost" in started.stdout
    if code:
        assert "[[incidents]]" in (tmp_path / "site.toml").read_text(encoding="utf-8")
    if not pages:
        assert "missing_pages above 0.05" in started.stdout or "refused_readers" in started.stdout
    if pages == PAGES - 1:
        why = next(line for line in started.stdout.splitlines() if ": rolled back: " in line)
        assert "refused_readers worse_by 1 pp: treatment" in why
        assert "missing_pages" not in why
    assert b"user-" not in b"".join(each.read_bytes() for each in (tmp_path / "log").iterdir())
