"""A shedder on a clock that the test moves."""

from __future__ import annotations

import pytest

from fairlead.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)
