"""Threads of our own, few, with a short queue in front.

The loop's default executor is shared with name resolution and files, has no bound on its queue, and its
threads keep the process from exiting while one call hangs. Here the queue is bounded and says no when it is
full, and threads are daemons, so a call that never returns costs one thread and not the exit of the process.

A submitted work item ends in exactly one of three ways: `run` on a thread, `abandon` because the executor
closed first, or False from `submit`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fairlead.clock import SYSTEM_CLOCK, Clock

__all__ = ["BoundedExecutor", "Work"]


class Work(Protocol):
    """One item. Neither method may raise."""

    def run(self) -> None: ...

    def abandon(self) -> None: ...


class _Shared:
    """What the threads hold; they do not hold the executor, so that dropping it ends them."""

    def __init__(self, threads: int, clock: Clock) -> None:
        self.clock = clock
        self.wake = threading.Condition()
        self.process = os.getpid()
        self.queue: deque[Work] = deque()
        self.closed = False
        self.started: list[float | None] = [None] * threads
        """Per thread, when its present item began; None while it is idle."""

    def serve(self, slot: int) -> None:
        while True:
            with self.wake:
                self.started[slot] = None
                while not self.queue and not self.closed:
                    self.wake.wait()
                if not self.queue:
                    return
                work = self.queue.popleft()
                self.started[slot] = self.clock.now()
            work.run()
            del work  # an idle thread must not keep the last item's rows alive

    def stop(self, threads: Sequence[threading.Thread], timeout: float) -> bool:
        if os.getpid() != self.process:
            return True  # a forked child has no such threads, and may hold a copy of a lock that one of them took
        with self.wake:
            self.closed = True
            left = list(self.queue)
            self.queue.clear()
            self.wake.notify_all()
        for work in left:
            work.abandon()
        end = SYSTEM_CLOCK.now() + timeout
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - SYSTEM_CLOCK.now()))
        return not any(thread.is_alive() for thread in threads)


class BoundedExecutor:
    """Runs work on `threads` daemon threads; at most `capacity` items wait."""

    def __init__(self, *, threads: int, capacity: int, name: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._capacity = capacity
        self._shared = shared = _Shared(threads, clock)
        self._threads = [
            threading.Thread(target=shared.serve, args=(slot,), name=f"{name}-{slot}", daemon=True)
            for slot in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        # Runs when the executor is dropped and, before the interpreter goes down, at exit: a daemon thread
        # that is still inside native code at that point may abort the process.
        self._finalizer = weakref.finalize(self, shared.stop, self._threads, 1.0)

    @property
    def closed(self) -> bool:
        return self._shared.closed

    @property
    def ahead(self) -> int:
        """Items that wait or run now."""
        shared = self._shared
        return len(shared.queue) + sum(moment is not None for moment in shared.started)

    @property
    def waiting(self) -> int:
        return len(self._shared.queue)

    def stalled_for(self) -> float:
        """Seconds since any thread last took an item, while all are busy; 0 when one is idle."""
        started = [moment for moment in self._shared.started if moment is not None]
        if len(started) < len(self._threads):
            return 0.0
        return max(0.0, self._shared.clock.now() - max(started))

    def submit(self, work: Work) -> bool:
        """True if `work` will run or be abandoned; False, without touching it, when full or closed."""
        shared = self._shared
        with shared.wake:
            if shared.closed or len(shared.queue) >= self._capacity:
                return False
            shared.queue.append(work)
            shared.wake.notify()
        return True

    def close(self, timeout: float) -> bool:
        """Abandons what waits, lets what runs finish, ends the threads. False if one is still busy after
        `timeout`.
        """
        self._finalizer.detach()
        return self._shared.stop(self._threads, timeout)
