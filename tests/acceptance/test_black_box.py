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


@contextmanager
def site(folder: Path, has_page: bool) -> Iterator[int]:
    """Python's own file server: old and new version of a site."""
    folder.mkdir()
    if has_page:
        (folder / "page.html").write_text("<p>a page</p>", encoding="utf-8")
    (folder / "index.html").write_text("<p>home</p>", encoding="utf-8")
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(words, lambda: answers(f"http://127.0.0.1:{port}/"), folder):
        yield port


@contextmanager
def users(proxy: HaproxyServer) -> Iterator[None]:
    """People who ask for the page, each with an id, a hundred a second."""
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.wait(0.01):
            number += 1
            connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=5.0)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/page.html", headers={"x-user-id": f"user-{number}"})
                connection.getresponse().read()
            connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


@pytest.mark.parametrize(("has_page", "code"), [(True, 0), (False, 3)], ids=["good", "broken"])
def test_a_site_behind_a_proxy_gets_a_guarded_rollout(tmp_path: Path, has_page: bool, code: int) -> None:
    map_file = tmp_path / "site.map"
    map_file.touch()
    metrics, prometheus = free_port(), free_port()
    with site(tmp_path / "old", True) as old, site(tmp_path / "new", has_page) as new:

        def configuration(port: int) -> str:
            text = block("haproxy").replace("/etc/haproxy/site.map", str(map_file))
            text = text.replace(":8080", f":{port}").replace(":8001", f":{old}").replace(":8002", f":{new}")
            return text + METRICS.format(metrics=metrics)

        (tmp_path / "prometheus.yml").write_text(SCRAPE.format(metrics=metrics), encoding="utf-8")
        server = [
            "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{prometheus}", "--log.level=error",
        ]  # fmt: skip
        change = block("toml")
        for was, now in (("10m", "8s"), ("30m", "20s"), ('"1m"', '"3s"'), ("[1m]", "[5s]")):
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
                    "--map", str(map_file), "--prometheus", url, "--store", str(tmp_path / "fairlead.db"),
                ],
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                capture_output=True, text=True, timeout=110, check=False,
            )  # fmt: skip
            assert started.returncode == code, started.stdout + started.stderr
            served = " ".join(proxy.command(f"show map {map_file}"))
            assert ("slots 10000" in served) is has_page
            assert ("slots 0" in served) is not has_page
    if not has_page:
        assert "missing_pages above 0.05" in started.stdout
        assert "[[incidents]]" in (tmp_path / "site.toml").read_text(encoding="utf-8")
