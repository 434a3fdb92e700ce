from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.clock import ManualClock
from fairlead.deadline import Deadline
from fairlead.errors import InvalidInput

FLOAT_ERROR = 1e-9  # of a sum with a monotonic clock that has run for months


@given(
    now=st.floats(0, 1e7),
    timeout=st.floats(-10, 200_000),
    hops=st.lists(st.floats(0, 0.01), max_size=5),
)
def test_no_chain_of_hops_gains_time(now: float, timeout: float, hops: list[float]):
    clock = ManualClock(now)
    first = deadline = Deadline.after(timeout, clock)
    for on_the_wire in hops:
        header = deadline.to_header()
        assert header is not None
        clock.advance(on_the_wire)
        arrived = Deadline.from_header(header, clock)
        assert arrived is not None
        # What the wire took is not counted, and nothing else may be won.
        assert arrived.at <= max(deadline.at + on_the_wire, clock.now()) + FLOAT_ERROR
        deadline = arrived
    assert deadline.at <= max(first.at, now) + sum(hops) + FLOAT_ERROR


@given(st.text() | st.integers().map(str) | st.from_regex(r"\A[ \t]*\d+\s*\Z"))
def test_any_header_is_a_deadline_within_a_day_or_refused(value: str):
    try:
        deadline = Deadline.from_header(value, ManualClock())
    except InvalidInput:
        return
    assert deadline is not None
    assert 0 <= deadline.remaining() <= 86_400
    assert deadline.remaining() == int(value) / 1000
