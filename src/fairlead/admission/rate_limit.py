"""Each client its share, so that one of them cannot take what all need.

A token bucket holds `burst` tokens and gains `rate` of them a second; a request takes one, or its cost, and
is refused when there are too few. It is kept as one number per client, the moment at which the bucket will be
full again (the generic cell rate algorithm, ITU-T I.371): no timer refills anything, and a client whose
moment has passed needs no memory at all.

Memory is bounded: at most `clients` are remembered, the least recently seen is forgotten first and begins
anew with a full bucket, and a long name is kept as a digest. What no bucket per client can bound is the sum
over many of them: that is the load shedder's part.

Invariant: from any moment on, a remembered client takes at most burst + rate × seconds tokens. A clock that
jumps back costs a client no more than an empty bucket.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Protocol

import msgspec
import xxhash

from fairlead.calls.bounds import check_number, check_whole
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, RateLimited
from fairlead.telemetry import MetricRegistry

__all__ = ["ClientLimiter", "RateDecision", "RateLimit", "RateLimiter"]

_LONGEST_NAME = 64
_NAME = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_ROUNDING = 1e-9  # seconds: sums of many small costs must not refuse the last token of a bucket
_SHOWN = 1e-6  # seconds: so much more is not another whole second


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """How much one client may ask for."""

    rate: float
    """Tokens gained per second, above 0 up to 1,000,000: what a client may ask for in the long run."""
    burst: int
    """Tokens a bucket holds, 1 to 1,000,000: what a client that was quiet may ask for at once."""
    name: str = "default"
    """Name of the policy, in headers and metrics: up to 32 of a-z, 0-9, `_` and `-`."""

    def __post_init__(self) -> None:
        check_number("RateLimit.rate", self.rate, above=0.0, high=1_000_000.0)
        check_whole("RateLimit.burst", self.burst, low=1, high=1_000_000)
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(f"RateLimit.name: {self.name!r} is not 1 to 32 of a-z, 0-9, '_' and '-'")

    @property
    def refill_seconds(self) -> float:
        """Seconds in which an empty bucket fills."""
        return self.burst / self.rate


class RateDecision(msgspec.Struct, frozen=True, gc=False):
    """What became of one request, and what is left."""

    allowed: bool
    limit: RateLimit
    remaining: int
    """Whole tokens left after this request."""
    reset: float
    """Seconds until the bucket is full again."""
    retry_after: float | None
    """Seconds until this request would be allowed; 0 if it was, None if it costs more than the bucket holds."""

    def headers(self) -> list[tuple[str, str]]:
        """`RateLimit-Policy` and `RateLimit`, as in draft-ietf-httpapi-ratelimit-headers-11.

        `t` is the seconds within which no more than `r` can be used: until the next token. So it never ends after
        `Retry-After`.

        >>> limit = RateLimit(rate=5.0, burst=10)
        >>> RateLimiter(limit).check("192.0.2.1").headers()
        [('RateLimit-Policy', '"default";q=10;w=2'), ('RateLimit', '"default";r=9;t=1')]
        """
        limit = self.limit
        whole = (limit.refill_seconds - self.reset) * limit.rate
        wait = (self.remaining + 1 - whole) / limit.rate
        return [
            ("RateLimit-Policy", f'"{limit.name}";q={limit.burst};w={ceil(limit.refill_seconds)}'),
            ("RateLimit", f'"{limit.name}";r={self.remaining};t={max(1, ceil(wait - _SHOWN))}'),
        ]

    def require(self) -> None:
        """Raises RateLimited unless allowed."""
        if self.allowed:
            return
        limit = self.limit
        when = (
            "it costs more than the limit can ever give"
            if self.retry_after is None
            else f"try again in {self.retry_after:.3f} s"
        )
        raise RateLimited(
            f"{limit.name}: this client has used its {limit.rate:g} requests per second "
            f"(burst {limit.burst}); {when}",
            retry_after=self.retry_after,
        )


class ClientLimiter(Protocol):
    """What decides about one client's next request; RateLimiter here, RedisRateLimiter for a fleet."""

    def check(self, client: str, cost: float = 1.0) -> RateDecision | Awaitable[RateDecision]: ...


class RateLimiter:
    """A token bucket per client, of this process alone: eight workers give a client eight times the rate.

    limit: the bucket of each client.
    clients: most that are remembered, 1 to 10,000,000. 100,000: about 20 MB.
    metrics: where the decisions are counted; private by default.

    >>> limiter = RateLimiter(RateLimit(rate=1.0, burst=2))
    >>> [limiter.check("192.0.2.1").allowed for _ in range(3)]
    [True, True, False]
    """

    def __init__(
        self,
        limit: RateLimit,
        *,
        clients: int = 100_000,
        metrics: MetricRegistry | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_whole("RateLimiter.clients", clients, low=1, high=10_000_000)
        self.limit = limit
        self._clients = clients
        self._now = clock.now
        self._rate = limit.rate
        self._seconds_per_token = 1.0 / limit.rate
        self._refill = limit.refill_seconds
        self._full_at: OrderedDict[str, float] = OrderedDict()
        decisions = (metrics or MetricRegistry()).counter(
            "fairlead_rate_limit_decisions_total",
            "Requests that were let through or limited.",
            labels=("limit", "decision"),
        )
        self._allowed = decisions.labels(limit=limit.name, decision="allowed")
        self._limited = decisions.labels(limit=limit.name, decision="limited")

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._full_at)

    def check(self, client: str, cost: float = 1.0) -> RateDecision:
        """Takes `cost` tokens of the client if it has them. Raises InvalidInput for a cost below 0 or not finite."""
        if not 0.0 <= cost < inf:
            raise InvalidInput(
                f"{self.limit.name}: cost {cost!r} is not a finite number of tokens, 0 or more"
            )
        if len(client) > _LONGEST_NAME:
            client = short_name(client)
        now = self._now()
        full_at, refill = self._full_at, self._refill
        known = full_at.get(client)
        debt = 0.0 if known is None or known < now else known - now
        if debt > refill:
            debt = refill  # never further off than an empty bucket, unless the clock jumped back
        after = debt + cost * self._seconds_per_token
        if after > refill + _ROUNDING:
            self._limited.add()
            if known is not None:
                full_at[client] = now + debt
                full_at.move_to_end(client)
            return decide(self.limit, debt, cost, False)
        self._allowed.add()
        if after > 0.0:
            full_at[client] = now + after
            if known is not None:
                full_at.move_to_end(client)
            elif len(full_at) > self._clients:
                full_at.popitem(last=False)
        return RateDecision(True, self.limit, int((refill - after + _ROUNDING) * self._rate), after, 0.0)


def decide(limit: RateLimit, debt: float, cost: float, allowed: bool) -> RateDecision:
    """The decision about a client whose bucket is full in `debt` seconds, the cost included if it was allowed."""
    missing = max(limit.refill_seconds - debt, 0.0)
    wait: float | None = 0.0
    if not allowed:
        wait = max(0.0, cost / limit.rate - missing) if cost <= limit.burst else None
    return RateDecision(allowed, limit, floor((missing + _ROUNDING) * limit.rate), debt, wait)


def short_name(client: str) -> str:
    """The client's name, or a digest of it: a name from a header may be a megabyte."""
    if len(client) <= _LONGEST_NAME:
        return client
    return "#" + xxhash.xxh3_128_hexdigest(client.encode("utf-8", "surrogatepass"))
