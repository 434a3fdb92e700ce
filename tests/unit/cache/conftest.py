"""A cache on a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from fairlead.cache import Cache
from fairlead.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    return Cache(clock=clock, rng=random.Random(1), load_timeout=30.0)
