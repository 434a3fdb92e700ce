"""What a protected call costs over a bare await, beside asyncio.timeout and a stack of decorators.

Every arm protects the same coroutine function. What each stack of peers has:

    arm                                   deadline      retry            breaker             bound
    policy                                of the call   on a budget      failure rate        adaptive, in flight
    tenacity + asyncio.timeout + hyx      per attempt   yes              failures in a row   fixed, in flight
    stamina + purgatory                   of retrying   yes              failures in a row   none
    tenacity + pybreaker + aiolimiter     none          yes              failures in a row   fixed, calls a second
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable

import pybreaker
import stamina
import tenacity
from aiolimiter import AsyncLimiter
from hyx.bulkhead import bulkhead
from hyx.circuitbreaker import consecutive_breaker
from purgatory import AsyncCircuitBreakerFactory

from bench.harness import Bar, Timing, interleave_async
from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Policy, Retry, RetryBudget

__all__ = ["bars"]

_Work = Callable[[], Awaitable[int]]


async def _at_once() -> int:
    return 1


async def _suspends() -> int:
    await asyncio.sleep(0)
    return 1


def _policy(work: _Work) -> _Work:
    policy = Policy(
        name="bench",
        timeout=1.0,
        attempt_timeout=0.5,
        idempotent=True,
        retry=Retry(on=(ConnectionError, TimeoutError), budget=RetryBudget()),
        breaker=CircuitBreaker("bench"),
        limit=ConcurrencyLimit("bench"),
    )

    def call() -> Awaitable[int]:
        return policy.call(work)

    return call


def _timeout(work: _Work) -> _Work:
    async def call() -> int:
        async with asyncio.timeout(1.0):
            return await work()

    return call


def _stack(work: _Work) -> _Work:
    @tenacity.retry(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(0.05, 2.0),
        retry=tenacity.retry_if_exception_type((ConnectionError, TimeoutError)),
        reraise=True,
    )
    @consecutive_breaker(failure_threshold=20)
    @bulkhead(max_concurrency=20, max_capacity=20)
    async def call() -> int:
        async with asyncio.timeout(0.5):
            return await work()

    return call


def _stamina(work: _Work) -> _Work:
    breakers = AsyncCircuitBreakerFactory(default_threshold=20)

    @stamina.retry(on=(ConnectionError, TimeoutError), attempts=3, timeout=1.0)
    async def call() -> int:
        async with await breakers.get_breaker("bench"):
            return await work()

    return call


def _pybreaker(work: _Work) -> _Work:
    breaker = pybreaker.CircuitBreaker(fail_max=20)
    limiter = AsyncLimiter(1_000_000, 1.0)

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(0.05, 2.0),
        retry=tenacity.retry_if_exception_type((ConnectionError, TimeoutError)),
        reraise=True,
    )
    async def call() -> int:
        async with limiter:
            with breaker.calling():
                return await work()

    return call


_STACKS = {
    "tenacity + asyncio.timeout + hyx": (
        _stack,
        5.0,
        "the stack has no shared deadline, no retry budget and a fixed limit",
    ),
    "stamina + purgatory": (_stamina, 1.0, "no limit, and no timeout of an attempt"),
    "tenacity + pybreaker + aiolimiter": (_pybreaker, 1.0, "no timeout at all"),
}
"""By name: how it is made, how many policies it costs at least, and what it has less."""


def _measure(work: _Work, *, n: int, rounds: int) -> dict[str, Timing]:
    def arm(call: _Work) -> Callable[[int], Awaitable[None]]:
        async def run(times: int) -> None:
            for _ in range(times):
                await call()

        return run

    arms = {
        "bare": arm(work),
        "policy": arm(_policy(work)),
        "asyncio.timeout": arm(_timeout(work)),
    }
    arms |= {name: arm(make(work)) for name, (make, _, _) in _STACKS.items()}
    return interleave_async(arms, n=n, rounds=rounds)


def _over_bare(timings: dict[str, Timing], name: str) -> list[float]:
    pairs = zip(timings[name].rounds, timings["bare"].rounds, strict=True)
    return [each - bare for each, bare in pairs]


def _quartiles(values: list[float]) -> tuple[float, tuple[float, float]]:
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, (low, high)


def _figures(timings: dict[str, Timing]) -> dict[str, float]:
    return {f"{name}_microseconds": timing.median * 1e6 for name, timing in timings.items()}


def bars(quick: bool) -> list[Bar]:
    rounds = 7 if quick else 25
    at_once = _measure(_at_once, n=2_000 if quick else 5_000, rounds=rounds)
    suspends = _measure(_suspends, n=1_000 if quick else 3_000, rounds=rounds)

    cost, cost_spread = _quartiles([seconds * 1e6 for seconds in _over_bare(at_once, "policy")])
    beside_timeout, beside_timeout_spread = _quartiles(
        [
            policy / timeout
            for policy, timeout in zip(
                _over_bare(suspends, "policy"), _over_bare(suspends, "asyncio.timeout"), strict=True
            )
        ]
    )
    found = [
        Bar(
            what="policy, all parts, over a bare await that does not suspend",
            value=cost,
            limit=1.0,
            unit="µs",
            n=rounds,
            spread=cost_spread,
            note="an absolute figure: it moves with the machine and its load; the ratios below do not",
            figures=_figures(at_once),
        ),
        Bar(
            what="policy, all parts, over a bare await that suspends: times asyncio.timeout",
            value=beside_timeout,
            limit=1.0,
            unit="×",
            n=rounds,
            spread=beside_timeout_spread,
            figures=_figures(suspends),
        ),
    ]
    for name, (_, limit, note) in _STACKS.items():
        for state, timings in (("does not suspend", at_once), ("suspends", suspends)):
            ratio, spread = _quartiles(
                [
                    stack / policy
                    for stack, policy in zip(
                        _over_bare(timings, name), _over_bare(timings, "policy"), strict=True
                    )
                ]
            )
            found.append(
                Bar(
                    what=f"{name} costs so many policies, call {state}",
                    value=ratio,
                    limit=limit,
                    at_most=False,
                    unit="×",
                    n=rounds,
                    spread=spread,
                    note=note,
                    figures=_figures(timings),
                )
            )
    return found
