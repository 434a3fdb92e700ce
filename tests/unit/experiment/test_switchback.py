"""A switchback's order is balanced, reproducible, and another for every salt and place."""

from __future__ import annotations

import pytest

from fairlead.errors import InvalidInput
from fairlead.experiment import Switchback


def test_every_pair_of_slots_has_one_of_each() -> None:
    design = Switchback(salt="dispatch", slot_seconds=1800.0)
    for pair in range(500):
        assert {design.variant_of(2 * pair), design.variant_of(2 * pair + 1)} == {"control", "treatment"}


def test_the_order_is_a_fair_coin_and_differs_between_places() -> None:
    design = Switchback(salt="dispatch", slot_seconds=1800.0)
    firsts = [design.variant_of(2 * pair, "vienna") == "treatment" for pair in range(2000)]
    assert 900 < sum(firsts) < 1100
    graz = [design.variant_of(2 * pair, "graz") == "treatment" for pair in range(2000)]
    assert 900 < sum(a == b for a, b in zip(firsts, graz, strict=True)) < 1100


def test_a_moment_belongs_to_its_slot() -> None:
    design = Switchback(salt="s", slot_seconds=3600.0)
    assert design.variant_at(7199.9) == design.variant_of(1)
    assert design.variant_at(7200.0) == design.variant_of(2)


@pytest.mark.parametrize(("slot", "washout"), [(0.0, 0.0), (60.0, 60.0), (float("inf"), 0.0), (60.0, -1.0)])
def test_a_slot_that_leaves_nothing_is_refused(slot: float, washout: float) -> None:
    with pytest.raises(InvalidInput):
        Switchback(salt="s", slot_seconds=slot, washout_seconds=washout)
