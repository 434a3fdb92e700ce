"""A loop that is held up shows, while it is and afterwards."""

from __future__ import annotations

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.telemetry import LoopLag, MetricRegistry


def lags(registry: MetricRegistry) -> tuple[int, float, float]:
    histogram, gauge = registry.snapshot().families
    [each] = histogram.histograms.values()
    return sum(each.buckets.values()) + each.zero_count, round(each.sum, 6), gauge.values[()]


async def test_a_loop_that_is_free_is_never_late() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    async with LoopLag(registry, interval=0.1, clock=clock):
        clock.advance(1.05)
        assert lags(registry) == (10, 0.0, 0.0)


async def test_a_call_that_blocks_shows_while_it_does_and_afterwards() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    async with LoopLag(registry, interval=0.1, clock=clock) as lag:
        seen = []

        def block() -> None:
            clock.advance(0.0)
            clock._now += 0.5  # the loop runs no timer in this time
            seen.append(lag.stalled_for())

        clock.call_at(0.05, block)
        clock.advance(0.05)
        assert seen == [pytest.approx(0.45)]
        clock.advance(0.0)
        count, total, stalled = lags(registry)
        assert (count, total, stalled) == (1, pytest.approx(0.45), 0.0)


async def test_nothing_rings_after_the_block() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    async with LoopLag(registry, clock=clock):
        pass
    clock.advance(10.0)
    assert lags(registry) == (0, 0.0, 0.0)


async def test_it_can_be_used_again_in_another_loop() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    lag = LoopLag(registry, interval=1.0, clock=clock)
    for expected in (3, 6):
        async with lag:
            clock.advance(3.0)
        assert lags(registry)[0] == expected


@pytest.mark.parametrize("interval", [0.0, -1.0, 61.0, float("nan"), True, "1"])
def test_an_interval_that_is_none_is_refused(interval: object) -> None:
    with pytest.raises(InvalidInput, match="interval"):
        LoopLag(MetricRegistry(), interval=interval)  # type: ignore[arg-type]
