from __future__ import annotations

import math
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput
from fairlead.metrics import parse_condition

EVENT = {"ending": "ok", "latency_seconds": 0.4, "attempts": 3, "degraded": False, "country": "AT"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('ending == "ok"', True),
        ('ending != "ok"', False),
        ("latency_seconds < 1.0", True),
        ("1.0 > latency_seconds", True),
        ("1 <= attempts < 3", False),
        ("attempts >= -2", True),
        ("degraded", False),
        ("not degraded", True),
        ('country in ("AT", "DE")', True),
        ('country not in ["AT", "DE"]', False),
        ("version is None", True),
        ("country is not None", True),
        ("version == 3", None),
        ("not version == 3", None),
        ('version == 3 or ending == "ok"', True),
        ('version == 3 and ending == "timeout"', False),
        ('version == 3 and ending == "ok"', None),
        ("version in (1, 2)", None),
        ("country == 3", None),  # text beside a number is unknown, not false
    ],
)
def test_a_condition_says_true_false_or_unknown(text: str, holds: bool | None) -> None:
    assert parse_condition(text).holds(EVENT) is holds


def test_nan_is_unknown() -> None:
    assert parse_condition("x > 1").holds({"x": math.nan}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 to 500"),
        ("x" * 501, "1 to 500"),
        ("ending = 'ok'", "write == to compare"),
        ("__import__('os').system('true')", "no comparison"),
        ("a.b == 1", "no comparison"),
        ("a == b", "no comparison"),
        ("1 == 1", "no comparison"),
        ("a == 1j", "no comparison"),
        ("a == None", "no comparison"),
        ("a in ()", "1 to 100 values"),
        ("a in (1, 'x')", "text and numbers"),
        ("a == 10**99", "no comparison"),
        ("a == 99999999999999999999", "beyond what a column holds"),
        ("a == 1e999", "no comparison"),
        ("lambda: a", "no comparison"),
        ("a if b else c", "no comparison"),
        ("a == 1; b", "cannot be read"),
        ("a == 1\nb == 2", "cannot be read"),
        ("not " * 20 + "a", "nested more than 12 deep"),
        ("a == '\0'", "cannot be read"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_part_that_is_none(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_condition(text)


leaves = st.sampled_from(
    [
        "a > 1",
        "a <= 2.5",
        "b == 'x'",
        "b != 'y'",
        "c",
        "a in (1, 2)",
        "b not in ('x', 'z')",
        "a is None",
        "c is not None",
    ]
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda part: f"not ({part})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
    ),
    max_leaves=5,
)
events = st.fixed_dictionaries(
    {
        "a": st.sampled_from([None, 0, 1, 2, 2.5, 3]),
        "b": st.sampled_from([None, "x", "y", "z"]),
        "c": st.sampled_from([None, True, False]),
    }
)


@settings(max_examples=200, deadline=None)
@given(trees, events)
def test_a_condition_is_what_sql_says(text: str, event: dict[str, Any]) -> None:
    sql = text.replace("==", "=").replace("is not None", "IS NOT NULL").replace("is None", "IS NULL")
    database = sqlite3.connect(":memory:")
    try:
        row = database.execute(f"SELECT {sql} FROM (SELECT :a AS a, :b AS b, :c AS c)", event).fetchone()[0]  # noqa: S608
    finally:
        database.close()
    expected = None if row is None else bool(row)
    assert parse_condition(text).holds(event) is expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        parse_condition(text).holds(EVENT)
    except InvalidInput as refusal:
        assert "condition" in str(refusal)  # noqa: PT017 - most texts are refused, some are not


@pytest.mark.parametrize(
    "text", ["-" * 400 + "1", "x == " + "-" * 400 + "1", "~" * 400 + "x", "x == " + "9" * 400]
)
def test_what_python_itself_cannot_print_or_hold_is_refused_too(text: str) -> None:
    with pytest.raises(InvalidInput, match="condition"):
        parse_condition(text)


def test_a_list_beside_a_number_is_unknown() -> None:
    for text in ("x < 1", "x == 1", "x in (1, 2)"):
        assert parse_condition(text).holds({"x": [1]}) is None
