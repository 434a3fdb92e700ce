from __future__ import annotations

import asyncio

import pytest

from fairlead.cache import Cache, Composite, Field, Freshness
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry

SECOND = Freshness(ttl=1.0, jitter=0.0)
RELAXED = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=20.0, stale_if_error=60.0)


class Product:
    def __init__(self, cache: Cache) -> None:
        self.failing: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.loads: list[str] = []
        self.metrics = MetricRegistry()
        self.composite = Composite(
            cache,
            "product",
            {
                "rating": Field(load=self.rating, freshness=RELAXED, tier="relaxed", default=0.0),
                "price": Field(load=self.price, freshness=SECOND),
            },
            metrics=self.metrics,
        )

    async def _load(self, field: str, value: float) -> float:
        self.loads.append(field)
        await self.gate.wait()
        if field in self.failing:
            raise ConnectionError(f"{field} is down")
        return value

    async def price(self, key: int) -> float:
        return await self._load("price", key + 0.5)

    async def rating(self, key: int) -> float:
        return await self._load("rating", 4.5)


@pytest.fixture
async def product(cache: Cache) -> Product:
    return Product(cache)


async def test_every_field_is_loaded_side_by_side_and_then_answered_from_memory(product: Product):
    product.gate.clear()
    asked = asyncio.create_task(product.composite.get(7))
    await settle()
    assert sorted(product.loads) == ["price", "rating"]
    product.gate.set()
    assert (await asked).values == {"rating": 4.5, "price": 7.5}
    again = product.composite.get(7)
    with pytest.raises(StopIteration) as ended:
        again.send(None)  # it did not suspend
    assert ended.value.value.values == {"rating": 4.5, "price": 7.5}
    assert len(product.loads) == 2


async def test_a_relaxed_field_is_stale_within_its_bound_while_a_strict_one_is_not(
    product: Product, clock: ManualClock
):
    await product.composite.get(7)
    clock.advance(12.0)
    answer = await product.composite.get(7)
    assert answer.staleness == {"rating": 2.0, "price": 0.0}
    assert answer.ages == {"rating": 12.0, "price": 0.0}
    assert not answer.degraded
    assert product.composite.staleness["rating"].quantile(1.0) == pytest.approx(2.0, rel=0.011)
    assert product.composite.staleness["price"].quantile(1.0) == 0.0
    await settle()


async def test_a_strict_field_fails_closed_and_says_which_it_was(product: Product, clock: ManualClock):
    await product.composite.get(7)
    clock.advance(2.0)
    product.failing.add("price")
    with pytest.raises(ConnectionError, match="price is down") as caught:
        await product.composite.get(7)
    assert caught.value.__notes__ == ["product: the strict field 'price' could not be had within its bounds"]


async def test_a_relaxed_field_beyond_its_bound_is_its_default_and_is_named(
    product: Product, clock: ManualClock
):
    await product.composite.get(7)
    product.failing.add("rating")
    clock.advance(69.0)
    assert (await product.composite.get(7)).staleness["rating"] == 59.0
    clock.advance(1.0)
    answer = await product.composite.get(7)
    assert answer.values == {"rating": 0.0, "price": 7.5}
    assert answer.missing == {"rating": "ConnectionError: rating is down"}
    assert answer.degraded
    assert "rating" not in answer.staleness
    missing = product.metrics.counter(
        "fairlead_cache_field_missing_total",
        "Answers in which a relaxed field was its default.",
        labels=("composite", "field"),
    )
    assert missing.labels(composite="product", field="rating").value == 1.0


async def test_a_deadline_that_passes_on_a_relaxed_field_costs_only_that_field(
    cache: Cache, clock: ManualClock
):
    async def quick(key: int) -> str:
        return "quick"

    async def slow(key: int) -> str:
        await clock.sleep(5.0)
        return "slow"

    page = Composite(
        cache,
        "page",
        {
            "rest": Field(load=slow, freshness=RELAXED, tier="relaxed", default="later"),
            "head": Field(load=quick, freshness=SECOND),
        },
    )
    with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
        asked = asyncio.create_task(page.get(1))
    await settle()
    await clock.run_for(1.0)
    answer = await asked
    assert answer.values == {"rest": "later", "head": "quick"}
    assert answer.missing["rest"].startswith("DeadlineExceeded: ")
    await clock.run_for(4.0)
    assert (await page.get(1)).values["rest"] == "slow"


async def test_a_strict_failure_leaves_the_other_loads_to_the_cache(product: Product, cache: Cache):
    product.failing.add("price")
    with pytest.raises(ConnectionError):
        await product.composite.get(7)
    await settle()
    assert await cache.get(("product", "rating", 7)) == 4.5


async def test_removing_a_key_forgets_all_its_fields(product: Product, cache: Cache):
    await product.composite.get(7)
    await product.composite.remove(7)
    assert len(cache) == 0


def test_settings_that_contradict_each_other_are_refused(cache: Cache):
    async def load(key: int) -> int:
        return key

    with pytest.raises(InvalidInput, match="a strict field may not be stale, and this one may for 60 s"):
        Field(load=load, freshness=RELAXED)
    with pytest.raises(InvalidInput, match="is not strict or relaxed"):
        Field(load=load, freshness=SECOND, tier="loose")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="has no fields"):
        Composite(cache, "empty", {})


async def test_many_keys_are_loaded_side_by_side_and_answered_in_their_order(product: Product):
    product.gate.clear()
    asked = asyncio.create_task(product.composite.get_many([8, 7, 8]))
    await settle()
    assert sorted(product.loads) == ["price", "price", "rating", "rating"]
    product.gate.set()
    answers = await asked
    assert list(answers) == [8, 7]
    assert {key: answer.values["price"] for key, answer in answers.items()} == {8: 8.5, 7: 7.5}  # type: ignore[union-attr]  # none failed


async def test_key_whose_strict_field_fails_is_its_error_and_the_others_have_answers(product: Product):
    await product.composite.get(7)
    product.failing = {"price"}
    answers = await product.composite.get_many([7, 8])
    assert answers[7].values["price"] == 7.5  # type: ignore[union-attr]  # from memory
    assert isinstance(answers[8], ConnectionError)


async def test_key_that_cannot_be_one_is_refused_before_anything_is_loaded(product: Product):
    with pytest.raises(InvalidInput):
        await product.composite.get_many([7, object()])  # type: ignore[list-item]  # the point
    assert product.loads == []
