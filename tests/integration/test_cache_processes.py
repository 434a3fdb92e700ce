"""What a fork, an exit and an interrupt do to loads in flight, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

PRELUDE = """
import asyncio, json, os, sys
from fairlead.cache import Cache, Freshness
from fairlead.errors import LoadCancelled

PLAIN = Freshness(ttl=60.0, jitter=0.5)
STALE = Freshness(ttl=0.0, stale_while_revalidate=60.0)

async def answer():
    return "answer"

async def hang():
    await asyncio.Event().wait()
"""


def python(program: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Runs `program` after the prelude; its result, and what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"},
        check=False,
    )
    lines = done.stdout.splitlines()
    return done, json.loads(lines[-1]) if lines else None


FORKED = """
async def parent():
    cache = Cache(refresh_concurrency=1)
    await cache.get_or_load("warm", answer, PLAIN)
    await cache.set("stale", "old", STALE)
    await cache.get_or_load("stale", hang, STALE)
    waiting = asyncio.create_task(cache.get_or_load("k", hang, PLAIN))
    await asyncio.sleep(0.01)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        CHILD_PIPE.append(writer)
        raise Child(cache)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        print(pipe.read())
    _, status = os.waitpid(pid, 0)
    waiting.cancel()
    sys.exit(os.waitstatus_to_exitcode(status))

class Child(BaseException):
    pass

CHILD_PIPE = []

async def child(cache):
    loads = cache.stats.loads
    answers = [
        await cache.get_or_load("warm", hang, PLAIN),
        await asyncio.wait_for(cache.get_or_load("k", answer, PLAIN), 5.0),
        await cache.get_or_load("stale", answer, STALE),
    ]
    await asyncio.sleep(0.01)
    answers.append(await cache.get_or_load("stale", answer, STALE))
    return {"answers": answers, "loads": cache.stats.loads - loads}

def main():
    pid = os.getpid()
    try:
        asyncio.run(parent())
    except Child as forked:
        cache = forked.args[0]
    code = 1
    asyncio.set_event_loop(None)
    try:
        result = asyncio.run(child(cache))
        os.write(CHILD_PIPE[0], json.dumps(result).encode())
        code = 0
    finally:
        os._exit(code)

main()
"""


def test_a_forked_child_keeps_the_entries_and_runs_loads_and_refreshes_of_its_own() -> None:
    done, result = python(FORKED)
    assert done.returncode == 0, done.stderr
    assert result["answers"] == ["answer", "answer", "old", "answer"]
    assert result["loads"] == 3  # of "k", and behind each of the two stale answers


def test_forked_workers_draw_different_jitter() -> None:
    done, result = python(
        """
        cache = Cache()

        def expiry():
            asyncio.run(cache.set("k", 1, PLAIN))
            entry = cache._store.entries["k"]
            return entry.fresh_until - entry.stored_at

        drawn = []
        for _ in range(4):
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.write(writer, json.dumps(expiry()).encode())
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as pipe:
                drawn.append(json.loads(pipe.read()))
            os.wait()
        print(json.dumps(drawn))
        """
    )
    assert done.returncode == 0, done.stderr
    assert len(set(result)) == 4
    assert all(30.0 < ttl <= 60.0 for ttl in result)


@pytest.mark.parametrize(("error", "code"), [("SystemExit(7)", 7), ("KeyboardInterrupt()", -2)])
def test_a_loader_that_raises_to_leave_ends_the_program_as_any_task_would(error: str, code: int) -> None:
    done, result = python(
        f"""
        async def leave():
            await asyncio.sleep(0.01)
            raise {error}

        async def main():
            cache = Cache()
            try:
                await cache.get_or_load("k", leave, PLAIN)
            except asyncio.CancelledError:
                print(json.dumps("cancelled by asyncio.run"))
                raise
            except LoadCancelled:
                print(json.dumps("load cancelled"))
                raise

        asyncio.run(main())
        """
    )
    assert done.returncode == code
    assert result in ("cancelled by asyncio.run", "load cancelled")
    assert "never retrieved" not in done.stderr
    assert "destroyed" not in done.stderr


def test_a_program_that_ends_while_a_refresh_hangs_ends_silently() -> None:
    done, result = python(
        """
        cache = Cache()

        async def main():
            await cache.set("k", "old", STALE)
            print(json.dumps(await cache.get_or_load("k", hang, STALE)))
            await asyncio.sleep(0.01)

        asyncio.run(main())
        """
    )
    assert (done.returncode, result, done.stderr) == (0, "old", "")


def test_one_cache_serves_one_loop_after_another() -> None:
    done, result = python(
        """
        cache = Cache()
        loads = []

        async def load():
            loads.append(asyncio.get_running_loop())
            await asyncio.sleep(0.001)
            return len(loads)

        async def many():
            await asyncio.gather(*(cache.get_or_load("k", load, PLAIN) for _ in range(10)))
            return await cache.get_or_load(len(loads), load, PLAIN)

        print(json.dumps([asyncio.run(many()) for _ in range(3)] + [cache.stats.max_concurrent_loads]))
        """
    )
    assert done.returncode == 0, done.stderr
    assert result == [2, 3, 4, 1]


def test_importing_the_cache_loads_no_driver_and_nothing_of_the_control_plane() -> None:
    done, result = python(
        """
        rooms = sorted({name.split(".")[1] for name in sys.modules if name.startswith("fairlead.")})
        others = [name for name in ("redis", "numpy", "aiohttp", "starlette", "typer") if name in sys.modules]
        print(json.dumps([rooms, others]))
        """
    )
    assert done.returncode == 0, done.stderr
    assert set(result[0]) <= {"cache", "calls", "clock", "context", "deadline", "errors", "telemetry"}
    assert result[1] == []
