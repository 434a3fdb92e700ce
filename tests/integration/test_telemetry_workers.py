"""The totals of real worker processes: killed, restarted, hung, forked, and with an aggregator that dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from fairlead.errors import InvalidInput, ScrapeIncomplete
from fairlead.telemetry import MetricRegistry, WorkerMetrics, encode_snapshot
from fairlead.telemetry import worker_protocol as protocol

APP = """
import contextlib, os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from fairlead.telemetry import LoopLag, MetricRegistry, WorkerMetrics, export_all
from fairlead.telemetry.asgi import MetricsEndpoint, MetricsMiddleware

registry = MetricRegistry()
export_all(registry)
workers = WorkerMetrics(registry, os.environ["METRICS"], interval=0.1)

async def who(request):
    return PlainTextResponse(str(os.getpid()))

@contextlib.asynccontextmanager
async def lifespan(app):
    with workers:
        async with LoopLag(registry):
            yield

app = Starlette(routes=[Route("/who/{n}", who), Route("/metrics", MetricsEndpoint(workers))], lifespan=lifespan)
app.add_middleware(MetricsMiddleware, registry=registry)
"""

WORKER = """
import asyncio, os, sys, time
from fairlead.telemetry import MetricRegistry, WorkerMetrics, encode_snapshot

registry = MetricRegistry()
loads = registry.counter("loads_total", "Loads.")
depth = registry.gauge("depth", "Depth.")
workers = WorkerMetrics(registry, sys.argv[1], interval=0.1)
"""

SERVE = """
workers.start()
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "add":
        loads.add(int(number))
        depth.set(1)
    time.sleep(0.25)  # two intervals: what was counted has been sent
    print("done", flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "metrics"
    yield path
    end_aggregator(path)


def end_aggregator(path: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int((path / "lock").read_text()), signal.SIGTERM)
    until(lambda: not protocol.socket_path(path).exists())


def until(condition: Callable[[], object], timeout: float = 15.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Worker:
    def __init__(self, directory: Path, script: str = WORKER + SERVE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def add(self, amount: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"add {amount}\n")
        assert self.process.stdout.readline() == "done\n"

    def end(self, number: int | None = None) -> None:
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=20)


@contextmanager
def workers(directory: Path, count: int) -> Iterator[list[Worker]]:
    started = [Worker(directory) for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGCONT)
            worker.process.kill()
            worker.process.communicate(timeout=20)


@contextmanager
def watcher(directory: Path) -> Iterator[WorkerMetrics]:
    """A worker that counts nothing and asks for pages."""
    with WorkerMetrics(MetricRegistry(), directory, interval=0.1) as metrics:
        yield metrics


def value(page: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else -1.0


def page(metrics: WorkerMetrics) -> str:
    return asyncio.run(metrics.scrape())


def test_uvicorn_with_four_workers_counts_every_request_once_though_one_is_killed(
    tmp_path: Path, directory: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--workers", "4", "--fd", str(listening.fileno())]
    server = subprocess.Popen(
        [*command, "--log-level", "warning"],
        cwd=tmp_path,
        env={**os.environ, "METRICS": str(directory), "PYTHONPATH": str(tmp_path)},
        pass_fds=[listening.fileno()],
    )
    made = 0
    answered: set[int] = set()

    def visit(times: int) -> None:
        nonlocal made
        for _ in range(times):
            with suppress(httpx.TransportError):  # the connection that the killed worker had accepted
                answered.add(int(httpx.get(f"{base}/who/{made}", timeout=10).text))
                made += 1

    def total() -> float:
        text = httpx.get(f"{base}/metrics", timeout=10).text
        return value(
            text, 'http_server_requests_total{route="/who/{n}",method="GET",status="2xx",ending="answered"}'
        )

    def living() -> float:
        with suppress(httpx.TransportError):
            return value(httpx.get(f"{base}/metrics", timeout=10).text, 'fairlead_workers{state="answering"}')
        return -1.0

    try:
        until(lambda: living() == 4.0)
        while len(answered) < 4:
            visit(10)
        before = total()
        assert before == made
        killed = min(answered)
        os.kill(killed, signal.SIGKILL)
        until(lambda: living() == 3.0)
        assert total() == before
        until(lambda: living() == 4.0)
        answered.clear()
        while len(answered) < 4:
            visit(10)
        assert killed not in answered
        assert total() == made > before
        text = httpx.get(f"{base}/metrics").text
        assert value(text, "fairlead_workers_ended_total") == 1.0
        assert value(text, "process_threads") > 4 * 2  # of four processes, and none of the dead
        assert value(text, "event_loop_lag_seconds_count") > 4
    finally:
        server.terminate()
        server.wait(timeout=20)
        listening.close()


def test_a_killed_worker_leaves_its_counters_and_a_new_one_adds_to_them(directory: Path) -> None:
    with workers(directory, 2) as (one, other), watcher(directory) as metrics:
        one.add(5)
        other.add(7)
        assert value(page(metrics), "loads_total") == 12.0
        assert value(page(metrics), "depth") == 2.0
        one.end(signal.SIGKILL)
        until(lambda: 'fairlead_workers{state="answering"} 2.0' in page(metrics))
        assert value(page(metrics), "loads_total") == 12.0
        assert value(page(metrics), "depth") == 1.0
        with workers(directory, 1) as (third,):
            third.add(3)
            assert value(page(metrics), "loads_total") == 15.0


def test_a_worker_that_exits_sends_what_it_counted_last(directory: Path) -> None:
    script = WORKER + "workers.start()\nworkers._welcomed.wait(20)\nworkers._interval = 60\nloads.add(9)\n"
    with watcher(directory) as metrics:
        Worker(directory, script).end()
        until(lambda: value(page(metrics), "loads_total") == 9.0)


def test_a_hung_worker_is_waited_for_briefly_and_marked_and_counts_on_when_it_wakes(directory: Path) -> None:
    with workers(directory, 2) as (one, other), watcher(directory) as metrics:
        one.add(5)
        other.add(7)
        one.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            began = time.monotonic()
            text = page(metrics)
            assert time.monotonic() - began < 2.0
            assert value(text, "loads_total") == 12.0
            assert value(text, 'fairlead_workers{state="late"}') == 1.0
            assert value(text, 'fairlead_workers{state="answering"}') == 2.0
        one.process.send_signal(signal.SIGCONT)
        one.add(1)
        text = page(metrics)
        assert value(text, "loads_total") == 13.0
        assert value(text, 'fairlead_workers{state="late"}') == 0.0


def test_forked_workers_count_their_own_and_not_again_what_their_parent_had_counted(directory: Path) -> None:
    script = (
        WORKER
        + """
loads.add(100)
workers.start()
workers._welcomed.wait(20)
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert workers._thread is None
        workers.start()
        loads.add(1)
        workers.close()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
loads.add(10)
"""
    )
    with watcher(directory) as metrics:
        Worker(directory, script).end()
        until(lambda: value(page(metrics), "loads_total") == 113.0)


def test_when_the_aggregator_is_killed_the_totals_restart_as_one(directory: Path) -> None:
    with workers(directory, 2) as (one, other), watcher(directory) as metrics:
        one.add(5)
        other.add(7)
        other.end(signal.SIGKILL)
        assert value(page(metrics), "loads_total") == 12.0
        os.kill(int((directory / "lock").read_text()), signal.SIGKILL)
        one.add(1)

        def shown() -> float:
            with suppress(ScrapeIncomplete):
                return value(page(metrics), "loads_total")
            return -1.0

        until(lambda: shown() >= 0.0)
        assert shown() <= 1.0  # not the 6 of the worker that lives: five of them were shown before
        one.add(2)
        assert 2.0 <= shown() <= 3.0


def test_only_one_aggregator_serves_a_directory(directory: Path) -> None:
    with watcher(directory) as metrics:
        assert page(metrics)
        command = [sys.executable, "-m", "fairlead.telemetry.aggregator", str(directory)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert second.returncode == 1
        assert "another aggregator serves it" in second.stderr
        assert page(metrics)


def test_what_is_no_message_closes_that_connection_and_nothing_else(directory: Path) -> None:
    with workers(directory, 1) as (one,), watcher(directory) as metrics:
        one.add(5)
        for garbage in (b"\xff" * 64, b"\0\0\0\4abcd", b"\0\0\0\1", protocol.encode(protocol.Ask())):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(protocol.socket_path(directory)))
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(64) == b""
        assert value(page(metrics), "loads_total") == 5.0


def test_a_worker_that_sends_a_broken_snapshot_counts_with_its_last_good_one(directory: Path) -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add(4)

    with watcher(directory) as metrics, socket.socket(socket.AF_UNIX) as connection:
        page(metrics)
        connection.connect(str(protocol.socket_path(directory)))
        protocol.send(connection, protocol.Hello("rogue"), 5)
        assert protocol.receive(connection, protocol.Welcome, 5).taken == 0
        protocol.send(connection, protocol.Taken(1, encode_snapshot(registry.snapshot())), 5)
        assert protocol.receive(connection, protocol.Ack, 5).number == 1
        assert value(page(metrics), "loads_total") == 4.0
        assert isinstance(protocol.receive(connection, object, 5), protocol.Ask)
        protocol.send(connection, protocol.Taken(2, b"no snapshot"), 5)
        assert value(page(metrics), "loads_total") == 4.0


def test_a_release_that_changes_a_metric_replaces_the_old_one_once_its_workers_have_ended(
    directory: Path,
) -> None:
    changed = WORKER.replace('loads = registry.counter("loads_total", "Loads.")', "") + (
        'loads = registry.counter("loads_total", "Loads.", labels=("route",)).labels(route="/")\n'
    )
    with workers(directory, 1) as (old,), watcher(directory) as metrics:
        old.add(5)
        new = Worker(directory, changed + SERVE)
        new.add(2)
        text = page(metrics)
        assert value(text, "loads_total") == 5.0
        assert value(text, "fairlead_metric_families_left_out") == 1.0
        old.end(signal.SIGKILL)
        until(lambda: value(page(metrics), 'loads_total{route="/"}') == 2.0)
        assert value(page(metrics), "loads_total") == -1.0
        new.end()


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    (tmp_path / "file").touch()
    for name, reason in (("open", "alone"), ("link", "alone"), ("file", "cannot"), ("x" * 120, "shorter")):
        with pytest.raises(InvalidInput, match=reason):
            WorkerMetrics(MetricRegistry(), tmp_path / name)
    WorkerMetrics(MetricRegistry(), tmp_path / "made" / "here")
    assert (tmp_path / "made" / "here").stat().st_mode & 0o777 == 0o700


def test_a_scrape_without_an_aggregator_fails_instead_of_showing_a_part(tmp_path: Path) -> None:
    metrics = WorkerMetrics(MetricRegistry(), tmp_path / "m", timeout=0.3, spawn=False)
    with pytest.raises(ScrapeIncomplete, match=r"start\(\) was not called"):
        page(metrics)
    with metrics, pytest.raises(ScrapeIncomplete, match="not connected"):
        page(metrics)


def test_the_merged_snapshot_holds_what_the_page_shows(directory: Path) -> None:
    with workers(directory, 1) as (one,), watcher(directory) as metrics:
        one.add(5)
        [family] = [each for each in metrics.merged().families if each.name == "loads_total"]
        assert family.values == {(): 5.0}
