"""Retry and RetryBudget by themselves."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fairlead.calls import Retry, RetryBudget
from fairlead.calls.retry import asked_to_wait
from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput


def test_waits_are_full_jitter_below_a_doubling_and_capped_bound() -> None:
    retry = Retry(on=OSError, attempts=10, base=0.1, cap=0.5)
    rng = random.Random(7)
    for attempt, bound in [(2, 0.1), (3, 0.2), (4, 0.4), (5, 0.5), (10, 0.5)]:
        waits = [retry.wait_before(attempt, rng) for _ in range(2000)]
        assert 0.0 <= min(waits) < bound * 0.01
        assert bound * 0.99 < max(waits) <= bound
        assert abs(sum(waits) / len(waits) - bound / 2) < bound * 0.03


def test_failures_are_chosen_by_type_or_by_predicate() -> None:
    assert Retry(on=ConnectionError).retries(ConnectionResetError())
    assert not Retry(on=(ConnectionError, TimeoutError)).retries(ValueError())
    assert Retry(on=lambda error: "503" in str(error)).retries(RuntimeError("503"))
    assert not Retry(on=lambda error: "503" in str(error)).retries(RuntimeError("404"))


@pytest.mark.parametrize(
    "on", [asyncio.CancelledError, BaseException, (OSError, KeyboardInterrupt), "OSError", None, ("x",)]
)
def test_cancellation_and_nonsense_cannot_be_retried(on: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^Retry\.on: "):
        Retry(on=on)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempts", 0),
        ("attempts", 21),
        ("attempts", True),
        ("base", -1.0),
        ("base", float("nan")),
        ("cap", 0.01),
    ],
)
def test_a_retry_setting_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^Retry\.{field}: "):
        Retry(on=OSError, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("ratio", 1.1), ("ratio", float("nan")), ("floor_per_second", -0.1), ("window", 0.0), ("ratio", True)],
)
def test_a_budget_setting_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^RetryBudget\.{field}: "):
        RetryBudget(**{field: value})


def test_first_attempts_earn_retries_at_the_ratio() -> None:
    budget = RetryBudget(ratio=0.1, floor_per_second=0.0, clock=ManualClock())
    for _ in range(9):
        budget.first_attempt()
    assert not budget.take()
    budget.first_attempt()
    assert budget.take()
    assert not budget.take()
    assert budget.suppressed == 2


def test_the_floor_allows_retries_to_a_service_that_has_just_started() -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=0.3, window=10.0, clock=ManualClock())
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_what_was_earned_and_spent_leaves_with_the_window() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.5, floor_per_second=0.0, window=10.0, clock=clock)
    for _ in range(100):
        budget.first_attempt()
    assert budget.available == 50
    clock.advance(10.0)
    assert budget.available == 0  # a busy night banks nothing for the morning
    budget.first_attempt()
    budget.first_attempt()
    assert budget.take()


def test_the_maximum_amplification_is_one_plus_the_ratio() -> None:
    assert RetryBudget(ratio=0.25).maximum_amplification == 1.25


@pytest.mark.parametrize("seconds", [10**400, float("inf"), 1e300])
def test_a_failure_that_asks_for_longer_than_any_cap_is_not_repeated(seconds: float) -> None:
    error = ConnectionError("away")
    error.retry_after = seconds  # type: ignore[attr-defined]
    assert asked_to_wait(error) > 86_400.0
