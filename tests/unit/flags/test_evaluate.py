from __future__ import annotations

import json
from typing import Any

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import Evaluation, EvaluationContext, FlagSet, Reason, bucket

SPLIT = {"by": "targetingKey", "salt": "feed", "algo": "xxh32/10000@1", "slots": [["on", 0, 5000]]}


def flags(targeting: Any = None, **changes: Any) -> FlagSet:
    flag = {
        "state": "ENABLED",
        "variants": {"on": "new", "off": "old", "third": "other"},
        "defaultVariant": "off",
        "targeting": targeting,
    } | changes
    return FlagSet.parse(json.dumps({"flags": {"feed": flag}}).encode(), source="flags.json")


def ask(targeting: Any, key: str = "", /, **attributes: object) -> Evaluation:
    context = EvaluationContext(targeting_key=key, attributes=attributes)
    return flags(targeting).evaluate("feed", context, "mine")


def holds(condition: Any, key: str = "", /, **attributes: object) -> bool:
    evaluation = ask({"if": [condition, "on"]}, key, **attributes)
    assert evaluation.reason in (Reason.TARGETING_MATCH, Reason.DEFAULT)
    return evaluation.variant == "on"


def test_a_flag_without_targeting_is_static() -> None:
    assert ask(None) == Evaluation("old", "off", Reason.STATIC)
    assert ask({}) == Evaluation("old", "off", Reason.STATIC)


def test_a_rule_that_names_a_variant_is_a_targeting_match() -> None:
    rule = {"if": [{"==": [{"var": "plan"}, "pro"]}, "on", {"==": [{"var": "plan"}, "beta"]}, "third"]}
    assert ask(rule, plan="pro") == Evaluation("new", "on", Reason.TARGETING_MATCH)
    assert ask(rule, plan="beta") == Evaluation("other", "third", Reason.TARGETING_MATCH)


def test_a_rule_that_decides_nothing_serves_the_default_variant() -> None:
    assert ask({"if": [{"var": "pro"}, "on"]}) == Evaluation("old", "off", Reason.DEFAULT)
    assert ask({"if": [{"var": "pro"}, "on", None]}) == Evaluation("old", "off", Reason.DEFAULT)


def test_the_last_argument_of_an_odd_if_is_its_else() -> None:
    assert ask({"if": [{"var": "pro"}, "on", "third"]}).variant == "third"


def test_a_disabled_flag_serves_the_callers_own_default() -> None:
    evaluation = flags({"if": [True, "on"]}, state="DISABLED").evaluate("feed", EvaluationContext(), "mine")
    assert evaluation == Evaluation("mine", None, Reason.DISABLED)


def test_a_null_default_variant_serves_the_callers_own_default() -> None:
    for targeting in (None, {"if": [{"var": "pro"}, "on"]}):
        evaluation = flags(targeting, defaultVariant=None).evaluate("feed", EvaluationContext(), "mine")
        assert evaluation == Evaluation("mine", None, Reason.DEFAULT)


def test_true_and_false_name_the_variants_true_and_false() -> None:
    variants = {"true": 1, "false": 0}
    both = flags({"==": [{"var": "plan"}, "pro"]}, variants=variants, defaultVariant="false")
    assert both.number("feed", EvaluationContext(attributes={"plan": "pro"}), 9) == 1
    assert both.number("feed", EvaluationContext(), 9) == 0
    branch = flags({"if": [{"var": "pro"}, True, False]}, variants=variants, defaultVariant="false")
    assert branch.number("feed", EvaluationContext(attributes={"pro": 1}), 9) == 1


def test_a_computed_result_is_looked_up_among_the_variants() -> None:
    assert ask({"var": "wanted"}, wanted="third") == Evaluation("other", "third", Reason.TARGETING_MATCH)
    assert ask({"var": "wanted"}).reason is Reason.DEFAULT
    missed = ask({"var": "wanted"}, wanted="fourth")
    assert (missed.value, missed.variant, missed.reason) == ("mine", None, Reason.ERROR)
    assert missed.detail == "targeting yielded 'fourth', which names no variant"


def test_a_units_slot_decides_within_half_open_ranges() -> None:
    slot = bucket("feed", "user-1")
    for start, end, inside in ((slot, slot + 1, True), (0, slot, False), (slot + 1, 10_000, False)):
        evaluation = ask({"bucket": SPLIT | {"slots": [["on", start, end]]}}, "user-1")
        expected = (
            Evaluation("new", "on", Reason.SPLIT) if inside else Evaluation("old", "off", Reason.DEFAULT)
        )
        assert evaluation == expected


def test_growing_one_arm_moves_nobody_of_another() -> None:
    small = flags({"bucket": SPLIT | {"slots": [["on", 0, 500], ["third", 9000, 10_000]]}})
    grown = flags(
        {"bucket": SPLIT | {"slots": [["third", 9000, 10_000], ["on", 0, 2500], ["on", 2500, 4000]]}}
    )
    for number in range(5_000):
        context = EvaluationContext(targeting_key=str(number))
        before, after = (each.evaluate("feed", context).variant for each in (small, grown))
        if before != "off":
            assert after == before
        else:
            assert after in ("off", "on")


def test_without_a_targeting_key_no_bucket_is_drawn_and_the_evaluation_says_so() -> None:
    evaluation = ask({"bucket": SPLIT | {"slots": [["on", 0, 10_000]]}})
    assert (evaluation.value, evaluation.variant, evaluation.reason) == ("old", "off", Reason.DEFAULT)
    assert evaluation.detail == "the context has no targetingKey, so no bucket was drawn"


def test_a_bucket_can_be_drawn_by_an_attribute_of_text_or_whole_number() -> None:
    rule = {"bucket": SPLIT | {"by": "shop", "slots": [["on", 0, 10_000]]}}
    assert ask(rule, shop="s1").variant == "on"
    assert ask(rule, shop=12).variant == "on"
    for unusable in (None, "", True, 1.5, ["s1"]):
        assert ask(rule, "user-1", shop=unusable).reason is Reason.DEFAULT
    by_number = ask({"bucket": SPLIT | {"by": "shop"}}, shop=12).variant
    assert by_number == ask({"bucket": SPLIT | {"by": "shop"}}, shop="12").variant


def test_a_bucket_in_a_condition_yields_its_label() -> None:
    rule = {"==": [{"bucket": SPLIT | {"slots": [["in", 0, 10_000]]}}, "in"]}
    assert holds(rule, "user-1")
    assert not holds(rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": [["on", 0, 500], ["off", 499, 600]]}, "slots[1]: 'off' overlaps 'on' of slots[0]"),
        ({"slots": [["off", 499, 600], ["on", 0, 500]]}, "slots[0]: 'off' overlaps 'on' of slots[1]"),
        ({"slots": [["on", 0, 10_001]]}, "slots[0]: ['0', '10001') is no range within 0 to 10000"),
        ({"slots": [["on", -1, 5]]}, "slots[0]"),
        ({"slots": [["on", 5, 5]]}, "slots[0]"),
        ({"slots": [["on", False, True]]}, "slots[0]"),
        ({"slots": [["on", 0.0, 5.0]]}, "slots[0]"),
        ({"slots": [["on", 0]]}, "slots[0]"),
        ({"slots": []}, "slots: takes a list"),
        ({"slots": [["onn", 0, 5]]}, "'onn' is not a variant; did you mean 'on'?"),
        ({"algo": "xxh32"}, "algo: unknown algorithm 'xxh32'; write 'xxh32/10000@1'"),
        ({"salt": "a:b"}, "salt: salt 'a:b' is not 1 to 64 letters"),
        ({"by": ""}, "by: '' names no attribute"),
        ({"seed": 1}, "takes an object with exactly by, salt, algo, slots"),
    ],
)
def test_a_bucket_that_is_not_exactly_as_pinned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flags({"bucket": SPLIT | changes})
    assert message in str(refused.value)
    assert str(refused.value).startswith("flags.json: flag 'feed', targeting.bucket")


@pytest.mark.parametrize(
    ("condition", "attributes", "expected"),
    [
        ({"==": [{"var": "a"}, 1]}, {"a": "1"}, True),
        ({"==": [{"var": "a"}, "1"]}, {"a": 1}, True),
        ({"==": [{"var": "a"}, "1"]}, {"a": True}, True),
        ({"==": [{"var": "a"}, "x"]}, {"a": "x"}, True),
        ({"==": [{"var": "a"}, "x"]}, {"a": 0}, False),
        ({"==": [{"var": "a"}, None]}, {}, True),
        ({"==": [{"var": "a"}, 0]}, {}, False),
        ({"==": [{"var": "a"}, "nan"]}, {"a": float("nan")}, False),
        ({"===": [{"var": "a"}, 1]}, {"a": "1"}, False),
        ({"===": [{"var": "a"}, 1]}, {"a": 1.0}, True),
        ({"===": [{"var": "a"}, 1]}, {"a": True}, False),
        ({"===": [{"var": "a"}, True]}, {"a": 1}, False),
        ({"===": [{"var": "a"}, "1"]}, {"a": "1"}, True),
        ({"!=": [{"var": "a"}, "x"]}, {"a": "y"}, True),
        ({"!=": [{"var": "a"}, "x"]}, {}, True),
        ({"<": [{"var": "age"}, 18]}, {"age": 17}, True),
        ({"<": [{"var": "age"}, 18]}, {}, False),
        ({"<": [{"var": "age"}, 18]}, {"age": "17"}, True),
        ({"<": [{"var": "age"}, 18]}, {"age": "young"}, False),
        ({"<": [{"var": "a"}, "b"]}, {"a": "a"}, True),
        ({"<": [1, {"var": "a"}, 3]}, {"a": 2}, True),
        ({"<": [1, {"var": "a"}, 3]}, {"a": 3}, False),
        ({"<=": [1, {"var": "a"}, 3]}, {"a": 3}, True),
        ({">": [{"var": "a"}, 1]}, {"a": 1}, False),
        ({">=": [{"var": "a"}, 1]}, {"a": 1}, True),
        ({">": [{"var": "a"}, {"var": "b"}]}, {"a": 2, "b": 1}, True),
        ({"in": [{"var": "a"}, ["x", "y"]]}, {"a": "x"}, True),
        ({"in": [{"var": "a"}, ["x", "y"]]}, {"a": ["x"]}, False),
        ({"in": [{"var": "a"}, [1, "y"]]}, {"a": True}, False),
        ({"in": [{"var": "a"}, [1, "y"]]}, {"a": 1}, True),
        ({"in": ["@corp.example", {"var": "a"}]}, {"a": "me@corp.example"}, True),
        ({"in": ["x", {"var": "a"}]}, {"a": ["x"]}, True),
        ({"in": ["x", {"var": "a"}]}, {}, False),
        ({"in": [1, {"var": "a"}]}, {"a": "1"}, False),
        ({"starts_with": [{"var": "a"}, "be"]}, {"a": "beta"}, True),
        ({"starts_with": [{"var": "a"}, "be"]}, {"a": 7}, False),
        ({"ends_with": [{"var": "a"}, "ta"]}, {"a": "beta"}, True),
        ({"!": {"var": "a"}}, {}, True),
        ({"!": [{"var": "a"}]}, {"a": "x"}, False),
        ({"and": [{"var": "a"}, {"var": "b"}]}, {"a": 1}, False),
        ({"and": [{"var": "a"}, {"var": "b"}]}, {"a": 1, "b": 1}, True),
        ({"or": [{"var": "a"}, {"var": "b"}]}, {"b": 1}, True),
        ({"or": [{"var": "a"}, {"var": "b"}]}, {}, False),
        ({"var": "a"}, {"a": "0"}, True),
        ({"var": "a"}, {"a": []}, False),
        ({"var": "a"}, {"a": {}}, True),
        ({"var": ["a", 1]}, {}, True),
        ({"var": "user.plan"}, {"user": {"plan": "pro"}}, True),
        ({"var": "user.plan"}, {"user.plan": "pro"}, True),
        ({"var": "user.plan"}, {"user": "pro"}, False),
        ({"var": "list.1"}, {"list": [0, 1]}, True),
        ({"var": "list.9"}, {"list": [0, 1]}, False),
        ({"var": "list.99999999999999999999"}, {"list": [0, 1]}, False),
        ({"if": [{"var": "a"}, {"var": "b"}, True]}, {}, True),
        ({"if": [{"var": "a"}, {"var": "b"}]}, {"a": 1, "b": 0}, False),
        (True, {}, True),
        (0, {}, False),
    ],
)
def test_conditions_hold_as_json_logic_says_or_as_the_docs_say_where_we_differ(
    condition: Any, attributes: dict[str, object], expected: bool
) -> None:
    assert holds(condition, **attributes) is expected


def test_var_reads_the_targeting_key() -> None:
    assert holds({"==": [{"var": "targetingKey"}, "user-1"]}, "user-1")
    assert not holds({"var": "targetingKey"})


@pytest.mark.parametrize(
    ("targeting", "message"),
    [
        ({"if": [{"xor": [1, 2]}, "on"]}, "targeting.if[0]: unknown operator 'xor'; did you mean 'or'?"),
        ({"fractional": []}, 'turn it into "bucket" with fairlead flags import'),
        ({"if": [True, "onn"]}, "targeting.if[1]: 'onn' is not a variant; did you mean 'on'?"),
        ({"if": [True, True]}, "targeting.if[1]: 'true' is not a variant"),
        ({"if": [True, 3]}, "targeting.if[1]: '3' names no variant"),
        ({"if": [True]}, "targeting.if: takes 2 or more arguments, not 1"),
        ({"if": [{"==": [1]}, "on"]}, "targeting.if[0].==: takes 2 arguments, not 1"),
        ({"if": [{"<": [1, 2, 3, 4]}, "on"]}, "targeting.if[0].<: takes 2 to 3 arguments, not 4"),
        ({"if": [{"!": []}, "on"]}, "takes 1 arguments, not 0"),
        ({"if": [{"and": []}, "on"]}, "takes 1 or more arguments, not 0"),
        ({"if": [{"var": ""}, "on"]}, "targeting.if[0].var: takes the name of an attribute"),
        ({"if": [{"var": 1}, "on"]}, "targeting.if[0].var"),
        ({"if": [{"var": ["a", {"var": "b"}]}, "on"]}, "targeting.if[0].var"),
        ({"if": [{"var": "$flagd.timestamp"}, "on"]}, "'$flagd.timestamp' is not supported"),
        ({"if": [{}, "on"]}, "targeting.if[0]: a rule has one operator, not 0"),
        ({"or": [1], "and": [1]}, "targeting: a rule has one operator, not 2"),
    ],
)
def test_a_rule_that_is_not_understood_is_refused_at_its_place(targeting: Any, message: str) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flags(targeting)
    assert message in str(refused.value)
    assert str(refused.value).startswith("flags.json: flag 'feed', ")


def test_a_broken_rule_is_refused_although_its_flag_is_switched_off() -> None:
    with pytest.raises(BrokenDocument, match="unknown operator"):
        flags({"xor": [1, 2]}, state="DISABLED")
