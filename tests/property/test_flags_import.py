"""An import moves nobody: against flagd's arithmetic as it is published, written down here a second time."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.flags.flagd import import_flagd
from fairlead.flags.murmur3 import Murmur3

keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
weights = st.lists(st.integers(0, 300_000_000) | st.integers(0, 20), min_size=1, max_size=6).filter(any)


def flagd_v1(hashed: int, shares: list[int]) -> int | None:
    signed = hashed - 2**32 if hashed >= 2**31 else hashed
    percent, end = abs(signed) / (2**31 - 1) * 100, 0.0
    for index, weight in enumerate(shares):
        end += weight * 100 / sum(shares)
        if percent < end:
            return index
    return None


def flagd_v2(hashed: int, shares: list[int]) -> int | None:
    at, end = hashed * sum(shares) >> 32, 0
    for index, weight in enumerate(shares):
        end += weight
        if at < end:
            return index
    return None


def cbor_text(text: str) -> bytes:
    data = text.encode()
    size = len(data)
    head = bytes([0x60 | size]) if size < 24 else b"\x78" + bytes([size])
    return head + data


@given(keys, weights, st.sampled_from(["v1", "v2", "v3"]), st.sampled_from(["feed", "ü"]), st.booleans())
def test_everybody_keeps_the_variant_that_flagd_gave_them(
    key: str, shares: list[int], version: str, name: str, shorthand: bool
) -> None:
    variants = [f"v{index}" for index in range(len(shares))]
    fractional: list[object] = [[variant, weight] for variant, weight in zip(variants, shares, strict=True)]
    if not shorthand:
        fractional.insert(0, {"var": "email"})
    flag = {
        "state": "ENABLED",
        "variants": {variant: variant for variant in [*variants, "none"]},
        "defaultVariant": "none",
        "targeting": {"fractional": fractional},
    }
    text = name + key if shorthand else key
    data = text.encode()
    if version == "v3":
        data = b"\x82" + cbor_text(name) + cbor_text(key) if shorthand else cbor_text(key)
    found = (flagd_v1 if version == "v1" else flagd_v2)(Murmur3()(data), shares)
    imported = import_flagd(json.dumps({"flags": {name: flag}}).encode(), fractional=version)
    context = EvaluationContext(targeting_key=key, attributes={"email": key})
    served = FlagSet.parse(imported.document).evaluate(name, context, "").variant
    assert served == ("none" if found is None else f"v{found}")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["v0", "a", "$flagd.flagKey", ""])
)
rules = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.builds(
            lambda name, argument: {name: argument},
            st.sampled_from(
                [
                    "fractional",
                    "if",
                    "var",
                    "cat",
                    "$ref",
                    "!==",
                    "!!",
                    "<",
                    "==",
                    "and",
                    "in",
                    "sem_ver",
                    "min",
                ]
            ),
            inner | st.lists(inner, max_size=4) | st.sampled_from(["a", "b"]),
        )
    ),
    max_leaves=15,
)


@given(rules, rules, rules, st.sampled_from(["v1", "v2", "v3", None]))
def test_any_rule_is_imported_and_answers_or_is_refused_in_one_line(
    targeting: object, a: object, b: object, version: str | None
) -> None:
    flag = {"state": "ENABLED", "variants": {"v0": 1}, "defaultVariant": "v0", "targeting": targeting}
    data = json.dumps({"$evaluators": {"a": a, "b": b}, "flags": {"f": flag}}).encode()
    try:
        imported = import_flagd(data, source="flagd.json", fractional=version)
    except BrokenDocument as error:
        message = str(error)
        assert message.startswith("flagd.json: ")
        assert "\n" not in message
        return
    context = EvaluationContext(targeting_key="u", attributes={"a": "v0"})
    assert FlagSet.parse(imported.document).evaluate("f", context, 2).value in (1, 2)


@given(st.binary(max_size=100) | rules.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_imported_or_refused(data: bytes) -> None:
    try:
        import_flagd(data, fractional="v2")
    except BrokenDocument as error:
        message = str(error)
        assert "\n" not in message
