"""Who waits for a lock or a file, sampled.

A request behind a lock uses no processor, opens no call and makes no loop late: to every other instrument it does
nothing. Ten times a second a thread looks at what threads wait for and has the loop look at its tasks, and adds up:

    lock         tasks in `asyncio.Lock.acquire` or `asyncio.Semaphore.acquire`; threads asleep on a futex at a `with`
                 or an `acquire()`: one that waits for work on a queue sleeps on a futex as well
    io           threads in a read, write or sync of a file, or in the kernel's sleep that no signal ends (state D)
    loop_thread  the loop's own thread, asleep in anything but its selector: a call that waits without `await`

A thread that waits for the interpreter's lock looks like one behind a lock; with a busy processor, believe the
processor. Linux only, on x86-64 and arm64. Per process; of several processes the seconds add up.
"""

from __future__ import annotations

import asyncio
import dis
import os
import platform
import sys
import threading
import time
from functools import lru_cache
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import Any

from fairlead.errors import InvalidInput
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["WaitSampler"]

# Numbers of system calls, from the kernel's unistd headers.
_FUTEX = {"x86_64": {202, 449}, "aarch64": {98, 449}}
_FILES = {
    # read, write, pread64, pwrite64, readv, writev, preadv, pwritev, fsync, fdatasync, sync_file_range
    "x86_64": {0, 1, 17, 18, 19, 20, 295, 296, 74, 75, 277},
    "aarch64": {63, 64, 67, 68, 65, 66, 69, 70, 82, 83, 84},
}
_SELECTORS = {
    # epoll_wait, epoll_pwait, epoll_pwait2, poll, ppoll, select, pselect6
    "x86_64": {232, 281, 441, 7, 271, 23, 270},
    "aarch64": {22, 441, 73, 72},
}
_MOST_TASKS = 1_000  # looked at in one sample: a walk along a task costs about a microsecond a step
_DEEPEST = 50


class WaitSampler:
    """`async with WaitSampler(registry): …` samples the running loop and the process's threads while the block runs.

    interval: seconds between two samples, 0.01 to 60. 0.1: costs a process with 100 tasks and 20 threads under one per
        cent of a core. Raises InvalidInput where /proc does not tell what a thread waits for.
    """

    def __init__(self, registry: MetricRegistry, *, interval: float = 0.1) -> None:
        check_number("WaitSampler.interval", interval, low=0.01, high=60.0)
        self._machine = platform.machine()
        if self._machine not in _FUTEX or _system_call(threading.get_native_id()) is None:
            raise InvalidInput(
                "WaitSampler: reads /proc/self/task/*/syscall, on Linux on x86-64 and arm64 only"
            )
        self._interval = float(interval)
        seconds = registry.counter(
            "fairlead_waiter_seconds_total",
            "Time that tasks and threads waited for a lock or file, and the loop's thread for anything, by samples.",
            labels=("on",),
        )
        self._lock = seconds.labels(on="lock")
        self._io = seconds.labels(on="io")
        self._loop_thread = seconds.labels(on="loop_thread")
        self._tasks_behind_locks = 0
        self._asked = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> WaitSampler:
        loop = asyncio.get_running_loop()
        self._stopped.clear()
        self._tasks_behind_locks, self._asked = 0, False
        self._thread = threading.Thread(
            target=self._run, args=(loop, threading.get_ident()), name="fairlead-waits", daemon=True
        )
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()  # a sample takes a millisecond
            self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            # The time that passed, not the interval: a sampler that was held up itself must not count less.
            passed, before = now - before, now
            if not self._asked:
                self._asked = True
                try:
                    loop.call_soon_threadsafe(self._look_at_tasks, loop)
                except RuntimeError:  # the loop was closed without leaving the block
                    return
            locks = self._tasks_behind_locks
            files = 0
            frames = sys._current_frames()
            for thread in threading.enumerate():
                if thread is threading.current_thread() or thread.native_id is None or thread.ident is None:
                    continue
                state = self._waits_in(thread.native_id)
                at_a_lock = state == "futex" and _at_a_lock(frames.get(thread.ident))
                if thread.ident == loop_thread:
                    # Asleep on a futex and not at a lock, it waits for the interpreter's, which is ours right now.
                    self._loop_thread.add(passed * (at_a_lock or state in ("file", "other")))
                    files += state == "file"
                elif state == "file":
                    files += 1
                elif at_a_lock:
                    locks += 1
            del frames  # they keep everything alive that the threads have in hand
            self._lock.add(locks * passed)
            self._io.add(files * passed)

    def _look_at_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        # On the loop, where all tasks are suspended: what a running coroutine awaits cannot be read from
        # another thread without reading memory that is in use. While the loop is held up, the last count stands.
        self._asked = False
        self._tasks_behind_locks = _tasks_behind_locks(loop)

    def _waits_in(self, thread: int) -> str:
        """running, futex, file, selector or other."""
        call = _system_call(thread)
        if call is None or call[0] < 0:
            return "file" if _state(thread) == "D" else "running"
        number, first = call
        if number in _FUTEX[self._machine]:
            return "futex"
        if number in _SELECTORS[self._machine]:
            return "selector"
        if number in _FILES[self._machine] and _is_file(first):
            return "file"
        return "file" if _state(thread) == "D" else "other"


def _tasks_behind_locks(loop: asyncio.AbstractEventLoop) -> int:
    tasks = list(asyncio.all_tasks(loop))
    looked_at = tasks[:_MOST_TASKS]
    waiting = sum(_behind_a_lock(task) for task in looked_at)
    return waiting if len(tasks) <= _MOST_TASKS else round(waiting * len(tasks) / _MOST_TASKS)


def _behind_a_lock(task: asyncio.Task[Any]) -> bool:
    at: object = task.get_coro()
    for _ in range(_DEEPEST):
        if not isinstance(at, CoroutineType):
            return False
        inner = at.cr_await
        if not isinstance(inner, CoroutineType):
            code = at.cr_code
            return code.co_qualname in ("Lock.acquire", "Semaphore.acquire") and code.co_filename.endswith(
                "asyncio/locks.py"
            )
        at = inner
    return False


def _at_a_lock(frame: FrameType | None) -> bool:
    """Whether a thread's next step is to get a lock: what it sleeps on is the same for a queue without work."""
    if frame is None:
        return False
    if frame.f_code.co_filename.endswith("/threading.py"):  # a semaphore waits on a condition
        outer = frame.f_back
        return outer is not None and outer.f_code.co_qualname == "Semaphore.acquire"
    return frame.f_lasti in _lock_steps(frame.f_code)


@lru_cache(maxsize=512)
def _lock_steps(code: CodeType) -> frozenset[int]:
    """Where in the code a `with` is entered or `acquire` called."""
    found: set[int] = set()
    acquires = False
    for step in dis.get_instructions(code):
        if step.opname in ("BEFORE_WITH", "LOAD_SPECIAL"):
            found.add(step.offset)
        if step.opname in ("LOAD_METHOD", "LOAD_ATTR", "LOAD_SPECIAL"):
            acquires = step.argval == "acquire" or step.opname == "LOAD_SPECIAL"
        elif step.opname.startswith("CALL") and acquires:
            found.add(step.offset)
            acquires = False
    return frozenset(found)


def _system_call(thread: int) -> tuple[int, int] | None:
    """Number and first argument; (-1, 0) for a thread in none; None when it cannot be read."""
    try:
        words = _read(f"/proc/self/task/{thread}/syscall").split()
        return (-1, 0) if words[0] in (b"running", b"-1") else (int(words[0]), int(words[1], 16))
    except (OSError, ValueError, IndexError):
        return None


def _read(path: str) -> bytes:
    # Not Path.read_text: it takes three times as long, and this is read for every thread, ten times a second.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)


def _state(thread: int) -> str:
    try:
        return _read(f"/proc/self/task/{thread}/stat").rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""


def _is_file(descriptor: int) -> bool:
    try:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return False
    return name.startswith("/") and not name.startswith("/dev/")
