"""What HTTP itself says about failing, repeating and waiting, for every HTTP driver alike.

Two clients that each decide by themselves which answers are failures give one service two breakers that
disagree. So it is decided once, here, and no driver is imported.

Which answer is a failure: 429 and every 5xx but 501 and 505, which say that the request is wrong, not the
server. Which is worth repeating: 429, 502, 503 and 504, which a moment may cure; a 500 speaks against the server
and most likely comes again. Which request may be repeated: one whose method is idempotent (RFC 9110, 9.2.2) or
that carries an `Idempotency-Key`. Any request may be, if nothing of it was sent.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

from fairlead.context import RequestContext
from fairlead.deadline import Deadline
from fairlead.errors import FailedStatus, InvalidInput

__all__ = [
    "FAILURES",
    "IDEMPOTENCY_KEY",
    "REQUEST_ID_HEADER",
    "declared_length",
    "failed_status",
    "idempotent_method",
    "is_passing_status",
    "parse_retry_after",
    "request_id_for",
    "timeout_for",
]

FAILURES = frozenset({429, *range(500, 600)} - {501, 505})
"""Statuses that count as failures of whoever answered."""
IDEMPOTENCY_KEY = "idempotency-key"
REQUEST_ID_HEADER = "x-request-id"

_PASSING = frozenset({429, 502, 503, 504})
_OVERLOADED = frozenset({429, 503, 504})
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_LONGEST_WAIT = 86_400.0
_LONGEST_HEADER = 64  # the longest date has 33 characters; a parser should not see a megabyte
_LONGEST_ID = 128


def failed_status(message: str, status: int, retry_after: float | None) -> FailedStatus:
    """The failure that retry, breaker and limit see of an answer with this status."""
    return FailedStatus(message, status=status, retry_after=retry_after, overloaded=status in _OVERLOADED)


def is_passing_status(error: Exception) -> bool:
    """Whether it is a FailedStatus that a moment may cure: 429, 502, 503 or 504."""
    return isinstance(error, FailedStatus) and error.status in _PASSING


def idempotent_method(method: str) -> bool:
    """Whether sending the request twice has the effect of sending it once (RFC 9110, 9.2.2)."""
    return method in _IDEMPOTENT


def parse_retry_after(value: str | None, date: str | None, utc: float) -> float | None:
    """Seconds to wait from a `Retry-After` header, 0 to a day; None if it is absent or says nothing.

    A moment counts from the answer's own `Date`, so that two clocks which disagree do no harm; from `utc` if it has
    none.
    >>> parse_retry_after("120", None, 0.0)
    120.0
    >>> parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", "Thu, 01 Jan 1970 00:00:50 GMT", 0.0)
    10.0
    """
    if value is None or len(value) > _LONGEST_HEADER:
        return None
    value = value.strip(" \t")
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_WAIT)
    moment = _http_date(value)
    if moment is None:
        return None
    began = _http_date(date) if date is not None and len(date) <= _LONGEST_HEADER else None
    return min(max(moment - (utc if began is None else began), 0.0), _LONGEST_WAIT)


def _http_date(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def timeout_for(deadline: Deadline, given: str | None) -> str | None:
    """The value of `x-request-timeout-ms` for one attempt; None to leave the request as it is.

    A value that the caller set itself stands if it is the shorter: a gateway may hand on what it was given, which
    was true when it came in.
    """
    ours = deadline.to_header()
    if ours is None or given is None:
        return ours
    try:
        theirs = Deadline.from_header(given, deadline.clock)
    except InvalidInput:
        return ours
    return None if theirs is not None and theirs.at < deadline.at else ours


def request_id_for(context: RequestContext) -> str | None:
    """The value of `x-request-id`; None if there is none, or none that a header can carry."""
    request_id = context.request_id
    fits = 0 < len(request_id) <= _LONGEST_ID and request_id.isascii() and request_id.isprintable()
    return request_id if fits and " " not in request_id else None


def declared_length(value: str | None) -> int | None:
    """Bytes of body that `Content-Length` promises; None if it promises nothing readable."""
    if value is None or not (len(value) <= 18 and value.isascii() and value.isdigit()):
        return None
    return int(value)
