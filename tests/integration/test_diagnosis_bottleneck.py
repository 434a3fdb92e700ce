"""Real causes, told apart: each workload really computes, blocks, locks, waits for a server or syncs a file.

Every workload runs in a process of its own, with the instruments that a service would have, and is judged by two pages
of its /metrics. What the classifier is told is nothing but that text.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from fairlead.diagnosis import Bottleneck, Measured, WaitSampler, find_bottleneck, measured_between
from fairlead.telemetry import MetricRegistry

SECONDS = 0.7

WORKLOAD = '''
import asyncio, hashlib, os, queue, sys, threading, time
import msgspec
from fairlead.calls import Policy
from fairlead.diagnosis import WaitSampler
from fairlead.telemetry import LoopLag, MetricRegistry, export_process
from fairlead.telemetry.asgi import MetricsMiddleware
from fairlead.telemetry.prometheus import render

registry = MetricRegistry()
export_process(registry)
policy = Policy(name="slow_server", timeout=5.0)
policy.export(registry)
port = 0
lock = asyncio.Lock()
thread_lock = threading.Lock()
path = os.environ["WORKLOAD_FILE"]

async def compute():
    until = time.thread_time() + 0.004
    while time.thread_time() < until:
        pass
    await asyncio.sleep(0)

async def block():
    time.sleep(0.15)
    await asyncio.sleep(0)

async def locked():
    async with lock:
        await asyncio.sleep(0.01)

def held():
    with thread_lock:
        time.sleep(0.01)

async def thread_locked():
    await asyncio.to_thread(held)

async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"?"); await reader.read(1); writer.close()

async def downstream():
    await policy.call(ask)

def slow_file():
    """A disk that is sure to be slow on every machine: a FIFO that gives one block each 10 ms."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    def spin():
        while True:
            time.sleep(0.01)
            os.write(descriptor, b"x" * 4096)
    threading.Thread(target=spin, daemon=True).start()
    return descriptor

async def files():
    await asyncio.to_thread(os.read, disk, 4096)

def burn(until):
    block = b"x" * 2**22
    while time.monotonic() < until:
        hashlib.sha256(block)  # without the interpreter's lock

async def downstream_beside_a_busy_thread():
    await downstream()

async def downstream_behind_a_late_loop():
    await downstream()
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass

async def unseen():
    await asyncio.sleep(0.05)

work = globals()[sys.argv[1]]
disk = slow_file() if sys.argv[1] == "files" else -1

async def app(scope, receive, send):
    await work()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def client(server, until):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        pass
    while time.monotonic() < until:
        await server({"type": "http", "method": "GET", "path": "/"}, receive, send)

async def serve(reader, writer):
    await reader.read(1); await asyncio.sleep(0.05); writer.write(b"!"); writer.close()

async def main():
    global port
    server = MetricsMiddleware(app, registry=registry, route=lambda scope: "/")
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    seconds = float(sys.argv[2])
    until = time.monotonic() + seconds + 0.4
    found = []

    def scrape():  # from a thread, as a scraper comes: a loop that is held up must not hold the measurement up
        time.sleep(0.2)
        for pause in (seconds, 0.0):
            found.append((render(registry), time.monotonic()))
            time.sleep(pause)

    threads = [threading.Thread(target=scrape)]
    if sys.argv[1] == "downstream_beside_a_busy_thread":
        threads.append(threading.Thread(target=burn, args=(until,)))
    threading.Thread(target=queue.SimpleQueue().get, daemon=True).start()  # without work, and behind no lock
    async with LoopLag(registry), WaitSampler(registry, interval=0.02):
        for thread in threads:
            thread.start()
        await asyncio.gather(*(client(server, until) for _ in range(8)))
    for thread in threads:
        thread.join()
    listening.close()
    (before, began), (after, ended) = found
    sys.stdout.buffer.write(msgspec.json.encode([before, after, ended - began]))

asyncio.run(main())
'''


async def measure(cause: str, folder: Path) -> Measured:
    """The facts of one workload, from two pages of its metrics."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKLOAD,
        cause,
        str(SECONDS),
        stdout=subprocess.PIPE,
        env={"WORKLOAD_FILE": str(folder / "disk"), "PATH": "/usr/bin:/bin"},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    before, after, seconds = msgspec.json.decode(output, type=tuple[str, str, float])
    return measured_between(before, after, seconds=seconds)


def told(found: Bottleneck, measured: Measured) -> str:
    return f"{found}\n{measured}"


@pytest.mark.parametrize(
    ("cause", "verdict"),
    [
        ("compute", "cpu"),
        ("block", "loop"),
        ("locked", "lock"),
        ("thread_locked", "lock"),
        ("downstream", "downstream"),
        ("downstream_beside_a_busy_thread", "downstream"),
        ("downstream_behind_a_late_loop", "cpu"),
        ("files", "io"),
        ("unseen", "inconclusive"),
    ],
)
async def test_a_real_cause_is_told_from_the_others(cause: str, verdict: str, tmp_path: Path) -> None:
    measured = await measure(cause, tmp_path)
    found = find_bottleneck(measured)
    assert found.verdict == verdict, told(found, measured)
    if verdict != "inconclusive":
        assert found.suspects[0].evidence, told(found, measured)


async def test_tasks_are_looked_at_by_their_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # From another thread, what a running coroutine awaits is read from memory in use: the process dies of it, rarely.
    threads: set[int] = set()
    looked = asyncio.Event()

    def look(loop: asyncio.AbstractEventLoop) -> int:
        threads.add(threading.get_ident())
        looked.set()
        return 0

    monkeypatch.setattr("fairlead.diagnosis.waits._tasks_behind_locks", look)
    async with WaitSampler(MetricRegistry(), interval=0.01):
        await asyncio.wait_for(looked.wait(), 10)
    assert threads == {threading.get_ident()}
