"""What a policy raises, made anew as one of the driver's own errors.

Code around a client catches the client's errors. A refusal that is none of them passes each `except` that used to
survive a failing network, for the first time on the day when the breaker opens.
"""

from __future__ import annotations

from collections.abc import Callable

from fairlead.errors import CircuitOpen, DeadlineExceeded, FairleadError, Overloaded, Refused

__all__ = ["Family", "in_family"]

Family = tuple[Callable[..., CircuitOpen], Callable[..., Overloaded], Callable[[str], DeadlineExceeded]]
"""A driver's classes for what a policy raises; each is one of its technology's errors too."""


def in_family(error: Refused | DeadlineExceeded, family: Family) -> FairleadError:
    """The same error as the driver's users catch it, with its notes."""
    circuit_open, overloaded, deadline_exceeded = family
    again: FairleadError
    if isinstance(error, DeadlineExceeded):
        again = deadline_exceeded(str(error))
    elif isinstance(error, CircuitOpen):
        again = circuit_open(str(error), retry_after=error.retry_after)
    else:
        again = overloaded(str(error), retry_after=error.retry_after)
    for note in getattr(error, "__notes__", ()):
        again.add_note(note)
    return again
