"""How long it takes from writing a flag document until a hundred followers evaluate by it, by file and by HTTP.

The followers share this process and its one processor, each with a flag set, a source and connections of its own, so
most of what is measured is their own work. The control plane is a uvicorn in a process of its own, which watches the
file that is written.

    python -m bench.flag_delivery serve FILE PORT     that control plane
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from bench.harness import Bar
from fairlead.flags import DocumentSource, EvaluationContext, FlagDelivery, FlagFile, FlagSet, write_flag_file
from fairlead.flags.asgi import FlagsEndpoint
from fairlead.flags.httpx import HttpFlags
from fairlead.testing.server_process import free_port

__all__ = ["bars"]

_FOLLOWERS = 100
_ROOT = Path(__file__).resolve().parent.parent
_NOBODY = EvaluationContext()


def _document(version: int) -> bytes:
    flag = {"state": "ENABLED", "variants": {"on": f"v{version}"}, "defaultVariant": "on"}
    return json.dumps({"metadata": {"version": version}, "flags": {"feed": flag}}).encode()


@contextlib.contextmanager
def _control_plane(path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "bench.flag_delivery", "serve", str(path), str(port)]
    with subprocess.Popen(command, cwd=_ROOT) as server:
        try:
            yield f"http://127.0.0.1:{port}/flags"
        finally:
            server.terminate()


async def _written_to_evaluated(path: Path, source: Callable[[], DocumentSource], rounds: int) -> list[float]:
    """Seconds of each round, from before the write to the last follower."""
    rng = random.Random(7)
    write_flag_file(path, _document(1))
    async with contextlib.AsyncExitStack() as stack:
        flags = [FlagSet.parse(_document(0)) for _ in range(_FOLLOWERS)]
        deliveries = [FlagDelivery(each, source(), start_timeout=30.0) for each in flags]
        await asyncio.gather(*(stack.enter_async_context(each) for each in deliveries))
        await asyncio.sleep(1.0)  # until all streams are open
        took = []
        for version in range(2, rounds + 2):
            await asyncio.sleep(rng.uniform(0.2, 0.5))  # at no fixed moment between two looks
            began = time.monotonic()
            await asyncio.to_thread(write_flag_file, path, _document(version))
            while any(each.string("feed", _NOBODY, "") != f"v{version}" for each in flags):
                if time.monotonic() - began > 30.0:
                    raise TimeoutError("a follower did not hear of a version within 30 s")
                await asyncio.sleep(0.001)
            took.append(time.monotonic() - began)
    return took


def bars(quick: bool) -> list[Bar]:
    """By file and by HTTP."""
    rounds = 5 if quick else 30
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        path = Path(name, "flags.json")
        write_flag_file(path, _document(0))
        by_file = asyncio.run(_written_to_evaluated(path, lambda: FlagFile(path), rounds))
        path = Path(name, "served.json")
        write_flag_file(path, _document(0))
        with _control_plane(path) as url:
            by_http = asyncio.run(
                _written_to_evaluated(path, lambda: HttpFlags(url, timeout=30.0, longest_wait=0.5), rounds)
            )
    return [
        _bar("a file, looked at every 0.2 s", by_file),
        _bar("HTTP, from a control plane that looks at its file every 0.05 s", by_http),
    ]


def _bar(by: str, took: list[float]) -> Bar:
    quartiles = statistics.quantiles(took, n=4)
    return Bar(
        what=f"from writing a flag document until {_FOLLOWERS} followers evaluate by it, by {by}, slowest",
        value=max(took),
        limit=1.0,
        unit="s",
        n=len(took),
        spread=(quartiles[0], quartiles[2]),
        note="the followers share one process",
        figures={"median_seconds": statistics.median(took)},
    )


def _serve(path: str, port: str) -> None:
    delivery = FlagDelivery(FlagSet.from_file(path), FlagFile(path, every=0.05))
    uvicorn.run(FlagsEndpoint(delivery), port=int(port), log_level="error", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    _serve(*sys.argv[2:])
