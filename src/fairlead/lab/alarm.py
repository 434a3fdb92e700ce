"""A timer for the event loop that rings within a tenth of a millisecond, and sleeps until then.

uvloop's timers count whole milliseconds, and so does epoll's timeout under asyncio: a request due now would
leave up to a millisecond late, which is as long as a cache hit takes. Spinning would ring on time and burn
the core that the service needs. A Linux timerfd is a file descriptor that becomes readable at an absolute
monotonic moment: the kernel wakes the loop, on time, and nothing spins.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

__all__ = ["Alarm"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `callback` in the running loop once `time.monotonic()` has reached the moment set last.

    The callback returns the next moment, or None to stay silent until `set` is called again. Holds one file
    descriptor until `close()`. Python 3.13 has `os.timerfd_create`; older ones reach it by ctypes.
    """

    def __init__(self, callback: Callable[[], float | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed: the load engine needs a Linux kernel")
        self._spec = _Itimerspec()
        self._loop.add_reader(self._fd, self._ring)

    def set(self, when: float) -> None:
        """Rings at `when`, monotonic seconds; at once when that has passed. Replaces the last."""
        seconds = int(when)
        self._spec.value.seconds = seconds
        # All zeros would disarm the timer instead of ringing it.
        self._spec.value.nanoseconds = max(1, int((when - seconds) * 1e9))
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), f"timerfd_settime failed for {when}")

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again between the kernel's wake-up and this call: the new moment has not come
        following = self._callback()
        if following is not None and self._fd >= 0:
            self.set(following)

    def close(self) -> None:
        """Stops ringing and frees the descriptor; safe to call twice."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
