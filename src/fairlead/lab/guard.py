"""The process between a topology and each program it runs; it makes sure that nothing outlives the run.

A program whose parent is killed with SIGKILL is nobody's business: it keeps its port and its memory until
someone notices. So each program runs under this guard, which holds the read end of a pipe whose write end
only the topology's process has. Closed on purpose, by a crash or by SIGKILL, the pipe ends all the same:
SIGTERM to the program and all its descendants, the grace period, SIGKILL. There is one way to stop, so the
way that matters most is the one always taken.

The guard adopts orphaned descendants (child subreaper), so one that leaves its process group is found too. If
the guard itself is killed, the kernel kills the program (parent-death signal). Nothing is ever found by name.

Run as a file by a bare interpreter (`python -I -S guard.py …`): standard library only, and little of it.
    guard.py LIFELINE_FD STATUS_FD GRACE_SECONDS PARENT_PID PROGRAM [ARGUMENT …]
writes to STATUS_FD `pid N`, then `exit CODE` or `signal N` when the program ends; end of file: all are gone.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_RESET = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
)


def descendants(root: int) -> list[int]:
    """Process ids below `root`, zombies left out, read from /proc by parentage."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name in brackets may itself hold brackets; the fields follow the last.
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            children.setdefault(int(parent), []).append(int(entry) if state != b"Z" else -int(entry))
    found: list[int] = []
    left = [root]
    while left:
        below = children.get(left.pop(), [])
        left += [abs(pid) for pid in below]
        found += [pid for pid in below if pid > 0]
    return found


def _signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _launch(argv: list[str], guard: int, libc: ctypes.CDLL) -> int:
    # Blocked across the fork: a SIGTERM that meets the guard's own handler in the child would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _RESET)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RESET)
        return pid
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the line above
            os._exit(125)
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RESET)
        os.execvp(argv[0], argv)  # noqa: S606 (a shell is what we must not want here)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def main() -> None:
    lifeline, status = int(sys.argv[1]), int(sys.argv[2])
    grace, parent = float(sys.argv[3]), int(sys.argv[4])
    for descriptor in (lifeline, status):
        os.set_inheritable(descriptor, False)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    asked = False

    def end(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    program = _launch(sys.argv[5:], os.getpid(), libc)
    # Sockets and logs belong to the program alone: a listener kept open here would accept for a dead service.
    keep = {0, 1, 2, lifeline, status, wake, waker}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue

    def tell(line: str) -> None:
        try:
            os.write(status, line.encode())
        except OSError:
            return  # nobody is left to be told

    tell(f"pid {program}\n")
    kill_at = 0.0
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        # The one-second look at the parent is for a fork of it that still holds the pipe open.
        wait = 1.0 if not kill_at else max(0.01, min(0.2, kill_at - time.monotonic()))
        events = poll.poll(wait * 1000)
        if any(descriptor == wake for descriptor, _ in events):
            os.read(wake, 4096)
        if any(descriptor == lifeline for descriptor, _ in events):
            asked = True
            poll.unregister(lifeline)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == program:
                    code = os.waitstatus_to_exitcode(ended[1])
                    tell(f"exit {code}\n" if code >= 0 else f"signal {-code}\n")
                    asked = True
        except ChildProcessError:
            return
        if (asked or os.getppid() != parent) and not kill_at:
            kill_at = time.monotonic() + grace
            _signal_all(signal.SIGTERM)
        elif kill_at and time.monotonic() >= kill_at:
            _signal_all(signal.SIGKILL)


if __name__ == "__main__":
    main()
