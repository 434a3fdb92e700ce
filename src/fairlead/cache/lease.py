"""One load in all processes, most of the time: the port of a lease on a key.

Single flight makes one load per process; four workers still load four times. A lease lets the first of them
load while the others look for its value in the shared tier.

    free --acquire--> held --release, or its time is over--> free

Never a condition of correctness: whoever cannot ask for it loads, and so does whoever has waited for as long as
it lasts. A holder that was killed, or came late, holds nobody up for longer than that, and cannot harm: writes
are fenced by the moment their load began (`store`), not by the lease.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["Leases"]


@runtime_checkable
class Leases(Protocol):
    """A place where leases are held, shared by processes. Every verb raises StoreUnavailable when it cannot
    tell."""

    async def acquire(self, key: Hashable, token: str, seconds: float) -> bool:
        """Whether the lease of `key` is now held under `token`; False: somebody else holds it.

        It ends by itself after `seconds`, counted by the place that holds it.
        """
        ...

    async def release(self, held: Sequence[tuple[Hashable, str]]) -> None:
        """Gives back leases, by key and token; those that are held under another token by now stay."""
        ...
