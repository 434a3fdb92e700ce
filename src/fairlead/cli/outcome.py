"""How a command ends: one line for a person, one code for a script, nothing left half-done.

Errors that Fairlead raises on purpose become their message. Anything else is a defect: its traceback goes to
a file, because a screenful of frames hides the sentence that a person needs; `--traceback` shows it instead.
SIGTERM and SIGHUP raise SystemExit, so that `finally` and `async with` end what was started, as Ctrl-C does.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fairlead.cli.exit_codes import ExitCode, exit_code_for
from fairlead.errors import FairleadError, InvalidInput, MissingExtra

__all__ = ["one_line", "report", "written"]

_LONGEST_MESSAGE = 2_000

# Format characters (Cf) include those that turn the direction of text: a file name could rewrite the message.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def one_line(text: str) -> str:
    """`text` with control and direction characters escaped, so that no name can drive the terminal."""
    escaped = "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNPRINTABLE
        else character
        for character in text[:_LONGEST_MESSAGE]
    )
    return escaped if len(text) <= _LONGEST_MESSAGE else escaped + "…"


def written(text: str, out: Path | None) -> None:
    """Writes the text to a file, or prints it where there is none. Raises InvalidInput where it cannot be written."""
    if out is None:
        print(text, end="")
        return
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InvalidInput(f"{out}: {error.strerror}; choose another --out") from error


def report(run: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code; writes at most one line about a failure, to stderr."""
    # Started with a stream closed (`>&-`), Python has None there, and every print would be a defect of ours.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its code instead of ending the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    shows_traceback = "--traceback" in arguments or os.environ.get("FAIRLEAD_TRACEBACK", "") not in ("", "0")
    try:
        with _ended_by_signals():
            result = run(arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        code: int = ExitCode.INTERRUPTED
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else ExitCode.ERROR if ending.code else ExitCode.OK
    except BaseException as error:
        code = _failed(_single(error), shows_traceback)
    else:
        code = result if isinstance(result, int) else ExitCode.OK
    return _flushed(code)


def _failed(error: BaseException, shows_traceback: bool) -> ExitCode:
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError) and _reader_left():
        return ExitCode.OUTPUT_CLOSED
    if shows_traceback:
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, FairleadError):
        error = _lacking(error)
    if isinstance(error, FairleadError):
        _say(str(error))
        return exit_code_for(error)
    if isinstance(error, OSError) and error.strerror and not shows_traceback:
        # The machine said no: a path, a permission, a full disk. The sentence is the whole story.
        if isinstance(error.filename, str | bytes):
            _say(f"{os.fsdecode(error.filename)}: {error.strerror}")
        elif not _stdout_fails():  # else the last flush says so, and names it
            _say(error.strerror)
        return ExitCode.ERROR
    what = f"unexpected {type(error).__name__}: {error}"
    _say(what if shows_traceback else f"{what} ({_keep_traceback(error)})")
    return ExitCode.ERROR


def _lacking(error: ModuleNotFoundError) -> ModuleNotFoundError | MissingExtra:
    """Which extra is missing, where the module is one's that we ask for: most rooms import theirs without a word."""
    from fairlead.cli.extras import extra_with, needs_of_extras

    extra = extra_with(error.name or "", needs_of_extras())
    return error if extra is None else MissingExtra(error.name or "", extra)


def _single(error: BaseException) -> BaseException:
    """The one error inside nested groups; a task group wraps even a lone failure."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(FairleadError)
        if ours is not None:
            # Several tasks fail of one cause; the first that names it is the one to read.
            return _single(ours.exceptions[0])
    return error


def _keep_traceback(error: BaseException) -> str:
    try:
        # mkstemp makes the file readable by its owner alone: a traceback may quote data.
        descriptor, path = tempfile.mkstemp(prefix="fairlead-traceback-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "run again with FAIRLEAD_TRACEBACK=1 to see the traceback"
    return f"the traceback is in {path}"


def _say(message: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed; the exit code still tells
        print(f"fairlead: {one_line(message)}", file=sys.stderr, flush=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the command in an orderly way, once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        # A second one would cut the clean-up short and leave processes behind; SIGKILL remains.
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    # Where the parent ignores SIGHUP (nohup), so do we.
    caught = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    previous = {number: signal.signal(number, end) for number in caught}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _reader_left() -> bool:
    """True when stdout is a pipe that nobody reads any more, as in `fairlead … | head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False


def _stdout_fails() -> bool:
    """True when what a failed write left in the buffer still cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except ValueError:
        return False
    return False


def _flushed(code: int) -> int:
    """Flushes stdout while a failure can still be told; at exit the interpreter would print a traceback."""
    try:
        sys.stdout.flush()
    except ValueError:  # closed
        return code
    except OSError as error:
        # What is still in the buffer would fail again when the interpreter ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or ExitCode.OUTPUT_CLOSED
        _say(f"the output could not be written: {error.strerror}")
        return code or ExitCode.ERROR
    return code
