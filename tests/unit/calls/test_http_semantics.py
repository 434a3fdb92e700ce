"""What HTTP says of failing, repeating and waiting."""

from __future__ import annotations

import pickle

import pytest

from fairlead.calls.concurrency_limit import is_drop
from fairlead.calls.http_semantics import (
    FAILURES,
    declared_length,
    failed_status,
    is_passing_status,
    parse_retry_after,
    request_id_for,
    timeout_for,
)
from fairlead.clock import ManualClock
from fairlead.context import RequestContext
from fairlead.deadline import Deadline
from fairlead.errors import FailedStatus, Refused

NOON = "Sun, 06 Nov 1994 12:00:00 GMT"


def test_server_errors_and_429_are_failures_but_what_the_request_asked_wrongly_is_not() -> None:
    assert {429, 500, 502, 503, 504, 599} <= FAILURES
    assert not {200, 304, 400, 404, 501, 505} & FAILURES


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_status_that_a_moment_may_cure_is_passing(status: int) -> None:
    assert is_passing_status(failed_status("", status, None))


def test_an_internal_error_is_not_passing() -> None:
    assert not is_passing_status(failed_status("", 500, None))
    assert not is_passing_status(ConnectionError())


def test_the_limit_hears_of_servers_without_room_and_of_those_that_waited_too_long() -> None:
    assert [status for status in sorted(FAILURES) if is_drop(failed_status("", status, None))] == [
        429,
        503,
        504,
    ]


def test_a_full_server_has_not_said_that_nothing_was_begun() -> None:
    assert not isinstance(failed_status("", 503, None), Refused)


def test_a_failed_status_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FailedStatus("busy", status=503, retry_after=2.0)))  # noqa: S301 - our own
    assert (str(error), error.status, error.retry_after) == ("busy", 503, 2.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 7\t", 7.0),
        ("99999999999999999999999", 86_400.0),
        ("Sun, 06 Nov 1994 12:00:30 GMT", 30.0),
        ("Sunday, 06-Nov-94 12:00:30 GMT", 30.0),
        ("Sun Nov  6 12:00:30 1994", 30.0),
        ("Sun, 06 Nov 1994 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms_and_bounded(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOON, 0.0) == seconds


@pytest.mark.parametrize(
    "value",
    [None, "", "-1", "1.5", "+3", "٣", "soon", "1e9", "NaN", "9" * 65, "Sun, 99 Nov 1994 12:00:00 GMT"],
)
def test_a_retry_after_that_says_nothing_is_nothing(value: str | None) -> None:
    assert parse_retry_after(value, NOON, 0.0) is None


def test_a_moment_counts_from_our_clock_if_the_answer_carries_no_date() -> None:
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", None, 45.0) == 15.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", "no date", 45.0) == 15.0


@pytest.mark.parametrize(
    ("given", "sent"), [(None, "500"), ("900", "500"), ("x", "500"), ("", "500"), ("200", None)]
)
def test_a_bound_that_the_caller_set_stands_only_if_it_is_shorter(
    given: str | None, sent: str | None
) -> None:
    assert timeout_for(Deadline.after(0.5, ManualClock()), given) == sent


def test_without_a_deadline_the_callers_own_bound_is_left_alone() -> None:
    assert timeout_for(Deadline.never(), None) is None
    assert timeout_for(Deadline.never(), "200") is None


@pytest.mark.parametrize("request_id", ["", "a b", "a\nb: c", "ü", "x" * 129])
def test_a_request_id_that_no_header_can_carry_is_not_sent(request_id: str) -> None:
    assert request_id_for(RequestContext(request_id=request_id)) is None


def test_a_request_id_is_sent_as_it_is() -> None:
    assert request_id_for(RequestContext(request_id="feed-17")) == "feed-17"


@pytest.mark.parametrize("value", [None, "", "-1", "1, 1", "٣", "9" * 19])
def test_a_length_that_is_none_promises_nothing(value: str | None) -> None:
    assert declared_length(value) is None
