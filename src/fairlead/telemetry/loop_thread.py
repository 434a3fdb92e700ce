"""An event loop on a thread of its own, for a writer whose client library is a coroutine's.

A sink's writer is called from a plain thread, and the service's own loop must not be asked to help: it may be
the very thing that is stuck, or closed already when the last events leave. So such a writer has a loop that
runs for as long as the writer does. A forked child starts with none, and so with a new client.

    stopped --run--> running --close--> stopped
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

_Result = TypeVar("_Result")


class LoopThread:
    """Runs coroutines for one caller at a time that is no coroutine."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def is_running(self) -> bool:
        """Whether it runs in this process. False in a forked child: what its coroutines made is the parent's."""
        return self._thread is not None and self._pid == os.getpid()

    def run(self, work: Coroutine[Any, Any, _Result], timeout: float) -> _Result:
        """What `work` returns or raises. Blocks; raises TimeoutError, with the work cancelled, after `timeout` s."""
        if not self.is_running:
            self._start()
        assert self._loop is not None  # noqa: S101  # started above
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def close(self, timeout: float = 1.0) -> None:
        """Cancels what still runs and ends the thread, within `timeout` seconds; else leaves it, as a daemon."""
        thread, loop, stop = self._thread, self._loop, self._stop
        if not self.is_running or thread is None or loop is None or stop is None:
            return
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout)
        self._thread = self._loop = self._stop = None

    def _start(self) -> None:
        started = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name=self._name, daemon=True
        )
        self._thread.start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        started.set()
        await stop.wait()
