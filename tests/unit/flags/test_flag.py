from __future__ import annotations

import json
from typing import Any

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import FlagSet, FlagType
from fairlead.flags.flag import MAX_BYTES, parse_document


def flag(**changes: Any) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"} | changes


def document(**changes: Any) -> bytes:
    return json.dumps({"flags": {"feed": flag(**changes)}}).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(BrokenDocument) as refused:
        FlagSet.parse(data, source="flags.json")
    message = str(refused.value)
    assert message.startswith("flags.json: ")
    assert "\n" not in message
    return message


def test_a_document_in_flagds_format_is_read_whole() -> None:
    read = parse_document(
        json.dumps(
            {
                "$schema": "https://flagd.dev/schema/v0/flags.json",
                "metadata": {"flagSetId": "feed", "version": 3},
                "flags": {
                    "feed": flag(metadata={"owner": "feed-team"}),
                    "depth": {"state": "DISABLED", "variants": {"few": 1, "many": 2.5}, "targeting": {}},
                },
            }
        ).encode(),
        source="flags.json",
    )
    assert read.flags["feed"].type is FlagType.BOOLEAN
    assert read.flags["feed"].metadata["owner"] == "feed-team"
    assert read.flags["depth"].type is FlagType.NUMBER
    assert not read.flags["depth"].enabled
    assert read.flags["depth"].default_variant is None
    assert read.metadata["version"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defaultVariant": "of"}, "flag 'feed', defaultVariant: 'of' is not a variant; did you mean 'off'?"),
        ({"defaultVariant": 1}, "defaultVariant: '1' is not a variant"),
        ({"state": "enabled"}, "flag 'feed', state: 'enabled'; write \"ENABLED\" or \"DISABLED\""),
        ({"variants": {}}, "variants: no variants; name at least one"),
        ({"variants": {"": True}}, "variants: a variant has an empty name"),
        ({"variants": {"off": None}}, "variants.off: 'null' is no value for a variant"),
        ({"variants": {"off": [1]}}, "variants.off: '[1]' is no value for a variant"),
        (
            {"variants": {"on": 1, "off": False}},
            "variants of mixed types ('on' a number and 'off' a boolean)",
        ),
        ({"variants": "on"}, "variants: 'on' is not an object"),
        ({"targetting": {}}, "unknown key 'targetting'; did you mean 'targeting'?"),
        ({"metadata": {"owners": ["a"]}}, "metadata.owners: metadata is a string, number or boolean"),
        ({"targeting": []}, "targeting: '[]' is not an object"),
        ({"variants": {"on": 2**53 + 1, "off": 0}}, "variants.on: integer beyond 2**53"),
        ({"variants": {"on": "\ud800", "off": ""}}, "variants.on: holds half a surrogate pair"),
    ],
)
def test_a_flag_that_breaks_the_format_is_refused_at_its_place(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(document(**changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column 1"),
        (b'{"flags": {', "line 1, column 12"),
        (b"\xff\xfe{}", "byte 0 is not UTF-8"),
        ("\ufeff{}".encode(), "line 1, column 1"),
        (b"[]", "'[]' is not an object"),
        (b"{}", 'no "flags"'),
        (b'{"flags": [1]}', "flags: '[1]' is not an object"),
        (b'{"flags": {"": {}}}', "flags: a flag has an empty name"),
        (b'{"flags": {}, "$ruleset": {}}', "unknown key '$ruleset'"),
        (b'{"flags": {"a": {"variants": {"x": NaN}}}}', "NaN is not JSON"),
        (b'{"flags": {"a": {"variants": {"x": 1e999}}}}', "flag 'a', variants.x: number out of range"),
        (b'{"flags": {"a": {"variants": {"x": ' + b"9" * 5000 + b"}}}}", "write a finite number"),
        (b'{"flags": {"a": 1, "a": 2}}', "flags: key 'a' stands twice"),
        (b'{"flags": {"a": {"variants": {"on": 1, "on": 2}}}}', "flag 'a', variants: key 'on' stands twice"),
        (b'{"flags": {"a": {"state": "ENABLED"}}}', "flag 'a', variants: missing"),
        (b'{"flags": {"a": {"variants": {"on": 1}}}}', "flag 'a', state: missing"),
        (b'{"flags": {"a\\nb": {}}}', "flag 'a\\nb', state: missing"),
        (
            b'{"flags": {"a": {"state": "ENABLED", "variants": {"x\\ny": 1}, "defaultVariant": "no"}}}',
            "'no' is not a variant; known: 'x\\ny'",
        ),
        (b" " * (MAX_BYTES + 1), "larger than 1048576 bytes"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b'{"flags":' * 33 + b"1" + b"}" * 33, "nested deeper than 32 levels"),
    ],
)
def test_a_broken_document_is_refused_in_one_line(data: bytes, message: str) -> None:
    assert message in refusal(data)


def test_nesting_is_allowed_to_32_levels_and_no_further() -> None:
    def nested(levels: int) -> bytes:
        rule: Any = {"var": "x"}
        for _ in range(levels):
            rule = {"!": rule}
        return document(targeting={"if": [rule, "on"]})

    deepest = max(levels for levels in range(40) if not _refused(nested(levels)))
    assert deepest == 25  # document, flags, flag, targeting, if's list, var's value take the rest
    assert "nested deeper" in refusal(nested(26))


def _refused(data: bytes) -> bool:
    try:
        parse_document(data, source="flags.json")
    except BrokenDocument:
        return True
    return False


def test_an_object_variant_is_read_only_all_the_way_down() -> None:
    read = parse_document(
        document(variants={"a": {"limits": {"rows": [1, 2]}}}, defaultVariant="a"), source="flags.json"
    )
    value = read.flags["feed"].variants["a"]
    with pytest.raises(TypeError):
        value["limits"]["rows"] = 3  # type: ignore[index]  # the point of the test
    assert value["limits"]["rows"] == (1, 2)  # type: ignore[index]  # an object variant
