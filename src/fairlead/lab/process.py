"""One program under its guard: launched, watched and ended by handle.

starting → running → ended. The guard's status pipe is the only source of truth: it names the program's
process id, says how the program ended, and reaches its end of file when nothing of it is left. Closing the
lifeline is the only way to end it; only when the guard itself has died does this process finish the work, on
the session that the guard had made.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import InvalidInput, MissingExtra, NoSpace
from fairlead.lab import guard

try:
    import psutil
except ImportError as missing:
    raise MissingExtra("psutil", "lab") from missing

__all__ = ["GuardedProcess", "Usage", "unwritable"]

_PATIENCE = 5.0  # seconds beyond the grace period in which a guard must have finished; then it is killed too


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a program and its descendants have used so far."""

    cpu_seconds: float
    """User and system time, ended and awaited children included."""
    rss_bytes: int
    """Resident memory now; pages shared between processes count in each."""
    peak_rss_bytes: int
    """Sum of each living process's own peak: an upper bound when there is more than one."""


class GuardedProcess:
    """A running program; made by `launch` inside a running loop."""

    def __init__(
        self, name: str, log: Path, grace: float, guarded: subprocess.Popen[bytes], lifeline: int, status: int
    ) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        """The program's own process id, not the guard's; 0 until the guard has told it."""
        self.ended = asyncio.Event()
        """Set when the program has ended, whatever its descendants do."""
        self.ending = ""
        """How it ended, in words: "exit code 1", "signal SIGKILL"; empty while it runs."""
        self._gone = asyncio.Event()
        self._grace = grace
        self._guard = guarded
        self._lifeline = lifeline
        self._status = status
        self._received = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(status, False)
        self._loop.add_reader(status, self._read_status)

    @classmethod
    def launch(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        grace: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> GuardedProcess:
        """Starts `argv` under a guard; stdout and stderr go to `log`, begun anew. Blocks for milliseconds."""
        try:
            output = log.open("wb")
        except OSError as error:
            raise unwritable(f"log of {name}", log, error) from error
        lifeline, lifeline_end = os.pipe()
        status, status_end = os.pipe()
        told = [str(lifeline), str(status_end), str(grace), str(os.getpid())]
        try:
            guarded = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *told, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **env} if env else None,
                cwd=cwd,
                pass_fds=(lifeline, status_end, *pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            os.close(lifeline_end)
            os.close(status)
            raise InvalidInput(
                f"{name}: cannot be started in {cwd or Path.cwd()}: {error.strerror}"
            ) from error
        finally:
            os.close(lifeline)
            os.close(status_end)
            output.close()
        return cls(name, log, grace, guarded, lifeline_end, status)

    def _read_status(self) -> None:
        data = os.read(self._status, 4096)
        if not data:
            self._guard_gone()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            word, _, number = line.decode("ascii").partition(" ")
            if word == "pid":
                self.pid = int(number)
            else:
                self._end(f"exit code {number}" if word == "exit" else f"signal {_signal_name(int(number))}")

    def _end(self, how: str) -> None:
        self.ending = self.ending or how
        self.ended.set()

    def _guard_gone(self) -> None:
        self._loop.remove_reader(self._status)
        os.close(self._status)
        self.cut_lifeline()
        if not self.ended.is_set():
            # The kernel has killed the program by now; its descendants share the session that it led.
            self._kill_session()
            self._end("its guard being killed")
        self._guard.wait()  # its pipe is closed, so it is past its last line: this returns at once
        self._gone.set()

    def _kill_session(self) -> None:
        if not self.pid:
            return
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)

    def cut_lifeline(self) -> None:
        """Asks the guard to end everything; does not wait. Safe to call twice."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    async def end(self) -> None:
        """Ends the program and all its descendants: SIGTERM, the grace period, SIGKILL.

        On cancel the grace period is cut short and the wait still ends with nothing left running.
        """
        self.cut_lifeline()
        try:
            async with asyncio.timeout(self._grace + _PATIENCE):
                await self._gone.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            self.kill()
            if isinstance(error, asyncio.CancelledError):
                raise

    def kill(self) -> None:
        """SIGKILL to the program, its descendants and the guard, at once. Does nothing when they are gone."""
        if self._gone.is_set():
            return
        self.cut_lifeline()
        # Below a living guard everything is its descendant; stopped first, it cannot be surprised by an
        # orphan.
        doomed = guard.descendants(self._guard.pid)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._guard.kill()
        self._guard.wait()
        self._kill_session()
        self._end("signal SIGKILL")
        self._loop.remove_reader(self._status)
        os.close(self._status)
        self._gone.set()

    def usage(self) -> Usage:
        """CPU and memory of the program and its descendants, now; zeros when it has ended."""
        cpu, rss, peak = 0.0, 0, 0
        for pid in (self.pid, *guard.descendants(self.pid)) if self.pid else ():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                resident = int(process.memory_info().rss)
            except psutil.Error:
                continue
            rss += resident
            peak += max(resident, _peak_rss(pid))
        return Usage(cpu_seconds=cpu, rss_bytes=rss, peak_rss_bytes=peak)

    def last_words(self) -> str:
        """The last lines of the log, joined to one, at most 400 characters; what a traceback ends with."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
        return " | ".join([line for line in lines if line][-3:])[-400:]


def unwritable(what: str, path: Path, error: OSError) -> NoSpace | InvalidInput:
    """The error for a `path` that cannot be written: NoSpace, or InvalidInput for a wrong path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(
            f"{what}: no space to write {path}: {error.strerror}; free some, or choose another directory"
        )
    return InvalidInput(f"{what}: cannot write {path}: {error.strerror}; choose another directory")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _peak_rss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return 0
