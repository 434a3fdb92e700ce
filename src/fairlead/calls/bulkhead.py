"""A fixed share of this process for one dependency, so that its trouble stays its own.

When one dependency hangs, its calls pile up until they hold every connection, worker and byte, and requests
that never needed it fail too. A bulkhead bounds how many calls may be in flight at it, by a number that you
choose: a share of what the process has, not a guess at what the dependency can take. For the latter, which
moves, there is `ConcurrencyLimit`.
"""

from __future__ import annotations

from fairlead.calls.bounds import check_whole
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.clock import SYSTEM_CLOCK, Clock

__all__ = ["Bulkhead"]


class Bulkhead(ConcurrencyLimit):
    """At most `calls` in flight, whatever they experience. Per process; takes the place of a Policy's limit.

    name: of the dependency, in errors.
    calls: in flight at once, 1 to 1,000,000.
    max_wait: seconds a call may queue for a place. 0: none; a full bulkhead raises Overloaded at once. The
        queue is first in, first out, and never longer than `calls`.

    >>> import asyncio
    >>> from fairlead.errors import Overloaded
    >>> async def main():
    ...     exports = Bulkhead("exports", calls=1)
    ...     async with exports.permit():
    ...         try:
    ...             async with exports.permit(): pass
    ...         except Overloaded as refusal:
    ...             return str(refusal)
    >>> asyncio.run(main())
    'exports: 1 of 1 calls are in flight; refused'
    """

    def __init__(self, name: str, *, calls: int, max_wait: float = 0.0, clock: Clock = SYSTEM_CLOCK) -> None:
        check_whole("Bulkhead.calls", calls, low=1, high=1_000_000)
        # With the bounds on one number no rule can move it.
        super().__init__(name, initial=calls, minimum=calls, maximum=calls, max_wait=max_wait, clock=clock)
