from __future__ import annotations

import asyncio

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput
from fairlead.migration import Row, ShadowReads
from fairlead.migration.pair import Pair
from fairlead.migration.shadow_read import Comparing
from tests.unit.migration.memory import MemoryStore
from tests.unit.migration.test_dual_write import failing, hanging


class Setup:
    def __init__(self, **settings: object) -> None:
        self.clock = ManualClock()
        self.old, self.new = MemoryStore(), MemoryStore()
        self.outcomes: list[str] = []
        self.comparing = Comparing(
            Pair("orders", self.old, self.new), ShadowReads(**settings), self.outcomes.append, self.clock
        )

    async def compare(self, key: str = "k") -> None:
        (row,) = await self.old.read([key])
        self.comparing.compare("old", row)
        await self.clock.run_for(5.0)


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        (({"a": 1}, 2), ({"a": 1}, 2), "same"),
        (({"a": 1}, 2), ({"a": 2}, 2), "different"),
        (({"a": 1}, 2), ({"a": 1, "b": 1}, 2), "different"),
        (({"a": float("nan")}, 2), ({"a": float("nan")}, 2), "same"),
        (({"a": 1}, 0), (None, 0), "missing"),
        ((None, 0), ({"a": 1}, 0), "extra"),
        ((None, 4), (None, 0), "same"),
        (({"a": 1}, 4), ({"a": 1}, 2), "behind"),
        ((None, 4), ({"a": 1}, 2), "behind"),
        (({"a": 1}, 2), ({"a": 2}, 5), "ahead"),
    ],
)
async def test_versions_decide_before_values(old, new, outcome: str):
    setup = Setup()
    for store, (value, version) in ((setup.old, old), (setup.new, new)):
        store.shared.put("k", value)
        if version:
            store.shared.versions["k"] = version
    await setup.compare()
    assert setup.outcomes == [outcome]


async def test_a_write_between_the_two_reads_is_no_difference():
    setup = Setup(recheck_after=0.5)
    setup.old.shared.rows["k"], setup.old.shared.versions["k"] = {"a": 1}, 2
    setup.comparing.compare("old", Row("k", {"a": 1}, 2))
    for store in (setup.old, setup.new):
        store.shared.rows["k"], store.shared.versions["k"] = {"a": 2}, 4
    await setup.clock.run_for(1.0)
    assert setup.outcomes == ["same"]


async def test_fields_that_differ_are_counted_without_values():
    setup = Setup()
    for store, name in ((setup.old, "Ada"), (setup.new, "Bob")):
        store.shared.rows["k"] = {"name": name, "age": 3}
    await setup.compare()
    assert dict(setup.comparing.fields) == {"name": 1}


async def test_a_store_that_hangs_costs_its_timeout_and_no_caller():
    setup = Setup(timeout=1.0, concurrency=2)
    setup.new.gate = hanging
    for _ in range(5):
        setup.comparing.compare("old", Row("k", {"a": 1}, 2))
    await settle()
    assert setup.outcomes == ["dropped"] * 3
    await setup.clock.run_for(1.5)
    assert setup.outcomes[3:] == ["timeout"] * 2


async def test_a_store_that_fails_is_counted():
    setup = Setup()
    setup.new.gate = failing("read")
    await setup.compare()
    assert setup.outcomes == ["error"]


async def test_a_share_of_zero_compares_nothing():
    setup = Setup(share=0.0)
    await setup.compare()
    assert (setup.outcomes, setup.new.calls) == ([], [])


async def test_a_repair_marks_the_row_at_the_authority_and_nothing_else():
    setup = Setup(repair=True)
    setup.old.shared.rows |= {"same": {"a": 1}, "k": {"a": 1}}
    setup.new.shared.rows |= {"same": {"a": 1}, "k": {"a": 2}}
    await setup.compare("same")
    await setup.compare("k")
    assert setup.old.shared.marks == {"k"}
    assert await Pair("orders", setup.old, setup.new).carry("old", "k")
    assert setup.new.shared.rows["k"] == {"a": 1}


async def test_closing_ends_what_is_under_way():
    setup = Setup()
    setup.new.gate = hanging
    setup.comparing.compare("old", Row("k", None, 0))
    await settle()
    await setup.comparing.close()
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    "settings",
    [{"share": 1.1}, {"concurrency": 0}, {"timeout": 0.0}, {"recheck_after": float("nan")}],
    ids=str,
)
def test_settings_out_of_bounds_are_named(settings: dict[str, float]):
    (name,) = settings
    with pytest.raises(InvalidInput, match=f"ShadowReads.{name}"):
        ShadowReads(**settings)
