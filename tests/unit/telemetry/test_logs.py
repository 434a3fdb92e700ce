"""A log line is JSON, belongs to a request and names no one."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import msgspec
import pytest

from fairlead.context import RequestContext, request_context
from fairlead.telemetry import JsonLogFormatter, Redactor

REDACTOR = Redactor(b"k" * 32)


def line(
    message: str, *args: object, formatter: JsonLogFormatter | None = None, **extra: object
) -> dict[str, Any]:
    record = logging.getLogger("feed").makeRecord(
        "feed", logging.WARNING, "feed.py", 1, message, args, None, extra=extra
    )
    text = (formatter or JsonLogFormatter(REDACTOR)).format(record)
    assert "\n" not in text
    return msgspec.json.decode(text)  # type: ignore[no-any-return]


def test_a_line_says_when_how_bad_where_and_for_which_request() -> None:
    with request_context(RequestContext(request_id="r-17")):
        found = line("answered in %s ms", 12)
    assert found.keys() == {"at_utc_seconds", "level", "logger", "message", "request_id"}
    assert (found["level"], found["logger"], found["message"]) == ("WARNING", "feed", "answered in 12 ms")
    assert found["request_id"] == "r-17"
    assert line("outside")["request_id"] == ""


def test_a_record_that_crossed_a_queue_brings_its_own_request() -> None:
    assert line("late", request_id="r-9")["request_id"] == "r-9"


def test_a_field_that_an_event_declares_personal_is_personal_here_too() -> None:
    found = line("shown", targeting_key="u1", variant="on")
    assert found["targeting_key"] == REDACTOR.token("u1")
    assert found["variant"] == "on"


def test_a_field_named_personal_becomes_a_token_whatever_its_type() -> None:
    formatter = JsonLogFormatter(REDACTOR, personal=["account"])
    assert line("m", formatter=formatter, account=4711)["account"] == REDACTOR.token("4711")
    assert line("m", formatter=formatter, account=None)["account"] is None


def test_messages_fields_and_tracebacks_are_searched() -> None:
    def fail() -> None:
        raise ValueError("no mailbox ann@example.com")

    try:
        fail()
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed for %s", "args": ("ann@example.com",)})
        record.exc_info = sys.exc_info()
        record.__dict__["peers"] = {"from": ["192.0.2.17"]}
    text = JsonLogFormatter(REDACTOR).format(record)
    assert "ann@" not in text
    assert "192.0.2.17" not in text
    found = msgspec.json.decode(text)
    assert found["error"] == "ValueError"
    assert "in fail" in found["traceback"]


def test_a_field_cannot_pass_for_one_of_ours() -> None:
    found = line("m", level="DEBUG", error="mine")
    assert (found["level"], found["extra_level"], found["extra_error"]) == ("WARNING", "DEBUG", "mine")


@pytest.mark.parametrize("value", [object(), {1: {2: b"\xff"}}, {("a",): 1}, float("nan"), {1, 2}, 10**400])
def test_a_value_that_json_cannot_hold_does_not_lose_the_line(value: object) -> None:
    assert line("kept", value=value)["message"] == "kept"


def test_a_value_that_holds_itself_does_not_lose_the_line() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert line("kept", value=loop)["message"] == "kept"


def test_fixed_fields_are_on_every_line_and_without_a_redactor_nothing_is_changed() -> None:
    found = line("to ann@example.com", formatter=JsonLogFormatter(None, fixed={"service": "feed"}))
    assert (found["service"], found["message"]) == ("feed", "to ann@example.com")


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "extra",
    [
        {"a": "\ud800"},
        {"\ud800": 1},
        {"a": Unspeakable()},
        {"a": [Unspeakable()]},
        {"targeting_key": Unspeakable()},
    ],
)
def test_no_field_costs_the_line(extra: dict[str, object]) -> None:
    record = logging.makeLogRecord({"msg": "kept \ud800", "levelname": "INFO", **extra})
    assert "kept" in JsonLogFormatter(Redactor(b"k" * 32)).format(record)


def test_a_field_that_is_personal_by_name_is_replaced_at_any_depth() -> None:
    record = logging.makeLogRecord(
        {"msg": "", "user": {"ids": [{"targeting_key": "ann"}]}, "bob@example.com": 1}
    )
    line = JsonLogFormatter(Redactor(b"k" * 32)).format(record)
    assert '"ann"' not in line
    assert "[personal:" in line
    assert "bob" not in line


def test_a_field_of_the_caller_does_not_pass_for_a_fixed_one_or_one_of_the_context() -> None:
    formatter = JsonLogFormatter(None, fixed={"service": "feed"}, context=lambda: {"trace_id": "1"})
    line = json.loads(
        formatter.format(logging.makeLogRecord({"msg": "", "service": "other", "trace_id": "2"}))
    )
    assert (line["service"], line["trace_id"], line["extra_service"]) == ("feed", "1", "other")
