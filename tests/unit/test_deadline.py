from __future__ import annotations

import copy
import math
import pickle

import pytest

from fairlead.clock import ManualClock
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput


def test_deadline_counts_down_and_is_expired_at_its_very_moment():
    clock = ManualClock(now=100.0)
    deadline = Deadline.after(0.5, clock)
    clock.advance(0.25)
    assert (deadline.remaining(), deadline.expired()) == (0.25, False)
    clock.advance(0.25)
    assert (deadline.remaining(), deadline.expired()) == (0.0, True)
    clock.advance(1.0)
    assert deadline.remaining() == -1.0


@pytest.mark.parametrize("timeout", [0.0, -0.0, -1.0, -math.inf])
def test_timeout_of_nothing_has_already_passed(timeout: float):
    assert Deadline.after(timeout, ManualClock()).expired()


def test_infinite_timeout_is_no_deadline():
    clock = ManualClock()
    assert Deadline.after(math.inf, clock) == Deadline.never(clock)


def test_deadline_that_would_never_expire_by_accident_is_refused():
    clock = ManualClock()
    for make in (
        lambda: Deadline(math.nan, clock),
        lambda: Deadline.after(math.nan, clock),
        lambda: Deadline.never(clock).sooner(math.nan),
    ):
        with pytest.raises(InvalidInput, match="NaN"):
            make()


def test_never_does_not_expire():
    clock = ManualClock()
    never = Deadline.never(clock)
    clock.advance(1e15)
    never.check("anything")
    assert (never.remaining(), never.expired()) == (math.inf, False)


def test_check_refuses_work_from_the_moment_on_and_says_by_how_much():
    clock = ManualClock()
    deadline = Deadline.after(1.0, clock)
    clock.advance(0.999)
    deadline.check("load the profile")
    clock.advance(0.251)
    with pytest.raises(TimeoutError) as caught:
        deadline.check("load the profile")
    assert type(caught.value) is DeadlineExceeded
    assert str(caught.value) == "load the profile: the deadline passed 250 ms ago, so it was not started"


def test_check_refuses_at_the_very_moment():
    with pytest.raises(DeadlineExceeded):
        Deadline.after(0.0, ManualClock()).check("x")


def test_sooner_shortens_and_never_extends():
    clock = ManualClock()
    deadline = Deadline.after(1.0, clock)
    assert deadline.sooner(0.5) == Deadline.after(0.5, clock)
    assert deadline.sooner(2.0) is deadline
    assert deadline.sooner(1.0) is deadline
    assert deadline.sooner(math.inf) is deadline
    assert deadline.sooner(None) is deadline
    assert Deadline.never(clock).sooner(2.0) == Deadline.after(2.0, clock)
    assert deadline.sooner(-1.0).expired()


def test_equal_deadlines_are_one_moment_of_one_clock():
    clock = ManualClock()
    assert Deadline(1.0, clock) == Deadline(1.0, clock)
    assert len({Deadline(1.0, clock), Deadline(1.0, clock)}) == 1
    assert Deadline(1.0, clock) != Deadline(1.0, ManualClock())


def test_copied_deadline_equals_its_original():
    deadline = Deadline(1.0)
    carried = pickle.loads(pickle.dumps(deadline))  # noqa: S301  # written one call earlier
    assert copy.deepcopy(deadline) == carried == deadline


def test_absent_header_is_no_deadline_and_no_deadline_is_no_header():
    clock = ManualClock()
    assert Deadline.from_header(None, clock) is None
    assert Deadline.never(clock).to_header() is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("1", 0.001), ("250", 0.25), ("00000250", 0.25), (" \t250 ", 0.25), ("86400000", 86_400.0)],
)
def test_header_is_read_in_whole_milliseconds(value: str, seconds: float):
    deadline = Deadline.from_header(value, ManualClock())
    assert deadline is not None
    assert deadline.remaining() == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            " ",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "0x10",
            "1_000",
            "1 000",
            "1,000",
            "100, 200",
            "250ms",
            "NaN",
            "inf",
        ),
        *("٢٥٠", "²", "2５0", "\u00a0250", "250\u2003", "250\n", "\x1c250", "250\x00", "\x0b1", "None"),
        *("86400001", "99999999", "000000250", "9" * 5_000, "9" * 100_000),
    ],
)
def test_header_that_is_no_such_number_is_refused_in_one_short_line(value: str):
    with pytest.raises(InvalidInput, match="x-request-timeout-ms") as caught:
        Deadline.from_header(value, ManualClock())
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        *(
            (-math.inf, "0"),
            (-1.0, "0"),
            (0.0, "0"),
            (0.0009, "0"),
            (0.001, "1"),
            (0.0019, "1"),
            (0.25, "250"),
        ),
        *((86_400.0, "86400000"), (86_400.5, "86400000"), (1e300, "86400000")),
    ],
)
def test_header_is_rounded_down_and_holds_a_day_at_most(seconds: float, header: str):
    assert Deadline.after(seconds, ManualClock()).to_header() == header
