"""Whatever is counted is shown: a counter that `export` forgets is one that nobody sees."""

from __future__ import annotations

import pytest

from fairlead.cache import Cache, SecondTier, TwoNodes
from fairlead.cache.stats import CacheStats
from fairlead.cache.tier_stats import TierStats
from fairlead.clock import ManualClock
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.prometheus import render
from tests.unit.cache.shared_tier import Shared, SharedStore

WORDS = {"last_error"}  # no number
GAUGES = {
    "max_concurrent_loads": "fairlead_cache_max_concurrent_loads",
    "max_staleness_served": "fairlead_cache_max_staleness_seconds",
    "owed": "fairlead_cache_second_tier_owed",
}


def counted(stats: type) -> set[str]:
    return {name for name in dir(stats) if not (name.startswith("_") or callable(getattr(stats, name)))}


def two_nodes(clock: ManualClock) -> TwoNodes:
    first, second = (SecondTier(SharedStore(Shared(), clock.now), clock=clock) for _ in range(2))
    return TwoNodes(first, second)


@pytest.fixture
def page(clock: ManualClock) -> str:
    registry = MetricRegistry()
    Cache(second=two_nodes(clock), clock=clock, name="feed").export(registry)
    return render(registry)


@pytest.mark.parametrize(
    ("stats", "family"),
    [(CacheStats, "fairlead_cache_total"), (TierStats, "fairlead_cache_second_tier_total")],
)
def test_everything_that_is_counted_is_on_the_page(stats: type, family: str, page: str):
    names = counted(stats) - WORDS
    assert len(names) > 10
    samples = [line for line in page.splitlines() if line.startswith(family)]
    missing = {
        name
        for name in names
        if not any(f'what="{name}"' in sample for sample in samples)
        and not (name in GAUGES and f"\n{GAUGES[name]}{{" in page)
    }
    assert missing == set()


@pytest.mark.parametrize("stats", [CacheStats(), SecondTier(SharedStore(Shared())).stats])
def test_everything_that_is_counted_is_in_the_dict(stats: CacheStats | TierStats):
    assert set(stats.as_dict()) == counted(type(stats))


async def test_two_nodes_of_one_name_are_told_apart(clock: ManualClock):
    registry, nodes = MetricRegistry(), two_nodes(clock)
    Cache(second=nodes, clock=clock, name="feed").export(registry)
    nodes.nodes[1].stats.gaps = 7
    nodes.moves = 2
    page = render(registry)
    assert '{cache="feed",tier="second tier 1",what="gaps"} 0' in page
    assert '{cache="feed",tier="second tier 2",what="gaps"} 7' in page
    assert 'fairlead_cache_two_nodes_total{cache="feed",what="moves"} 2' in page


async def test_a_tier_that_is_away_and_what_it_is_owed_are_on_the_page(clock: ManualClock):
    registry, store = MetricRegistry(), SharedStore(Shared(), clock.now)
    cache = Cache(second=SecondTier(store, clock=clock), clock=clock, name="feed")
    cache.export(registry)
    names = '{cache="feed",tier="second tier"}'
    assert f"fairlead_cache_second_tier_away{names} 0" in render(registry)
    store.down = True
    await cache.remove("k")
    await cache._second.get("k")
    page = render(registry)
    assert f"fairlead_cache_second_tier_away{names} 1" in page
    assert f"fairlead_cache_second_tier_owed{names} 1" in page
    await cache.close()
