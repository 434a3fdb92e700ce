"""What came back, one row per request, none left out.

Averages hide, and so do missing rows: a tool that forgets the requests it could not send, or those that never
came back, reports the service at its best. Every request that was due has a row here, with an ending, and a
latency that is a number; a run that broke its own rules says so in its `validity`.

latency counts from the moment a request was *due*, not from when it was sent, so time lost on our side is in
it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fairlead.errors import InvalidInput, MissingExtra, RunInvalid
from fairlead.lab.arrivals import FloatArray
from fairlead.lab.limits import number_within
from fairlead.lab.popularity import IntArray

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing

__all__ = ["Ending", "Failure", "Samples", "Validity"]


class Ending(IntEnum):
    """How one request ended."""

    OK = 0
    """Answered with a status below 400."""
    REFUSED = 1
    """Answered 429 or 503: the service said no on purpose."""
    ERROR = 2
    """Answered with another status from 400, or never completely (status 0; `failure` says why)."""
    TIMEOUT = 3
    """Given up at its timeout; its latency is the moment it was given up."""
    NOT_SENT = 4
    """Due, but never sent: too many were in flight, or its moment had long passed. Makes the run invalid."""
    UNFINISHED = 5
    """Sent, and neither answered nor timed out when the run was stopped. Makes the run invalid."""


class Failure(IntEnum):
    """Why there was no complete answer; NONE wherever a status came back."""

    NONE = 0
    CONNECT = 1
    """No connection: refused, unreachable, or no file descriptor left."""
    DISCONNECT = 2
    """The connection broke before the last byte."""
    PROTOCOL = 3
    """What came back is not HTTP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """Whether the figures of a run may be used."""

    valid: bool
    reason: str
    """Empty when valid; otherwise what broke, with its value and limit."""

    def require(self) -> None:
        """Raises RunInvalid with the reason unless valid."""
        if not self.valid:
            raise RunInvalid(self.reason)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """One row per request that was due, in the order of the schedule; every array has shape (n,)."""

    offset: FloatArray
    """When it was due, seconds after the start."""
    lag: FloatArray
    """Seconds by which it was sent late; for NOT_SENT, by which it was late when it was given up."""
    latency: FloatArray
    """Seconds from when it was due to its last byte, or until given up. NOT_SENT carries the full timeout."""
    status: NDArray[np.int16]
    """HTTP status; 0 when none came back."""
    ending: NDArray[np.uint8]
    """Values of `Ending`."""
    failure: NDArray[np.uint8]
    """Values of `Failure`."""
    key: IntArray
    """What was asked for."""
    user: IntArray
    """Who asked."""
    headers: Mapping[str, FloatArray] = field(default_factory=dict)
    """Response headers read as numbers, by the name given to `drive`; NaN where absent or not finite."""
    peak_in_flight: int = 0
    """Most requests that were in flight at once."""

    def __len__(self) -> int:
        return len(self.offset)

    def count(self, ending: Ending) -> int:
        """Rows that ended so."""
        return int(np.count_nonzero(self.ending == ending))

    @property
    def lag_p99(self) -> float:
        """99th percentile of the send lag over all rows, seconds; 0 without rows."""
        return float(np.quantile(self.lag, 0.99, method="inverted_cdf")) if len(self) else 0.0

    def validity(self, *, max_lag_p99: float = 0.010) -> Validity:
        """Whether the load was what it claims to be.

        max_lag_p99: seconds in (0, 10]. 10 ms: small beside the latencies a service is judged by.
        """
        number_within("max_lag_p99", max_lag_p99, 0.0, 10.0, above=True)
        not_sent, unfinished = self.count(Ending.NOT_SENT), self.count(Ending.UNFINISHED)
        if len(self) == 0:
            reason = "no request was due: nothing was measured"
        elif not_sent:
            reason = (
                f"{not_sent} of {len(self)} requests were never sent (peak {self.peak_in_flight} in flight): "
                "raise max_in_flight, or lower the rate to what this machine and the service carry"
            )
        elif unfinished:
            reason = f"{unfinished} of {len(self)} requests were unfinished when the run was stopped"
        elif self.lag_p99 > max_lag_p99:
            reason = (
                f"requests were sent late: lag p99 {self.lag_p99 * 1000:.1f} ms, limit "
                f"{max_lag_p99 * 1000:g} ms; lower the rate or free a core for the load"
            )
        else:
            reason = ""
        return Validity(valid=not reason, reason=reason)

    def select(self, rows: NDArray[np.bool_] | IntArray) -> Samples:
        """The rows of a boolean mask, or of an array of row numbers."""
        return Samples(
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            headers={name: values[rows] for name, values in self.headers.items()},
            peak_in_flight=self.peak_in_flight,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Samples]) -> Samples:
        """The rows of runs that read the same headers, one after the other, each with its own offsets."""
        if not parts:
            raise InvalidInput("parts: nothing to concatenate; give at least one run")
        if any(part.headers.keys() != parts[0].headers.keys() for part in parts):
            raise InvalidInput(
                "parts: the runs read different headers; drive them with the same read_headers"
            )
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS},
            headers={
                name: np.concatenate([part.headers[name] for part in parts]) for name in parts[0].headers
            },
            peak_in_flight=max(part.peak_in_flight for part in parts),
        )


_COLUMNS = ("offset", "lag", "latency", "status", "ending", "failure", "key", "user")
