"""Each client its share of a whole fleet, counted in Redis (7 or later, Valkey, or a cluster of either).

One script per question reads the bucket, decides and writes it back, by the server's own clock: no process
races another and no host's clock matters. The bucket is one key, which expires when it is full again.

Redis is asked within `budget`, behind a breaker. When it is hung, down or slow, the buckets of this process
decide instead: n processes then grant up to n times the rate, which is the price of serving at all. What a
process has seen of a client goes on bounding it: while that alone says no, Redis is not asked, so a client
that floods costs Redis one question per token and not one per request.

asked → Redis decides | known to be limited → decided here | no answer in time, or breaker open → local bucket
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from math import ceil, inf
from typing import Any

from fairlead.admission.rate_limit import RateDecision, RateLimit, RateLimiter, decide, short_name
from fairlead.calls import CircuitBreaker, Policy
from fairlead.calls.bounds import check_number
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, MissingExtra, Refused
from fairlead.telemetry import MetricRegistry, StateChanged

try:
    import redis.asyncio as redis_asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as missing:
    raise MissingExtra("redis", "redis") from missing

__all__ = ["RedisRateLimiter"]

_KNOWN = 10_000  # clients of whom this process remembers what Redis said
_CONNECTIONS = 8
_PATIENCE = 1.0  # seconds after which the driver gives a connection or an answer up
_ROUNDING = 1e-6  # seconds; the script counts in microseconds

# Microseconds throughout: seconds since 1970 with six decimals are more digits than Lua prints.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local refill, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
local debt = math.min(math.max((tonumber(redis.call('GET', KEYS[1])) or now) - now, 0), refill)
local after = debt + cost
if after > refill + 1 then return {0, string.format('%.0f', debt)} end
if after > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', now + after), 'PX', math.ceil(after / 1000))
end
return {1, string.format('%.0f', after)}
"""


class RedisRateLimiter:
    """A token bucket per client, shared by all processes that name the same Redis, namespace and limit.

    limit: the bucket of each client, over the fleet. At most 100,000 tokens a second.
    url: redis://, rediss:// or unix://, with credentials.
    cluster: `url` names one node of a Redis Cluster.
    namespace: begins the name of every key.
    budget: seconds that Redis may take, above 0 up to 1; 20 ms.
    local: the bucket of each client in this process while Redis does not answer; `limit` by default. The
        limit divided by the number of processes keeps the fleet's sum, and treats a client worse whose
        requests all reach one process.
    metrics, on_event: as for RateLimiter and CircuitBreaker.

    Belongs to the thread of one event loop at a time; a new loop gets connections of its own.
    """

    def __init__(
        self,
        limit: RateLimit,
        url: str,
        *,
        cluster: bool = False,
        namespace: str = "fairlead:rate",
        budget: float = 0.02,
        local: RateLimit | None = None,
        metrics: MetricRegistry | None = None,
        on_event: Callable[[StateChanged], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_number("RedisRateLimiter.budget", budget, above=0.0, high=1.0)
        check_number("RedisRateLimiter.limit.rate", limit.rate, above=0.0, high=100_000.0)
        self.limit = limit
        self._url = url
        self._cluster = cluster
        self._prefix = f"{namespace}:{limit.name}:"
        self._now = clock.now
        metrics = metrics or MetricRegistry()
        self._local = RateLimiter(local or limit, metrics=metrics, clock=clock)
        self._fallbacks = metrics.counter(
            "fairlead_rate_limit_fallbacks_total",
            "Requests decided by this process alone, because Redis gave no answer in time.",
            labels=("limit",),
        ).labels(limit=limit.name)
        decisions = metrics.counter(
            "fairlead_rate_limit_decisions_total",
            "Requests that were let through or limited.",
            labels=("limit", "decision"),
        )
        self._counted = {
            allowed: decisions.labels(limit=limit.name, decision="allowed" if allowed else "limited")
            for allowed in (True, False)
        }
        # A short memory: in a window of seconds, the successes before Redis hung would outvote the timeouts since.
        breaker = CircuitBreaker(
            f"{limit.name} rate limit in redis",
            minimum_calls=1,
            window=5.0 * budget,
            open_for=1.0,
            open_for_cap=10.0,
            half_open_permits=1,
            hung_after=budget,
            on_event=on_event,
            clock=clock,
        )
        self._policy = Policy(name=breaker.name, attempt_timeout=budget, breaker=breaker, clock=clock)
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """When each client's bucket is full again at the earliest, by this process's clock: others only add."""
        self.last_error = ""
        """The latest failure to ask Redis, cut to 200 characters."""
        self._client: Any
        self._script: Any
        self._connecting: asyncio.Lock | None
        self._loop: asyncio.AbstractEventLoop | None
        self._connect_to(None)

    @property
    def fallbacks(self) -> int:
        """Requests that this process decided alone."""
        return int(self._fallbacks.value)

    async def check(self, client: str, cost: float = 1.0) -> RateDecision:
        """Takes `cost` tokens of the client if it has them. Raises InvalidInput for a cost below 0 or not finite.

        Never raises because of Redis, and never takes longer than the budget. Cancelled, the tokens may or may
        not have been taken.
        """
        if not 0.0 <= cost < inf:
            raise InvalidInput(
                f"{self.limit.name}: cost {cost!r} is not a finite number of tokens, 0 or more"
            )
        limit, client = self.limit, short_name(client)
        now = self._now()
        debt = max(0.0, self._full_at.get(client, now) - now)
        if debt + cost / limit.rate > limit.refill_seconds + _ROUNDING:
            self._counted[False].add()
            return decide(limit, debt, cost, False)
        try:
            allowed, microseconds = await self._policy.call(self._ask, client, cost)
        except Exception as error:  # whatever the driver raises, a request is not refused for it
            if not isinstance(error, Refused):
                self.last_error = f"{type(error).__name__}: {error}"[:200]
            self._fallbacks.add()
            return self._local.check(client, cost)
        debt = float(microseconds) / 1e6
        self._remember(client, now + debt)  # Redis decided after `now`, so at the earliest then
        self._counted[bool(allowed)].add()
        return decide(limit, debt, cost, bool(allowed))

    async def close(self) -> None:
        """Ends what is still being asked, and closes the connections of the running loop."""
        asked, client = list(self._asked), self._client
        self._connect_to(None)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await client.aclose()

    async def _ask(self, client: str, cost: float) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._connect_to(loop)
        # Not in the caller's task: its budget would cut the connection between question and answer, and where
        # connecting takes longer than the budget, there would never be one.
        task = loop.create_task(self._send(client, cost))
        self._asked.add(task)
        task.add_done_callback(self._answered)
        return await asyncio.shield(task)

    async def _send(self, client: str, cost: float) -> tuple[int, bytes]:
        limit = self.limit
        if self._connecting is not None:
            async with self._connecting:  # a cluster's client that many use before it knows its nodes breaks
                await self._client.initialize()
            self._connecting = None
        arguments = (ceil(limit.refill_seconds * 1e6), ceil(cost / limit.rate * 1e6))
        # A lone surrogate from a client's JSON would raise here, and open the breaker for everybody.
        key = (self._prefix + client).encode("utf-8", "surrogatepass")
        allowed, debt = await self._script(keys=[key], args=arguments)
        return allowed, debt

    def _answered(self, task: asyncio.Task[tuple[int, bytes]]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have left

    def _connect_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Clients connect when they are used first, and their connections belong to the loop of that moment."""
        settings: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),  # a budget has no room for the driver's retries
            "socket_timeout": _PATIENCE,
            "socket_connect_timeout": _PATIENCE,
        }
        try:
            if self._cluster:
                self._client = redis_asyncio.RedisCluster.from_url(self._url, **settings)
            else:
                # A pool without a bound opens a connection for each request of a burst.
                pool: Any = redis_asyncio.BlockingConnectionPool.from_url(
                    self._url, max_connections=_CONNECTIONS, timeout=_PATIENCE, **settings
                )
                self._client = redis_asyncio.Redis.from_pool(pool)
        except ValueError as error:
            raise InvalidInput(f"RedisRateLimiter.url: {error}") from error
        self._script = self._client.register_script(_TAKE)
        self._connecting = asyncio.Lock() if self._cluster else None
        self._asked: set[asyncio.Task[tuple[int, bytes]]] = set()
        self._loop = loop

    def _remember(self, client: str, full_at: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > _KNOWN:
            self._full_at.popitem(last=False)
