"""What a service recorded of its traffic is sent to it again, and arrives in the same order and rhythm."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fairlead.admission.asgi import AdmissionMiddleware
from fairlead.errors import InvalidInput
from fairlead.lab import Ending, Recording, drive
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RecordingMiddleware, Redactor


def written(directory: Path) -> bytes:
    return b"".join(segment.read_bytes() for segment in directory.iterdir())


async def test_a_recorded_service_meets_its_own_traffic_again(tmp_path: Path):
    arrived: list[tuple[str, str, object]] = []

    async def feed(request: Request) -> JSONResponse:
        body = await request.json() if request.method == "POST" else None
        arrived.append((request.path_params["user"], request.query_params.get("page", ""), body))
        return JSONResponse([])

    app = Starlette(routes=[Route("/feed/{user}", feed, methods=["GET", "POST"])])
    with BufferedSink(JsonLinesSegments(tmp_path)) as sink:
        recording_app = RecordingMiddleware(
            app, sink=sink, redactor=Redactor(b"k" * 32), share=1.0, body_bytes=1_000,
            fields={"page": "public", "size": "public"},
        )  # fmt: skip
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            server = uvicorn.Server(
                uvicorn.Config(AdmissionMiddleware(recording_app), log_level="critical", lifespan="off")
            )
            serving = asyncio.create_task(server.serve([listener]))
            base_url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base_url) as client:
                for user, page in (("ann", "1"), ("bob", "1"), ("ann", "2"), ("ann", "1")):
                    await client.get(f"/feed/{user}", params={"page": page})
                    await asyncio.sleep(0.05)
                await client.post("/feed/bob", json={"to": "ann", "size": 3})
            recorded = list(arrived)
            await asyncio.to_thread(sink.flush)
            recording = Recording.read(tmp_path, substitute=lambda number: f"user-{number}")
            arrived.clear()
            samples = await drive(recording.schedule(), recording.request, base_url=base_url)
            server.should_exit = True
            await serving
    assert b"ann" not in written(tmp_path)
    assert [user for user, _, _ in recorded] == ["ann", "bob", "ann", "ann", "bob"]
    assert [each[:2] for each in arrived] == [
        ("user-0", "1"), ("user-1", "1"), ("user-0", "2"), ("user-0", "1"), ("user-1", "")
    ]  # fmt: skip
    assert arrived[-1][2] == {"to": "user-0", "size": 3}
    assert set(samples.ending.tolist()) == {Ending.OK}
    schedule = recording.schedule()
    assert schedule.keys.tolist() == [0, 1, 2, 0, 3]
    assert np.diff(schedule.offsets)[:3].min() >= 0.05
    assert recording.share == 1.0


def test_an_empty_recording_says_what_would_have_filled_it(tmp_path: Path):
    with pytest.raises(InvalidInput, match="no request; was it recorded with RecordingMiddleware"):
        Recording.read(tmp_path)
