"""The one table of exit codes, for scripts that must tell a bad flag from a broken guardrail.

Every command uses these meanings and no others. Which error ends in which code is decided here, by the first
listed class that it belongs to.
"""

from __future__ import annotations

from enum import IntEnum

from fairlead.errors import DeadlineExceeded, FairleadError, InvalidInput, LedgerBroken, RunInvalid

__all__ = ["MEANINGS", "ExitCode", "exit_code_for"]


class ExitCode(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    BREACHED = 3
    INCONCLUSIVE = 4
    NOT_ALLOWED = 5
    UNVERIFIED = 6
    TIMED_OUT = 7
    HUNG_UP = 129
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; a run that is valid counts, also where a target is missed",
    ExitCode.ERROR: "something failed; the message says what and what to do",
    ExitCode.USAGE: "the command line, or a file it names, cannot be used as given",
    ExitCode.BREACHED: "a threshold or guardrail is breached",
    ExitCode.INCONCLUSIVE: "no verdict: too little data, or a run that broke its own rules",
    ExitCode.NOT_ALLOWED: "no token, or one that does not allow this",
    ExitCode.UNVERIFIED: "a claim does not follow from its evidence",
    ExitCode.TIMED_OUT: "the time allowed ran out",
    ExitCode.HUNG_UP: "the terminal went away",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
    ExitCode.OUTPUT_CLOSED: "the reader of the output went away",
    ExitCode.TERMINATED: "asked to end by SIGTERM; what was recorded is kept",
}

_BY_ERROR: tuple[tuple[type[FairleadError], ExitCode], ...] = (
    (InvalidInput, ExitCode.USAGE),
    (RunInvalid, ExitCode.INCONCLUSIVE),
    (LedgerBroken, ExitCode.UNVERIFIED),
    (DeadlineExceeded, ExitCode.TIMED_OUT),
)


def exit_code_for(error: FairleadError) -> ExitCode:
    """The code of an error that Fairlead raised on purpose; ERROR where nothing narrower is meant."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.ERROR)
