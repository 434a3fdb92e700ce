"""Whatever two answers hold, a diff is reflexive, symmetric in its fields, and ends."""

from __future__ import annotations

import copy

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput
from fairlead.shadow import FieldDiff, RawJson, Tolerance

names = st.sampled_from(["a", "b", "id", "at", "17", "x y", ""]) | st.text(max_size=5)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.dates()
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=25,
)
rules = st.builds(
    FieldDiff,
    ignored=st.lists(st.sampled_from(["a", "a[]", "*.at", "b.id"]), max_size=2).map(tuple),
    tolerances=st.dictionaries(
        st.sampled_from(["a", "[]", "b"]), st.builds(Tolerance, absolute=st.floats(0, 10)), max_size=2
    ),
    unordered=st.dictionaries(st.sampled_from(["", "a", "b"]), st.sampled_from(["", "id"]), max_size=2),
    maps=st.lists(st.sampled_from(["", "a", "b"]), max_size=1).map(tuple),
    depth=st.integers(1, 8),
    nodes=st.sampled_from([1, 5, 1_000]),
)


@settings(max_examples=300)
@given(rules, values)
def test_an_answer_does_not_differ_from_itself_or_its_copy(diff: FieldDiff, answer: object):
    try:
        found = diff.differences(answer, copy.deepcopy(answer))
    except InvalidInput:  # an unordered list of what JSON cannot hold
        return
    assert found.fields == {}


@settings(max_examples=300)
@given(rules, values, values)
def test_the_fields_that_differ_are_the_same_from_either_side(diff: FieldDiff, one: object, two: object):
    try:
        there, back = diff.differences(one, two), diff.differences(two, one)
    except InvalidInput:
        return
    assert there.cut == back.cut
    if not there.cut:  # a walk that was cut is not counted
        assert set(there.fields) == set(back.fields)


@given(values, values)
def test_values_without_difference_are_equal_as_json(one: object, two: object):
    found = FieldDiff().differences(one, two)
    if not found.fields and not found.cut:
        assert repr(as_json(one)) == repr(as_json(two))


def as_json(value: object) -> object:
    # Numbers as floats, since 1 is 1.0; order of keys does not count.
    if isinstance(value, bool) or not isinstance(value, int | float | dict | list):
        return value
    if isinstance(value, dict):
        return sorted((key, repr(as_json(item))) for key, item in value.items())
    if isinstance(value, list):
        return [as_json(item) for item in value]
    try:
        return float(value) + 0.0
    except OverflowError:
        return value


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_as_json_are_compared_or_differ(one: bytes, two: bytes):
    found = FieldDiff().differences(RawJson(one), RawJson(two))
    if one == two:
        assert found.fields == {}
    try:
        same = repr(msgspec.json.decode(one)) == repr(msgspec.json.decode(two))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        same = one == two
    if same:
        assert found.fields == {}


@given(st.lists(st.sampled_from("abc"), max_size=8), st.randoms(use_true_random=False))
def test_order_does_not_count_where_it_says_nothing(tags: list[str], rng):
    shuffled = tags[:]
    rng.shuffle(shuffled)
    diff = FieldDiff(unordered={"tags": ""})
    assert diff.differences({"tags": tags}, {"tags": shuffled}).fields == {}
    assert bool(diff.differences({"tags": tags}, {"tags": [*tags, "a"]}).fields)
