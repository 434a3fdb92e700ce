"""RateLimiter: a token bucket per client, bounded in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fairlead.admission import RateLimit, RateLimiter
from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput, RateLimited
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render


def limiter(clock: ManualClock, rate: float = 1.0, burst: int = 3, **settings: Any) -> RateLimiter:
    return RateLimiter(RateLimit(rate=rate, burst=burst), clock=clock, **settings)


def test_a_quiet_client_may_ask_for_a_burst_and_then_for_the_rate(clock: ManualClock) -> None:
    limits = limiter(clock)
    assert [limits.check("a").allowed for _ in range(5)] == [True, True, True, False, False]
    clock.advance(1.0)
    assert [limits.check("a").allowed for _ in range(2)] == [True, False]
    clock.advance(3600.0)  # a quiet hour banks no more than a burst
    assert [limits.check("a").allowed for _ in range(4)] == [True, True, True, False]


def test_one_client_takes_nothing_from_another(clock: ManualClock) -> None:
    limits = limiter(clock)
    for _ in range(5):
        limits.check("greedy")
    assert limits.check("other").allowed


def test_a_decision_says_what_is_left_and_when_to_come_back(clock: ManualClock) -> None:
    limits = limiter(clock, rate=2.0, burst=4)
    first = limits.check("a")
    assert (first.remaining, first.reset, first.retry_after) == (3, 0.5, 0.0)
    for _ in range(3):
        last = limits.check("a")
    assert (last.remaining, last.reset) == (0, 2.0)
    clock.advance(0.2)
    refused = limits.check("a")
    assert not refused.allowed
    assert refused.retry_after == pytest.approx(0.3)
    assert refused.reset == pytest.approx(1.8)
    clock.advance(refused.retry_after)
    assert limits.check("a").allowed


def test_a_request_may_cost_more_than_one(clock: ManualClock) -> None:
    limits = limiter(clock, burst=10)
    assert limits.check("a", 7.5).remaining == 2
    refused = limits.check("a", 5)
    assert (refused.allowed, refused.remaining, refused.retry_after) == (False, 2, 2.5)
    assert limits.check("a", 2).allowed  # the refused one took nothing


def test_a_cost_above_the_burst_is_never_allowed_and_says_so(clock: ManualClock) -> None:
    refused = limiter(clock).check("a", 4)
    assert (refused.allowed, refused.retry_after) == (False, None)
    with pytest.raises(RateLimited, match="more than the limit can ever give") as caught:
        refused.require()
    assert caught.value.retry_after is None


def test_a_cost_of_nothing_only_looks(clock: ManualClock) -> None:
    limits = limiter(clock)
    for _ in range(3):
        limits.check("a")
    assert limits.check("a", 0).remaining == 0
    assert limits.check("new", 0).remaining == 3
    assert len(limits) == 1


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_a_cost_that_is_no_number_of_tokens_is_refused(clock: ManualClock, cost: float) -> None:
    with pytest.raises(InvalidInput, match="cost"):
        limiter(clock).check("a", cost)


def test_require_raises_for_the_limited(clock: ManualClock) -> None:
    limits = limiter(clock, burst=1)
    limits.check("a").require()
    with pytest.raises(
        RateLimited, match=r"default: .* 1 requests per second \(burst 1\); try again in 1\.000 s"
    ) as caught:
        limits.check("a").require()
    assert caught.value.retry_after == 1.0


def test_a_clock_that_jumps_back_costs_no_more_than_an_empty_bucket() -> None:
    class Jumping(ManualClock):
        def jump(self, seconds: float) -> None:
            self._now += seconds

    clock = Jumping(now=1_000_000.0)
    limits = limiter(clock)
    limits.check("a")
    clock.jump(-500_000.0)
    assert not limits.check("a").allowed
    clock.advance(1.0)
    assert limits.check("a").allowed


def test_clients_are_bounded_and_the_longest_unseen_is_forgotten(clock: ManualClock) -> None:
    limits = limiter(clock, burst=1, clients=3)
    for client in ("a", "b", "c"):
        limits.check(client)
    assert not limits.check("a").allowed  # seen again, though refused
    limits.check("d")
    assert len(limits) == 3
    assert not limits.check("a").allowed
    assert limits.check("b").allowed  # forgotten: it begins anew


def test_a_huge_name_is_kept_as_a_digest(clock: ManualClock) -> None:
    limits = limiter(clock, burst=1)
    huge = "x" * 1_000_000
    assert limits.check(huge).allowed
    assert not limits.check(huge).allowed
    assert limits.check(huge + "y").allowed
    assert limits.check("\ud800" * 100).allowed
    assert all(len(name) <= 64 for name in limits._full_at)


def test_headers_are_those_of_the_draft(clock: ManualClock) -> None:
    limits = RateLimiter(RateLimit(rate=0.5, burst=3, name="per_user"), clock=clock)
    limits.check("a")
    assert limits.check("a").headers() == [
        ("RateLimit-Policy", '"per_user";q=3;w=6'),
        ("RateLimit", '"per_user";r=1;t=2'),
    ]


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0, 3.0, 7.0])
def test_the_window_of_the_headers_never_ends_after_retry_after(clock: ManualClock, rate: float) -> None:
    """The draft's word to servers: whoever obeys one of the two must not be too early for the other."""
    limits = RateLimiter(RateLimit(rate=rate, burst=4), clock=clock)
    limited = 0
    for _ in range(200):
        decision = limits.check("a", cost=1 + limited % 2)
        window = int(dict(decision.headers())["RateLimit"].rpartition("t=")[2])
        assert window >= 1
        if not decision.allowed:
            limited += 1
            assert decision.retry_after is not None
            assert window <= max(1, math.ceil(decision.retry_after))
        clock.advance(0.07)
    assert limited > 10


def test_a_bucket_that_nothing_was_taken_from_has_a_window_too(clock: ManualClock) -> None:
    limits = RateLimiter(RateLimit(rate=0.5, burst=3), clock=clock)
    assert limits.check("a", cost=0.0).headers()[1] == ("RateLimit", '"default";r=3;t=2')


def test_decisions_are_counted(clock: ManualClock) -> None:
    metrics = MetricRegistry()
    limits = limiter(clock, burst=1, metrics=metrics)
    for _ in range(3):
        limits.check("a")
    text = render(metrics)
    assert 'fairlead_rate_limit_decisions_total{limit="default",decision="allowed"} 1.0' in text
    assert 'fairlead_rate_limit_decisions_total{limit="default",decision="limited"} 2.0' in text


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rate": 0.0, "burst": 1}, "rate"),
        ({"rate": float("nan"), "burst": 1}, "rate"),
        ({"rate": 1.0, "burst": 0}, "burst"),
        ({"rate": 1.0, "burst": 2.5}, "burst"),
        ({"rate": 1.0, "burst": 1, "name": 'a"b'}, "name"),
        ({"rate": 1.0, "burst": 1, "name": "a\n"}, "name"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^RateLimit\.{field}: "):
        RateLimit(**settings)


def test_the_number_of_clients_is_checked() -> None:
    with pytest.raises(InvalidInput, match=r"^RateLimiter\.clients: "):
        RateLimiter(RateLimit(rate=1.0, burst=1), clients=0)
