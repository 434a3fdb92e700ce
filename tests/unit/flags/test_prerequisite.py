"""A flag may ask which variant another one serves; it ends, or the document is refused."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet, Reason
from fairlead.flags.explain import explain
from fairlead.telemetry import Exposure, MemorySink


def flag(targeting: object = None, **more: object) -> dict[str, object]:
    return {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": targeting,
    } | more


def needs(name: str, variant: str = "on") -> dict[str, object]:
    return {"if": [{"===": [{"variant_of": name}, variant]}, "on"]}


def flag_set(
    sink: MemorySink | None = None, overrides: dict[str, str] | None = None, **flags: object
) -> FlagSet:
    exposures = None if sink is None else ExposureLog(sink)
    data = json.dumps({"flags": flags}).encode()
    return FlagSet.parse(data, source="f", overrides=overrides, exposures=exposures)


CART = flag({"if": [{"==": [{"var": "country"}, "DE"]}, "on"]})
GERMAN = EvaluationContext(targeting_key="u", attributes={"country": "DE"})


def test_a_flag_follows_the_variant_of_the_one_it_needs() -> None:
    flags = flag_set(pay=flag(needs("cart")), cart=CART)
    assert flags.boolean("pay", GERMAN, False)
    found = flags.evaluate("pay", EvaluationContext(targeting_key="u"), True)
    assert (found.value, found.reason) == (False, Reason.DEFAULT)


@pytest.mark.parametrize(
    "cart",
    [
        CART | {"state": "DISABLED"},
        CART | {"metadata": {"fairlead_killed": True}},
        CART | {"targeting": {"var": "x"}},
    ],
    ids=["disabled", "killed", "default"],
)
def test_what_is_switched_off_serves_no_variant_to_those_who_need_it(cart: dict[str, object]) -> None:
    assert not flag_set(pay=flag(needs("cart")), cart=cart).boolean("pay", GERMAN, True)


def test_a_forced_variant_counts_for_those_who_need_it() -> None:
    flags = flag_set(pay=flag(needs("cart")), cart=CART, overrides={"cart": "on"})
    assert flags.boolean("pay", EvaluationContext(), False)


def test_asking_another_flag_exposes_nobody_to_it() -> None:
    sink = MemorySink()
    flag_set(sink, pay=flag(needs("cart")), cart=CART).boolean("pay", GERMAN, False)
    assert [event.flag for event in sink.events if isinstance(event, Exposure)] == ["pay"]


def test_an_explanation_says_what_the_other_flag_serves_and_why() -> None:
    flags = flag_set(pay=flag(needs("cart")), cart=CART)
    assert "flag 'cart' serves 'on' (TARGETING_MATCH)" in explain(flags, "pay", GERMAN).steps[0].said
    assert "flag 'cart' serves 'off' (DEFAULT)" in explain(flags, "pay", EvaluationContext()).steps[0].said


def test_the_variant_of_another_flag_may_be_the_result() -> None:
    assert flag_set(pay=flag({"variant_of": "cart"}), cart=CART).boolean("pay", GERMAN, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"a": flag(needs("b"))}, "flag 'a', targeting: variant_of 'b': no such flag; known: a"),
        ({"a": flag(needs("a"))}, "'a' needs 'a'; break the circle"),
        ({"a": flag(needs("b")), "b": flag(needs("a"))}, "'a' needs 'b' needs 'a'; break the circle"),
        ({"a": flag({"if": [{"variant_of": 3}, "on"]})}, "'3' names no flag"),
        ({"a": flag({"if": [{"variant_of": ["b", "c"]}, "on"]})}, "takes 1 arguments, not 2"),
    ],
    ids=["unknown", "itself", "circle", "no-name", "two"],
)
def test_what_would_not_end_or_asks_nobody_is_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flag_set(None, None, **flags)
    assert message in str(refused.value)


def test_flags_that_ask_for_more_than_can_be_meant_are_refused() -> None:
    flags = {f"f{n}": flag({"and": [{"variant_of": f"f{n + 1}"}] * 2}) for n in range(30)} | {"f30": flag()}
    with pytest.raises(BrokenDocument, match="asks 126 flags by way of variant_of, more than 64"):
        flag_set(None, None, **flags)


def test_a_chain_longer_than_the_stack_is_refused_and_not_followed() -> None:
    flags = {f"f{n}": flag(needs(f"f{n + 1}")) for n in range(3000)} | {"f3000": flag()}
    with pytest.raises(BrokenDocument, match="asks 65 flags"):
        flag_set(None, None, **flags)


def test_a_needed_flag_whose_rule_fails_answers_with_the_callers_default() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    flags = flag_set(pay=flag(needs("cart")), cart=flag({"if": [{"in": ["a", {"var": "list"}]}, "on"]}))
    found = flags.evaluate("pay", EvaluationContext(attributes={"list": [Odd()]}), True)
    assert found.value in (True, False)
    assert explain(flags, "pay", EvaluationContext(attributes={"list": [Odd()]})).steps
