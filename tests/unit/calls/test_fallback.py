"""Fallbacks: which failures are answered, who learns of it, and that the budget lets an outage show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fairlead.calls import (
    CircuitBreaker,
    Fallback,
    FallbackBudget,
    Policy,
    Retry,
    RetryBudget,
    degraded_calls,
)
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def failing(error: BaseException) -> Any:
    async def call(*args: object, **kwargs: object) -> str:
        raise error

    return call


def policy(clock: ManualClock, answer: object = "spare", **changes: Any) -> Policy:
    fallback = {"answer": answer} | {key: changes.pop(key) for key in ("on", "budget") if key in changes}
    return Policy(name="ranking", clock=clock, fallback=Fallback(**fallback), **changes)


async def test_a_failure_is_answered_and_a_success_is_left_alone(clock: ManualClock) -> None:
    ranking = policy(clock)
    assert await ranking.call(failing(ConnectionError())) == "spare"
    assert await ranking.call(asyncio.sleep, 0, "real") == "real"
    assert (ranking.stats.fell_back, ranking.stats.fallbacks_suppressed) == (1, 0)


async def test_the_answer_may_be_made_from_the_failure_and_the_arguments(clock: ManualClock) -> None:
    def spare(error: Exception, user: str, *, size: int) -> str:
        return f"{type(error).__name__} {user} {size}"

    async def spare_later(error: Exception, user: str, *, size: int) -> str:
        await asyncio.sleep(0)
        return spare(error, user, size=size)

    for answer in (spare, spare_later):
        ranking = policy(clock, answer)
        assert await ranking.call(failing(OSError()), "ada", size=3) == "OSError ada 3"


async def test_the_fallback_is_outermost_and_answers_what_the_last_retry_left(clock: ManualClock) -> None:
    retry = Retry(on=OSError, attempts=3, base=0.0, cap=0.0, budget=RetryBudget(clock=clock))
    ranking = policy(clock, retry=retry, idempotent=True)
    assert await ranking.call(failing(OSError())) == "spare"
    assert ranking.stats.retried == 2


async def test_refusals_and_passed_deadlines_are_answered_too(clock: ManualClock) -> None:
    breaker = CircuitBreaker("ranking", minimum_calls=1, clock=clock)
    ranking = policy(clock, type, breaker=breaker)
    assert await ranking.call(failing(OSError())) is OSError
    assert await ranking.call(failing(OSError())) is CircuitOpen
    with request_context(RequestContext(deadline=Deadline(clock.now(), clock))):
        assert await ranking.call(failing(OSError())) is DeadlineExceeded


@pytest.mark.parametrize("bug", [InvalidInput("x"), TypeError("x"), AttributeError("x"), AssertionError("x")])
async def test_an_error_of_the_program_is_not_answered(clock: ManualClock, bug: Exception) -> None:
    with pytest.raises(type(bug), match="x"):
        await policy(clock).call(failing(bug))


async def test_cancellation_is_not_answered(clock: ManualClock) -> None:
    call = asyncio.ensure_future(policy(clock).call(asyncio.sleep, 10))
    await settle()
    call.cancel()
    await settle()
    assert call.cancelled()


async def test_only_the_failures_that_are_named_are_answered(clock: ManualClock) -> None:
    ranking = policy(clock, on=ConnectionError)
    assert await ranking.call(failing(ConnectionError())) == "spare"
    with pytest.raises(OSError, match="disk"):
        await ranking.call(failing(OSError("disk")))


async def test_when_the_budget_is_spent_the_failure_itself_is_raised(clock: ManualClock) -> None:
    ranking = policy(clock, budget=FallbackBudget(ratio=0.02, burst=0, clock=clock))
    for _ in range(99):
        await ranking.call(asyncio.sleep, 0)
    answers = 0
    for _ in range(50):
        try:
            answers += await ranking.call(failing(ConnectionError("down"))) == "spare"
        except ConnectionError as error:
            last = error
    assert answers == 2  # 2 % of the 149 calls
    assert last.__notes__ == ["ranking: no fallback: its budget is spent (0.02 of the calls of 60 s, and 0)"]
    assert ranking.stats.fallbacks_suppressed == 48


async def test_an_outage_shows_although_there_is_a_fallback(clock: ManualClock) -> None:
    ranking = policy(clock)
    raised = 0
    for _ in range(1000):
        try:
            await ranking.call(failing(ConnectionError()))
        except ConnectionError:
            raised += 1
    assert raised == 970  # ten of the burst, and 2 %


async def test_a_fallback_that_fails_raises_the_failure_of_the_call(clock: ManualClock) -> None:
    def broken(error: Exception) -> None:
        raise KeyError("no stale page")

    with pytest.raises(ConnectionError) as caught:
        await policy(clock, broken).call(failing(ConnectionError()))
    assert caught.value.__notes__ == ["ranking: its fallback failed too: KeyError: 'no stale page'"]
    assert caught.value.__cause__ is None


async def test_whoever_collects_learns_which_policies_answered_in_place_of_what(clock: ManualClock) -> None:
    ranking = policy(clock)
    with degraded_calls() as outer:
        with degraded_calls() as degraded:
            await asyncio.create_task(ranking.call(failing(ConnectionError())))
        with degraded_calls() as none:
            await ranking.call(asyncio.sleep, 0)
    assert (degraded, none, outer) == ({"ranking": "ConnectionError"}, {}, {"ranking": "ConnectionError"})
    await ranking.call(failing(ConnectionError()))
    assert len(outer) == 1


async def test_two_requests_do_not_see_each_others_fallbacks(clock: ManualClock) -> None:
    ranking = policy(clock)

    async def request(fn: Any) -> dict[str, str]:
        with degraded_calls() as degraded:
            await ranking.call(fn)
            await asyncio.sleep(0)
        return dict(degraded)

    one, two = await asyncio.gather(request(failing(OSError())), request(lambda: asyncio.sleep(0)))
    assert (one, two) == ({"ranking": "OSError"}, {})


async def test_an_awaitable_that_is_run_falls_back_too(clock: ManualClock) -> None:
    ranking = policy(clock, lambda error: type(error).__name__)
    assert await ranking.run(failing(OSError())()) == "OSError"


@pytest.mark.parametrize(("field", "value"), [("ratio", 1.5), ("burst", -1), ("burst", 1.0), ("window", 0.0)])
def test_a_budget_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^FallbackBudget\.{field}: "):
        FallbackBudget(**{field: value})


def test_a_fallback_for_cancellations_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^Fallback\.on: "):
        Fallback(answer=1, on=asyncio.CancelledError)  # type: ignore[arg-type]
