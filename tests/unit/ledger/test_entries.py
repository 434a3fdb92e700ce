"""What may be recorded, and that equal things have equal bytes."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.ledger import Decision, Evidence, FrozenChange, Head, Ledger, bounds
from fairlead.ledger.entry import identified, open_payload, sealed
from tests.unit.ledger.contract import decision, figure

TEXTS = ["change", "metric", "statistic", "arm", "unit", "window", "segment", "unit_of_analysis"]


def frozen(content: bytes = b"x", **changed: Any) -> FrozenChange:
    given: dict[str, Any] = {
        "name": "home_feed",
        "version": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "follows": None,
        "frozen_at_utc_seconds": 1.0,
        "content": content,
    }
    return FrozenChange(**(given | changed))


@pytest.mark.parametrize("field", [*TEXTS, "definition", "method"])
@pytest.mark.parametrize(
    "value", ["", " \n", None, 3, b"x", "a\0b", "a\x1b[31m", "\ud800", "a\u2028b", "x" * 4_001]
)
def test_text_that_cannot_be_kept_is_refused_by_its_field(field: str, value: object):
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        figure(**{field: value})


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", [" x", "x\n", "x\ny", "x" * 201])
def test_a_name_is_one_line_without_space_around_it(field: str, value: str):
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        figure(**{field: value})


@pytest.mark.parametrize("field", ["value", "low", "high", "confidence", "measured_at_utc_seconds"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, True, "1", b"1", [1], 1j, np.float64("nan")]
)
def test_a_number_that_is_none_is_refused_by_its_field(field: str, value: object):
    with pytest.raises(InvalidInput, match=rf"^{field}: .{{1,120}}$"):
        figure(**{field: value})


@pytest.mark.parametrize("value", [-1, 1.0, 2**63, 10**1000, True, "1", None, math.nan])
def test_a_count_that_is_none_is_refused(value: object):
    with pytest.raises(InvalidInput, match=r"^n: .{1,120}$"):
        figure(n=value)


@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_missing_number_needs_a_caveat(field: str):
    with pytest.raises(InvalidInput, match=f"^{field}: it is None, and no caveat says why"):
        figure(**{field: None})
    assert getattr(figure(**{field: None}, caveats=("nobody came",)), field) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"low": 0.3, "high": 0.2}, "low: 0.3 lies above high, 0.2"),
        ({"confidence": None}, "confidence: it is given with an interval, and only then"),
        ({"low": None, "high": None, "caveats": ("few",)}, "confidence: it is given with an interval"),
        ({"confidence": 95}, "confidence: 95 is not between 0 and 1; 95 % is 0.95"),
        ({"confidence": 0}, "confidence: 0 is not between"),
        ({"side": "middle"}, "side: 'middle' is none of server, client"),
        ({"side": ["server"]}, "side: "),
        ({"design": "causal"}, "design: 'causal' is none of controlled"),
        ({"query_sha256": "AB" * 32}, "query_sha256: expected a SHA-256"),
        ({"data_sha256": "ab" * 31}, "data_sha256: expected a SHA-256"),
        ({"data_sha256": None}, "data_sha256: expected a SHA-256"),
        ({"caveats": "one"}, "caveats: expected a tuple"),
        ({"caveats": ("x",) * 101}, "caveats: expected a tuple of at most 100"),
        ({"caveats": ("",)}, "caveats: it is missing"),
        ({"caveats": None}, "caveats: expected a tuple"),
    ],
)
def test_evidence_that_contradicts_itself_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(InvalidInput) as refused:
        figure(**changed)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"verdict": "Advance"}, "verdict: 'Advance' is not one word in lower case"),
        ({"verdict": "roll back"}, "verdict: "),
        ({"verdict": None}, "verdict: "),
        ({"decided_by": ""}, "decided_by: "),
        ({"reason": " "}, "reason: "),
        ({"change": "x\0"}, "change: "),
        ({"decided_at_utc_seconds": math.nan}, "decided_at_utc_seconds: "),
        ({"evidence": ("x",)}, "evidence: expected a SHA-256"),
        ({"evidence": ("ab" * 32,) * 2}, "evidence: an id is named twice"),
        ({"evidence": ("ab" * 32,) * 1_001}, "evidence: expected a tuple of at most 1,000"),
        ({"evidence": "ab" * 32}, "evidence: expected a tuple"),
    ],
)
def test_a_decision_that_cannot_be_kept_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(InvalidInput) as refused:
        decision(**changed)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("content", ["text", bytearray(b"x"), None, b"", b"x" * (256 * 1024 + 1)])
def test_content_that_cannot_be_frozen_is_refused(content: object, ledger: Ledger):
    with pytest.raises(InvalidInput, match=r"^content: "):
        ledger.freeze("home_feed", content)


@pytest.mark.parametrize("name", ["", " x", "x\0y", "a\nb", "x" * 201, None])
def test_a_name_that_cannot_be_kept_is_refused_wherever_it_is_given(name: object, ledger: Ledger):
    for use in (lambda: ledger.freeze(name, b"x"), lambda: ledger.frozen(name), lambda: ledger.history(name)):
        with pytest.raises(InvalidInput, match=r"^name: "):
            use()
    for use in (lambda: ledger.evidence(name), lambda: ledger.decisions(name)):
        with pytest.raises(InvalidInput, match=r"^change: "):
            use()


def test_only_evidence_is_recorded_as_evidence(ledger: Ledger):
    with pytest.raises(InvalidInput, match="expected Evidence, got Decision"):
        ledger.record_evidence(decision())
    with pytest.raises(InvalidInput, match="expected Decision, got dict"):
        ledger.record_decision({})


def test_a_frozen_change_has_the_hash_of_its_content():
    assert frozen(b"\xff\0").content == b"\xff\0"
    for changed in (
        {"sha256": "ab" * 32},
        {"version": 0},
        {"follows": "x"},
        {"frozen_at_utc_seconds": math.inf},
    ):
        with pytest.raises(InvalidInput):
            frozen(**changed)


def test_equal_evidence_has_one_id_however_it_was_computed():
    class Arm(StrEnum):
        TREATMENT = "treatment"

    one = figure(value=3.0, low=-0.0, high=4, n=7, caveats=("few", "short"))
    other = figure(
        value=np.float64(3),
        low=np.int64(0),
        high=np.float32(4.0),
        n=np.int64(7),
        caveats=["few", np.str_("short")],
        metric=np.str_("feed_p99"),
        side=np.str_("client"),
        query_sha256=np.str_("ab" * 32),
        arm=Arm.TREATMENT,
    )
    assert identified(one) == identified(other)
    assert type(other.value) is float
    assert type(other.n) is int
    assert {type(getattr(other, name)) for name in ("metric", "side", "query_sha256", "arm")} == {str}
    assert identified(decision(verdict=np.str_("hold"))) == identified(decision(verdict="hold"))


def test_the_largest_and_smallest_numbers_come_back_as_they_were(ledger: Ledger):
    evidence = figure(value=1.7976931348623157e308, low=5e-324, high=1.7976931348623157e308, n=2**63 - 1)
    id = ledger.record_evidence(evidence)
    assert ledger.evidence_by_ids([id]) == {id: evidence}


@pytest.mark.parametrize("body", [figure(), decision("ab" * 32), frozen(b"\0\xff" * 100)])
def test_a_payload_is_plain_json_that_a_stranger_can_check(body: Evidence | Decision | FrozenChange):
    id, encoded = identified(body)
    head, payload = sealed(encoded, Head(7, "ab" * 32), 1.5)
    entry = open_payload(payload)
    assert (entry.number, entry.previous, entry.id, entry.hash, entry.body) == (
        8,
        "ab" * 32,
        id,
        head.hash,
        body,
    )
    read = json.loads(payload)
    assert (read["schema"], read["number"], read["previous"]) == ("fairlead.ledger/1", 8, "ab" * 32)
    assert hashlib.sha256(payload).hexdigest() == head.hash


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff",
        b"null",
        "text",
        None,
        7,
        sealed(b"{}", Head(0, "0" * 64), 0.0)[1],
        sealed(b'{"kind":"evidence"}', Head(0, "0" * 64), 0.0)[1],
        sealed(msgspec.json.encode(figure()).replace(b"0.171", b"9.171"), Head(0, "0" * 64), 0.0)[1],
        sealed(identified(figure())[1], Head(0, "0" * 64), 0.0)[1].replace(b"ledger/1", b"ledger/2"),
        sealed(identified(figure())[1], Head(0, "0" * 64), 0.0)[1] + b" x",
    ],
)
def test_bytes_that_no_ledger_wrote_are_refused(payload: object):
    with pytest.raises(BrokenDocument):
        open_payload(payload)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", ":", "1:" + "ab" * 31, "01:" + "ab" * 32, "-1:" + "ab" * 32, "0:" + "ab" * 32),
        *("1:" + "0" * 64, "1:" + "AB" * 32, "१:" + "ab" * 32, "9" * 19 + ":" + "ab" * 32),
    ],
)
def test_what_is_no_head_is_refused(text: str):
    with pytest.raises(InvalidInput, match=r"^head: "):
        Head.parse(text)


def test_what_is_refused_in_text_is_what_unicode_calls_control():
    refused = {
        chr(code) for code in range(0x11_0000) if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp")
    }
    assert {chr(code) for code in range(0x11_0000) if bounds._IN_NAME.search(chr(code))} == refused
    assert refused - {chr(code) for code in range(0x11_0000) if bounds._IN_PROSE.search(chr(code))} == {
        "\n",
        "\t",
    }
