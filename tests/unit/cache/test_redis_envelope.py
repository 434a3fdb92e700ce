"""What lies in Redis may be anything: what has no end must not be read as an entry."""

from __future__ import annotations

import math

import pytest

from fairlead.cache.redis_envelope import HEADER, unpack
from fairlead.errors import BrokenDocument


@pytest.mark.parametrize("moment", range(7))
def test_a_moment_that_is_not_a_number_is_no_entry_because_it_would_never_end(moment: int) -> None:
    moments = [1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 1.0]
    assert unpack(HEADER.pack(1, *moments, 0), 0.0, 2.0)[0].fresh_until == 3.0
    moments[moment] = math.nan
    with pytest.raises(BrokenDocument):
        unpack(HEADER.pack(1, *moments, 0), 0.0, 2.0)
