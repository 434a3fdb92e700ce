"""What every transport that keeps a Policy must do, as tests to inherit from.

A double of a server proves what its author believed of servers. The failures that matter here (a connection that
is accepted and never answered, an answer that breaks off, a port where nobody listens) are the kernel's, so each
driver meets a real server on loopback, and brings two things: how to start one, and how to call it.

    class TestMyTransport(TransportContract):
        failures = (MyError,)
        transient = staticmethod(transient)
        def peer(self, *script): ...
        def client(self, address, policy): ...

The tests are coroutines: run them with pytest-asyncio in auto mode, or await them yourself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, Overloaded

__all__ = ["Act", "Arrived", "Peer", "Send", "TransportContract"]

_LATE = 0.25
"""Seconds by which a busy machine may be late; a bound that is missed by more is no bound."""
_COARSE = 0.03
"""Share by which gRPC may lengthen a bound on the wire, to send one that it has sent before."""


class Act(StrEnum):
    """What a peer does with one call."""

    ANSWER = "answer"
    """Answers b"ok"."""
    FAIL = "fail"
    """Waits 50 ms, then says that it is unavailable: 503, UNAVAILABLE."""
    FAIL_AND_ASK_TO_WAIT = "fail_and_ask_to_wait"
    """The same, and asks to come back in one second."""
    HANG = "hang"
    """Takes the call and never answers."""
    BREAK_OFF = "break_off"
    """Begins to answer, then breaks the connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """One call, or one attempt of it, as the peer met it."""

    at: float
    """Monotonic seconds."""
    timeout: float | None
    """Seconds that the caller gave it; None if it gave no bound."""
    body: bytes


class Peer(Protocol):
    """The other side: does to call after call what its script says; the last act repeats."""

    @property
    def address(self) -> str: ...
    @property
    def arrived(self) -> list[Arrived]: ...
    @property
    def in_progress(self) -> int:
        """Calls that came in and whose end the peer has not yet seen."""
        ...


class Send(Protocol):
    """Makes one call. Returns the answer, None for the peer's failure where the technology hands that over as an
    answer; raises as the technology does.
    """

    async def __call__(self, body: bytes, *, idempotent: bool) -> bytes | None: ...


class TransportContract:
    """Inherit, say how to reach a peer, and each method is a test that your driver must pass."""

    failures: ClassVar[tuple[type[Exception], ...]]
    """What users of the technology catch when a call fails."""
    transient: Callable[[Exception], bool]
    """The driver's predicate for `Retry(on=...)`."""

    def peer(self, *script: Act) -> AbstractAsyncContextManager[Peer]:
        """A server on loopback that follows the script."""
        raise NotImplementedError

    def client(self, address: str, policy: Policy) -> AbstractAsyncContextManager[Send]:
        """The driver under test, sending to that address through that policy; closed at the end."""
        raise NotImplementedError

    def policy(
        self,
        *,
        retries: bool = True,
        cap: float = 0.001,
        hedge: Hedge | None = None,
        attempt_timeout: float | None = None,
        breaker: CircuitBreaker | None = None,
        limit: ConcurrencyLimit | None = None,
    ) -> Policy:
        retry = Retry(on=type(self).transient, attempts=3, base=0.001, cap=cap, budget=RetryBudget(ratio=1.0))
        return Policy(
            name="peer",
            timeout=5.0,
            attempt_timeout=attempt_timeout,
            retry=retry if retries else None,
            breaker=breaker,
            limit=limit,
            hedge=hedge,
        )

    async def test_an_answer_comes_back_and_the_call_arrived_once_and_whole(self) -> None:
        body = bytes(range(256)) * 40
        async with self.peer(Act.ANSWER) as peer, self.client(peer.address, self.policy()) as send:
            assert await send(body, idempotent=False) == b"ok"
            assert [each.body for each in peer.arrived] == [body]

    async def test_the_deadline_arrives_and_shrinks_with_each_attempt(self) -> None:
        async with (
            self.peer(Act.FAIL, Act.FAIL, Act.ANSWER) as peer,
            self.client(peer.address, self.policy()) as send,
        ):
            with request_context(RequestContext(deadline=Deadline.after(1.0))):
                assert await send(b"", idempotent=True) == b"ok"
            given = [each.timeout for each in peer.arrived]
            assert len(given) == 3
            bounds = [each for each in given if each is not None]
            assert bounds == sorted(bounds, reverse=True)
            assert 0.0 < bounds[2] < bounds[1] < bounds[0] <= 1.0 + _COARSE

    async def test_the_bound_that_arrives_is_the_attempts_own_where_that_ends_first(self) -> None:
        policy = self.policy(attempt_timeout=0.5)
        async with self.peer(Act.ANSWER) as peer, self.client(peer.address, policy) as send:
            with request_context(RequestContext(deadline=Deadline.after(3.0))):
                await send(b"", idempotent=True)
            assert peer.arrived[0].timeout is not None
            assert peer.arrived[0].timeout <= 0.5 * (1.0 + _COARSE)

    async def test_without_a_deadline_none_is_sent(self) -> None:
        policy = Policy(name="peer")
        async with self.peer(Act.ANSWER) as peer, self.client(peer.address, policy) as send:
            await send(b"", idempotent=True)
            assert peer.arrived[0].timeout is None

    async def test_a_call_whose_deadline_has_passed_is_not_sent(self) -> None:
        async with self.peer(Act.ANSWER) as peer, self.client(peer.address, self.policy()) as send:
            with request_context(RequestContext(deadline=Deadline.after(-0.001))):
                error = await _failure(send(b"", idempotent=True))
            assert isinstance(error, DeadlineExceeded)
            assert isinstance(error, self.failures)
            assert peer.arrived == []

    async def test_a_failure_is_tried_again_with_the_whole_body(self) -> None:
        policy = self.policy()
        async with self.peer(Act.FAIL, Act.ANSWER) as peer, self.client(peer.address, policy) as send:
            assert await send(b"whole", idempotent=True) == b"ok"
            assert [each.body for each in peer.arrived] == [b"whole", b"whole"]
            assert policy.stats.retried == 1

    async def test_a_call_that_is_not_idempotent_is_sent_once(self) -> None:
        async with self.peer(Act.FAIL, Act.ANSWER) as peer, self.client(peer.address, self.policy()) as send:
            assert await self._failed(send(b"", idempotent=False))
            assert len(peer.arrived) == 1

    async def test_an_answer_that_breaks_off_is_tried_again_if_the_call_is_idempotent(self) -> None:
        async with (
            self.peer(Act.BREAK_OFF, Act.ANSWER) as peer,
            self.client(peer.address, self.policy()) as send,
        ):
            assert await send(b"", idempotent=True) == b"ok"
            assert len(peer.arrived) == 2

    async def test_an_answer_that_breaks_off_fails_a_call_that_is_not_idempotent(self) -> None:
        async with (
            self.peer(Act.BREAK_OFF, Act.ANSWER) as peer,
            self.client(peer.address, self.policy()) as send,
        ):
            assert await self._failed(send(b"", idempotent=False))
            assert len(peer.arrived) == 1

    async def test_the_peer_is_asked_again_no_sooner_than_it_wished(self) -> None:
        policy = self.policy(cap=2.0)
        async with (
            self.peer(Act.FAIL_AND_ASK_TO_WAIT, Act.ANSWER) as peer,
            self.client(peer.address, policy) as send,
        ):
            assert await send(b"", idempotent=True) == b"ok"
            first, second = (each.at for each in peer.arrived)
            assert second - first >= 1.0

    async def test_a_peer_that_asks_for_a_longer_wait_than_the_policy_allows_is_not_asked_again(self) -> None:
        policy = self.policy(cap=0.5)
        async with (
            self.peer(Act.FAIL_AND_ASK_TO_WAIT, Act.ANSWER) as peer,
            self.client(peer.address, policy) as send,
        ):
            assert await self._failed(send(b"", idempotent=True))
            assert len(peer.arrived) == 1

    async def test_a_hung_attempt_is_beaten_by_its_hedge_and_leaves_nothing(self) -> None:
        limit = ConcurrencyLimit("peer")
        policy = self.policy(hedge=Hedge(minimum_calls=30, floor=0.2, cap=0.2), limit=limit)
        script = [Act.ANSWER] * 40 + [Act.HANG, Act.ANSWER]
        async with self.peer(*script) as peer, self.client(peer.address, policy) as send:
            for _ in range(40):  # until the usual latency is known
                assert await send(b"x", idempotent=True) == b"ok"
            assert await send(b"x", idempotent=True) == b"ok"
            assert policy.stats.hedges_won == 1
            assert limit.in_flight == 0
            await _until(lambda: peer.in_progress == 0)
            assert await send(b"x", idempotent=True) == b"ok"

    async def test_a_call_that_is_not_idempotent_is_not_hedged(self) -> None:
        policy = self.policy(hedge=Hedge(minimum_calls=30, floor=0.2, cap=0.2))
        script = [Act.ANSWER] * 40 + [Act.HANG]
        async with self.peer(*script) as peer, self.client(peer.address, policy) as send:
            for _ in range(40):
                assert await send(b"", idempotent=True) == b"ok"
            with request_context(RequestContext(deadline=Deadline.after(0.5))):
                assert isinstance(await _failure(send(b"", idempotent=False)), DeadlineExceeded)
            assert len(peer.arrived) == 41

    async def test_a_refused_connection_is_tried_again_even_if_the_call_is_not_idempotent(self) -> None:
        policy = self.policy()
        async with self.peer(Act.ANSWER) as peer:
            address = peer.address
        async with self.client(address, policy) as send:
            assert isinstance(await _failure(send(b"", idempotent=False)), self.failures)
        assert policy.stats.retried == 2

    async def test_a_hung_peer_costs_the_deadline_and_no_more(self) -> None:
        policy = self.policy()
        async with self.peer(Act.HANG) as peer, self.client(peer.address, policy) as send:
            began = time.monotonic()
            with request_context(RequestContext(deadline=Deadline.after(0.2))):
                error = await _failure(send(b"", idempotent=True))
            assert 0.19 <= time.monotonic() - began <= 0.2 + _LATE
            assert isinstance(error, DeadlineExceeded)
            assert isinstance(error, self.failures)
            await _until(lambda: peer.in_progress == 0)

    async def test_failures_open_the_breaker_and_then_nothing_is_sent(self) -> None:
        breaker = CircuitBreaker("peer", minimum_calls=4)
        policy = self.policy(retries=False, breaker=breaker)
        async with self.peer(Act.FAIL) as peer, self.client(peer.address, policy) as send:
            for _ in range(4):
                assert await self._failed(send(b"", idempotent=True))
            assert breaker.state is BreakerState.OPEN
            sent = len(peer.arrived)
            assert 0 < sent <= 4  # on a busy machine one may have failed for lack of time
            error = await _failure(send(b"", idempotent=True))
            assert isinstance(error, CircuitOpen)
            assert isinstance(error, self.failures)
            assert error.retry_after is not None
            assert len(peer.arrived) == sent

    async def test_a_call_above_the_limit_is_refused_and_not_sent(self) -> None:
        limit = ConcurrencyLimit("peer", initial=1, minimum=1)
        async with self.peer(Act.HANG) as peer, self.client(peer.address, self.policy(limit=limit)) as send:
            first = asyncio.ensure_future(send(b"", idempotent=True))
            await _until(lambda: peer.in_progress == 1)
            error = await _failure(send(b"", idempotent=True))
            assert isinstance(error, Overloaded)
            assert isinstance(error, self.failures)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert len(peer.arrived) == 1

    async def test_cancelled_calls_leave_no_permit_no_task_and_nothing_at_the_peer(self) -> None:
        breaker = CircuitBreaker("peer", minimum_calls=5)
        limit = ConcurrencyLimit("peer", initial=100, maximum=100)
        policy = self.policy(breaker=breaker, limit=limit)
        async with self.peer(Act.HANG) as peer, self.client(peer.address, policy) as send:
            before = len(asyncio.all_tasks())
            calls = [asyncio.ensure_future(send(b"", idempotent=True)) for _ in range(100)]
            await _until(lambda: peer.in_progress >= 50)  # those beyond may queue for a connection
            for call in calls:
                call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}
            assert limit.in_flight == 0
            assert breaker.state is BreakerState.CLOSED
            assert policy.stats.timed_out == policy.stats.retried == 0
            await _until(lambda: peer.in_progress == 0)
            # Peer and client may keep a few for a connection that lives on; one for each call would be a leak.
            await _until(lambda: len(asyncio.all_tasks()) <= before + 10)

    async def test_the_client_works_on_after_a_hundred_cancelled_calls(self) -> None:
        async with (
            self.peer(*[Act.HANG] * 100, Act.ANSWER) as peer,
            self.client(peer.address, self.policy()) as send,
        ):
            for _ in range(10):
                calls = [asyncio.ensure_future(send(b"", idempotent=True)) for _ in range(10)]
                at_least = len(peer.arrived) + 10
                await _until(lambda at_least=at_least: len(peer.arrived) >= at_least)  # type: ignore[misc]
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert await send(b"", idempotent=True) == b"ok"

    async def _failed(self, call: Any) -> bool:
        """Whether the call ended in the peer's failure, be it an answer or an exception."""
        try:
            return await call is None
        except self.failures:
            return True


async def _failure(call: Any) -> Exception | None:
    try:
        await call
    except Exception as error:  # whatever it is, the test that asked for it judges it
        return error
    return None


async def _until(is_so: Callable[[], bool], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < end, f"not so within {within:g} s"
        await asyncio.sleep(0.005)
