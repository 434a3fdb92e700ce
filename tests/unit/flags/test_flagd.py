"""What flagd drew stays drawn: the examples that its own test bed publishes, in all three versions of `fractional`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, FlagSet, Reason
from fairlead.flags.flagd import import_flagd, needs_fairlead

SUITS = ["clubs", "diamonds", "hearts", "spades"]


def document(fractional: list[object], variants: list[str], name: str = "f", **more: object) -> bytes:
    flag = {
        "state": "ENABLED",
        "variants": {variant: variant for variant in [*variants, "wild"]},
        "defaultVariant": "wild",
        "targeting": {"fractional": fractional},
    }
    return json.dumps({"flags": {name: flag | more}}).encode()


def served(data: bytes, version: str, *, name: str = "f", key: str = "", **attributes: object) -> str | None:
    flags = FlagSet.parse(import_flagd(data, source="flagd.json", fractional=version).document)
    return flags.evaluate(name, EvaluationContext(targeting_key=key, attributes=attributes), "").variant


QUARTERS: list[object] = [[suit, 25] for suit in SUITS]
BY_NAME_OF_FLAG = [{"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]}, *QUARTERS]
BY_SEED = [{"cat": ["shared-seed", {"var": "user.name"}]}, *QUARTERS]


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("v1", {"jack": "spades", "queen": "clubs", "ten": "diamonds", "nine": "hearts", "3": "diamonds"}),
        ("v2", {"jack": "hearts", "queen": "spades", "ten": "clubs", "nine": "diamonds", "3": "clubs"}),
        ("v3", {"jack": "diamonds", "queen": "diamonds", "ten": "clubs", "nine": "clubs", "3": "spades"}),
    ],
)
def test_a_key_behind_the_name_of_the_flag_keeps_its_variant(version: str, names: dict[str, str]) -> None:
    data = document(BY_NAME_OF_FLAG, SUITS, name="fractional-flag")
    assert {
        name: served(data, version, name="fractional-flag", user={"name": name}) for name in names
    } == names


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("v1", {"jack": "hearts", "queen": "spades", "ten": "hearts", "nine": "diamonds"}),
        ("v2", {"seven": "hearts", "eight": "diamonds", "nine": "clubs", "two": "spades"}),
        ("v3", {"seven": "hearts", "eight": "hearts", "nine": "diamonds", "two": "diamonds"}),
    ],
)
def test_a_key_behind_a_seed_keeps_its_variant(version: str, names: dict[str, str]) -> None:
    data = document(BY_SEED, SUITS)
    assert {name: served(data, version, user={"name": name}) for name in names} == names


@pytest.mark.parametrize(
    ("version", "jon", "jane"), [("v1", "heads", "tails"), ("v2", "heads", "tails"), ("v3", "tails", "tails")]
)
def test_the_shorthand_draws_by_flag_and_targeting_key(version: str, jon: str, jane: str) -> None:
    name = "fractional-flag-shorthand"
    data = document([["heads"], ["tails", 1]], ["heads", "tails"], name=name)
    assert served(data, version, name=name, key="jon@company.com") == jon
    assert served(data, version, name=name, key="jane@company.com") == jane


@pytest.mark.parametrize(
    ("key", "variant"),
    [("ejOoVL", "lower"), ("bY9fO-", "lower"), ("SI7p-", "lower"), ("6LvT0", "upper"), ("ceQdGm", "upper")],
)
def test_hashes_at_the_edges_keep_their_variant(key: str, variant: str) -> None:
    data = document([{"var": "targetingKey"}, ["lower", 50], ["upper", 50]], ["lower", "upper"])
    assert served(data, "v2", key=key) == variant


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        (True, 5), (False, 1), ("user1", 22), ("user2", 16), (123, 20), (456, 12), (1.23, 14), (4.56, 18),
        ("123", 22), ("true", 24), ("null", 8), (0, 8), (-0.0, 8), (1.0, 23), (1, 23), (-2, 12), (-2.0, 12),
        (2147483647, 10), (-2147483648, 8), (23, 21), (24, 11), (255, 13), (256, 13), (65535, 4), (65536, 11),
        (-24, 4), (-25, 16), (1e20, 19), (-1e20, 25), (65504.0, 16), (0.00006103515625, 22), (65505.0, 17),
        (0.000000059604644775390625, 23), (3.4028234663852886e38, 10), (3.5e38, 1), (1.7976931348623157e308, 17),
        (2.2250738585072014e-308, 11), (5e-324, 2), (1.1754943508222875e-38, 24),
    ],
)  # fmt: skip
def test_numbers_and_booleans_are_drawn_as_version_3_draws_them(value: object, bucket: int) -> None:
    names = [f"bucket{number}" for number in range(1, 26)]
    data = document([{"var": "hashing_input"}, *([name, 1] for name in names)], names)
    assert served(data, "v3", hashing_input=value) == f"bucket{bucket}"


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@pytest.mark.parametrize("value", ["", None, [], {}, float("nan")], ids=repr)
def test_nobody_is_drawn_for_nothing(version: str, value: object) -> None:
    data = document([{"var": "email"}, *QUARTERS], SUITS)
    assert served(data, version, email=value) == "wild"


def test_an_imported_share_grows_by_single_slots_and_moves_nobody_else() -> None:
    imported = json.loads(
        import_flagd(document([["clubs", 5], ["hearts", 95]], SUITS), fractional="v2").document
    )
    bucket = imported["flags"]["f"]["targeting"]["bucket"]
    assert bucket == {
        "by": "targetingKey",
        "salt": "f",
        "algo": "murmur3/10000@flagd-v2",
        "slots": [["clubs", 0, 500], ["hearts", 500, 10_000]],
    }


def test_weights_that_no_multiple_of_ours_divides_keep_their_own_sum() -> None:
    imported = json.loads(
        import_flagd(document([["clubs"], ["hearts"], ["spades"]], SUITS), fractional="v2").document
    )
    bucket = imported["flags"]["f"]["targeting"]["bucket"]
    assert bucket["algo"] == "murmur3/9999@flagd-v2"
    assert bucket["slots"] == [["clubs", 0, 3333], ["hearts", 3333, 6666], ["spades", 6666, 9999]]


def test_a_shared_rule_that_draws_is_put_into_each_flag_that_refers_to_it() -> None:
    flag = json.loads(document([], SUITS))["flags"]["f"] | {"targeting": {"$ref": "split"}}
    raw = {
        "$evaluators": {"split": {"fractional": QUARTERS}, "staff": {"!!": [{"var": "staff"}]}},
        "flags": {
            "a": flag,
            "b": flag | {"targeting": {"if": [{"$ref": "staff"}, "hearts", {"$ref": "split"}]}},
        },
    }
    imported = json.loads(import_flagd(json.dumps(raw).encode(), fractional="v2").document)
    assert imported["$evaluators"] == {"staff": {"!": {"!": {"var": "staff"}}}}
    assert imported["flags"]["a"]["targeting"]["bucket"]["salt"] == "a"
    assert imported["flags"]["b"]["targeting"]["if"][2]["bucket"]["salt"] == "b"


def test_a_list_of_flags_and_other_keys_are_taken_over_or_named() -> None:
    flag = {"key": "a", "state": "ENABLED", "variants": {"on": True}, "defaultVariant": "on", "source": "x"}
    imported = import_flagd(json.dumps({"flags": [flag], "owner": "me"}).encode())
    assert FlagSet.parse(imported.document).boolean("a", EvaluationContext(), False)
    assert imported.notices == ("the document's owner is left out", "a: source is left out")


def test_what_may_serve_otherwise_is_named() -> None:
    rule = {"if": [{"<": [{"var": "age"}, 18]}, {"fractional": [{"var": "email"}, *QUARTERS]}, None]}
    imported = import_flagd(document([], SUITS, targeting=rule), fractional="v2")
    assert [notice.split(";")[0] for notice in imported.notices] == [
        "f: <: a missing attribute satisfies no comparison here",
        "f: without email the default is served",
    ]


def test_a_drawn_unit_has_the_reason_that_experiments_count() -> None:
    flags = FlagSet.parse(import_flagd(document(QUARTERS, SUITS), fractional="v1").document)
    assert flags.evaluate("f", EvaluationContext(targeting_key="u"), "").reason is Reason.SPLIT


def test_booleans_name_variants_and_null_is_a_gap() -> None:
    data = document([[True, 50], [None, 50]], ["true"])
    seen = {served(data, "v2", key=f"u{number}") for number in range(50)}
    assert seen == {"true", "wild"}


@pytest.mark.parametrize(
    ("fractional", "version", "message"),
    [
        (QUARTERS, None, "say which: v1 (flagd up to 0.14), v2"),
        (QUARTERS, "v4", "'v4' is no version of fractional"),
        ([["clubs", 0], ["hearts", 0]], "v2", "the weights are 0 in all, not 1 to 2147483647"),
        ([["clubs", 2**31 - 1], ["hearts", 1]], "v2", "the weights are 2147483648 in all"),
        ([["clubs", -1], ["hearts", 1]], "v2", "fractional[0][1]: '-1' is no whole weight"),
        ([["clubs", 0.5], ["hearts", 1]], "v2", "'0.5' is no whole weight"),
        ([["clubs", True], ["hearts", 1]], "v2", "'true' is no whole weight"),
        ([["clubs", {"var": "w"}], ["hearts", 1]], "v2", "is no whole weight"),
        ([[{"var": "color"}, 50], ["hearts", 50]], "v2", "is computed or no text"),
        ([["clubs", 1, 2]], "v2", "is no share"),
        (["key", ["clubs", 1]], "v2", "draws by more than text and one attribute"),
        (
            [{"cat": [{"var": "a"}, {"var": "b"}]}, ["clubs", 1]],
            "v2",
            "draws by more than text and one attribute",
        ),
        ([{"var": ["a", "b"]}, ["clubs", 1]], "v2", "draws by more than text and one attribute"),
        ([], "v2", "draws by more than text and one attribute"),
        ([["stars", 1]], "v2", "'stars' is not a variant"),
    ],
    ids=range(15),
)
def test_what_could_not_be_served_alike_is_refused_at_its_place(
    fractional: Any, version: str | None, message: str
) -> None:
    with pytest.raises(BrokenDocument) as refused:
        import_flagd(document(fractional, SUITS), source="flagd.json", fractional=version)
    assert str(refused.value).startswith("flagd.json: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"flags": 3}',
        b'{"flags": [3]}',
        b'{"flags": {"f": 3}}',
        b'{"flags": {"f": {}}}',
        b"\xff",
    ],
    ids=range(8),
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenDocument):
        import_flagd(data)


def test_rules_that_refer_to_each_other_without_end_are_refused() -> None:
    flag = json.loads(document([], SUITS))["flags"]["f"] | {"targeting": {"$ref": "a"}}
    circle = {"a": {"if": [{"$ref": "a"}, {"fractional": QUARTERS}]}}
    chain: dict[str, Any] = {f"a{n}": {"if": [True, {"$ref": f"a{n + 1}"}]} for n in range(2000)}
    chain |= {"a": {"$ref": "a0"}, "a2000": {"fractional": QUARTERS}}
    for rules in (circle, chain):
        with pytest.raises(BrokenDocument):
            import_flagd(json.dumps({"$evaluators": rules, "flags": {"f": flag}}).encode(), fractional="v2")


def test_what_flagd_would_serve_otherwise_is_told_apart() -> None:
    plain = {"state": "ENABLED", "variants": {"on": True}, "defaultVariant": "on"}
    bucket = {"by": "targetingKey", "salt": "s", "algo": "xxh32/10000@1", "slots": [["on", 0, 1]]}
    flags = {
        "plain": plain | {"targeting": {"if": [{"var": "x"}, "on"]}, "metadata": {"owner": "me"}},
        "drawn": plain | {"targeting": {"if": [True, {"bucket": bucket}]}},
        "killed": plain | {"metadata": {"fairlead_killed": True}},
        "needs": plain | {"targeting": {"variant_of": "plain"}},
    }
    document = FlagSet.parse(json.dumps({"flags": flags}).encode()).document
    assert {name: needs_fairlead(flag) for name, flag in document.flags.items()} == {
        "plain": (),
        "drawn": ("bucket",),
        "killed": ("fairlead_killed",),
        "needs": ("variant_of",),
    }
