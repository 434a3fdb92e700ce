"""A service under uvicorn that is told to stop: every event of every request that was answered is on disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from fairlead.telemetry import read_events
from fairlead.testing.server_process import free_port

APP = """
import contextlib, sys, time
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import asyncio, uvicorn
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RequestFinished

sink = BufferedSink(JsonLinesSegments(sys.argv[2]), flush_interval=60.0)

async def feed(request):
    for number in range(100):
        sink.emit(RequestFinished(
            at_utc_seconds=time.time(), service="feed", route="/feed", status=200, latency_seconds=0.01
        ))
    return PlainTextResponse("ok")

@contextlib.asynccontextmanager
async def lifespan(app):
    try:
        yield
    finally:
        assert await asyncio.to_thread(sink.close)

app = Starlette(routes=[Route("/", feed)], lifespan=lifespan)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


def test_sigterm_under_uvicorn_loses_no_event_of_an_answered_request(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", APP, str(port), str(tmp_path)])
    try:
        answered = 0
        end = time.monotonic() + 20.0
        while answered < 50 and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5.0) as answer:
                    answered += answer.status == 200
            except OSError:
                time.sleep(0.05)
        assert answered == 50
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert sum(1 for _ in read_events(tmp_path)) == 5_000
