"""Reads move between two shared tiers, and nothing stale moves with them."""

from __future__ import annotations

import random

import pytest

from fairlead.cache.second_tier import SecondTier
from fairlead.cache.two_nodes import TwoNodes
from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput
from tests.unit.cache.shared_tier import Shared, SharedStore, put, read


@pytest.fixture
def stores(clock: ManualClock) -> tuple[SharedStore, SharedStore]:
    return SharedStore(Shared(), clock.now), SharedStore(Shared(), clock.now)


@pytest.fixture
def nodes(clock: ManualClock, stores: tuple[SharedStore, SharedStore]) -> TwoNodes:
    a, b = (SecondTier(store, clock=clock, rng=random.Random(1)) for store in stores)
    return TwoNodes(a, b)


Stores = tuple[SharedStore, SharedStore]


async def test_both_nodes_get_what_is_written_and_one_is_read(
    nodes: TwoNodes, stores: Stores, clock: ManualClock
) -> None:
    await put(nodes, "k", "v", clock)
    assert await read(nodes, "k") == "v"
    assert [store.count("put_many") for store in stores] == [1, 1]
    assert [store.count("get_many") for store in stores] == [1, 0]


async def test_reads_move_when_their_node_fails_and_stay(
    nodes: TwoNodes, stores: Stores, clock: ManualClock
) -> None:
    await put(nodes, "k", "v", clock)
    stores[0].down = True
    assert await read(nodes, "k") == "absent"
    assert await read(nodes, "k") == "v"
    stores[0].down = False
    await clock.run_for(60.0)
    asked = stores[0].count("get_many")
    assert await read(nodes, "k") == "v"
    assert stores[0].count("get_many") == asked
    assert nodes.moves == 1


async def test_what_was_invalidated_while_a_node_was_away_is_gone_from_it(
    nodes: TwoNodes, stores: Stores, clock: ManualClock
) -> None:
    await put(nodes, "k", "old", clock)
    stores[0].down = True
    await read(nodes, "k")
    await nodes.invalidate("remove", "k")
    stores[0].down = False
    await clock.run_for(6.0)
    assert nodes.nodes[0].is_trusted
    stores[1].down = True
    assert await read(nodes, "k") == "absent"
    assert await read(nodes, "k") == "absent"
    assert nodes.moves == 2
    assert stores[0].shared.entries == {}


async def test_of_a_node_that_was_away_only_what_was_loaded_since_is_believed(
    nodes: TwoNodes, stores: Stores, clock: ManualClock
) -> None:
    await put(nodes, "before", "perhaps removed by a process that is gone", clock)
    stores[0].down = True
    await read(nodes, "k")
    await put(nodes, "during", "missed", clock)
    stores[0].down = False
    await clock.run_for(6.0)
    await put(nodes, "after", "new", clock)
    stores[1].down = True
    await read(nodes, "k")
    assert [await read(nodes, key) for key in ("before", "during", "after")] == ["absent", "absent", "new"]
    assert nodes.distrusted == 1


async def test_with_both_away_every_read_is_a_miss_that_costs_nothing(
    nodes: TwoNodes, stores: Stores, clock: ManualClock
) -> None:
    for store in stores:
        store.down = True
    for _ in range(4):
        assert await read(nodes, "k") == "absent"
    assert [store.count("get_many") for store in stores] == [1, 1]
    assert not nodes.is_trusted


async def test_close_closes_both(nodes: TwoNodes, stores: Stores) -> None:
    await settle()
    await nodes.close()
    assert [store.closed for store in stores] == [1, 1]


def test_one_node_is_not_two(clock: ManualClock) -> None:
    tier = SecondTier(SharedStore(Shared(), clock.now), clock=clock)
    with pytest.raises(InvalidInput, match="two servers"):
        TwoNodes(tier, tier)
