"""A policy for each host, made when the host is first called.

A breaker that several hosts share opens for all of them when one fails. So a transport may be given a function
that makes a policy for an origin; it is called once for each, and what it made is kept. The map is bounded: a
client that follows links meets hosts without end. The origin that was not called for longest is forgotten, and
with it its breaker and limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fairlead.calls.bounds import check_whole
from fairlead.calls.policy import Policy
from fairlead.errors import InvalidInput

__all__ = ["PoliciesByOrigin"]


class PoliciesByOrigin:
    """The policy of each origin: one and the same, or made by a function and kept for up to `most` origins."""

    def __init__(self, policy: Policy | Callable[[str], Policy], most: int) -> None:
        check_whole("max_origins", most, low=1, high=1_000_000)
        self._policy = policy
        self._most = most
        self._by_origin: OrderedDict[str, Policy] = OrderedDict()

    def of(self, origin: str) -> Policy:
        """The policy for "host:port", made now if it is not known."""
        if isinstance(self._policy, Policy):
            return self._policy
        found = self._by_origin.get(origin)
        if found is not None:
            self._by_origin.move_to_end(origin)
            return found
        made: object = self._policy(origin)
        if not isinstance(made, Policy):
            raise InvalidInput(f"policy: the function returned {made!r} for {origin}, not a Policy")
        self._by_origin[origin] = made
        if len(self._by_origin) > self._most:
            self._by_origin.popitem(last=False)
        return made
