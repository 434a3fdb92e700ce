from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, FlagSet, Reason, bucket
from fairlead.flags.rule import OPERATORS

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
rules = st.recursive(
    st.sampled_from(["on", "off", None, True, 1, "x"]),
    lambda inner: st.builds(
        lambda name, arguments: {name: arguments},
        st.sampled_from(OPERATORS),
        st.lists(inner, max_size=4) | inner,
    ),
    max_leaves=12,
)


def document(targeting: Any) -> bytes:
    flag = {
        "state": "ENABLED",
        "variants": {"on": "a", "off": "b"},
        "defaultVariant": "off",
        "targeting": targeting,
    }
    return json.dumps({"flags": {"feed": flag}}).encode()


@given(rules, st.text(max_size=8), st.dictionaries(st.sampled_from(["on", "off", "x"]), values, max_size=3))
def test_a_rule_is_refused_when_read_or_answers_every_context(
    rule: Any, key: str, attributes: dict[str, object]
) -> None:
    try:
        flags = FlagSet.parse(document({"if": [rule, rule, "on"]}), source="f")
    except BrokenDocument as error:
        message = str(error)
        assert message.startswith("f: flag 'feed', targeting")
        assert "\n" not in message
        return
    evaluation = flags.evaluate("feed", EvaluationContext(targeting_key=key, attributes=attributes), "mine")
    if evaluation.variant is None:
        assert evaluation.value == "mine"
        assert evaluation.reason is Reason.ERROR
        assert "names no variant" in evaluation.detail  # the only error a checked rule may end in
    else:
        assert evaluation.value == {"on": "a", "off": "b"}[evaluation.variant]


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_document_or_refused_in_one_line(data: bytes) -> None:
    try:
        FlagSet.parse(data, source="flags.json")
    except BrokenDocument as error:
        message = str(error)
        assert message.startswith("flags.json: ")
        assert "\n" not in message


@given(
    st.lists(st.integers(0, 10_000), min_size=2, max_size=8, unique=True),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
)
def test_a_unit_is_served_by_the_one_range_that_holds_its_slot(bounds: list[int], key: str) -> None:
    bounds.sort()
    ranges = list(zip(bounds[::2], bounds[1::2], strict=False))
    slots = [["on", start, end] for start, end in ranges]
    rule = {"bucket": {"by": "targetingKey", "salt": "feed", "algo": "xxh32/10000@1", "slots": slots}}
    served = FlagSet.parse(document(rule)).evaluate("feed", EvaluationContext(targeting_key=key)).reason
    inside = any(start <= bucket("feed", key) < end for start, end in ranges)
    assert served is (Reason.SPLIT if inside else Reason.DEFAULT)
