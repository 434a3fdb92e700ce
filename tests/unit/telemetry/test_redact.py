"""Personal data leaves as tokens that join and cannot be guessed; secrets do not leave at all."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
import time
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import (
    PATTERNS,
    BufferedSink,
    Event,
    EventRegistry,
    EventSchema,
    Exposure,
    Internal,
    LoadSample,
    Pattern,
    Personal,
    Redactor,
    RequestFinished,
    TokenVault,
    encode_event,
    load_key,
)

KEY = b"k" * 32
TOKEN = re.compile(r"\[(\w+):[a-z2-7]{16}\]")


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(KEY)


# Card, account and social security numbers below are the issuers' published test numbers.
@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("ann@example.com", "email"),
        ("ann.o'hara+x@mail.example.co.uk", "email"),
        ("jürgen@example.org", "email"),
        ("4111 1111 1111 1111", "card"),
        ("4111-1111-1111-1111", "card"),
        ("5555555555554444", "card"),
        ("378282246310005", "card"),
        ("GB82 WEST 1234 5698 7654 32", "iban"),
        ("DE89370400440532013000", "iban"),
        ("+49 30 901820", "phone"),
        ("+1 (202) 555-0143", "phone"),
        ("078-05-1120", "us_ssn"),
        ("192.0.2.17", "ip"),
        ("2001:db8::ff00:42:8329", "ip"),
    ],
)
def test_a_value_of_a_typed_pattern_becomes_a_token_and_its_surroundings_stay(
    redactor: Redactor, text: str, label: str
) -> None:
    found = redactor.text(f"seen ({text}), twice")
    assert label in TOKEN.findall(found)
    assert found.startswith("seen (")
    assert found.endswith("), twice")
    assert not any(part in found for part in re.split(r"[@ .:'+()-]+", text) if len(part) > 4)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # its check digit is wrong
        "1764216000123",  # milliseconds since 1970, and Luhn lets one in ten of them pass
        "1764216000117",
        "0000000000000000",
        "GB82 WEST 1234 5698 7654 33",
        "666-05-1120",
        "078-00-1120",
        "127.0.0.1 and ::1",
        "999.1.2.3",
        "version 1.2.3.4.5",
        "12:34:56",
        "2026-11-27T04:07:41.123456Z",
        "550e8400-e29b-41d4-a716-446655440000",
        "user@localhost",
        "a + 12 b",
        "GET /feed/{user} 200 in 12.3 ms",
        "",
    ],
)
def test_what_only_looks_like_one_stays(redactor: Redactor, text: str) -> None:
    assert redactor.text(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer s3cr3t-s3cr3t", "Authorization: Bearer [secret]"),
        ("redis://cache:hunter22@cache.internal/0", "redis://[secret]@cache.internal/0"),
        ("t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2ln;", "t=[secret];"),
    ],
)
def test_a_secret_is_gone_and_no_token_leads_back_to_it(tmp_path: Path, text: str, left: str) -> None:
    vault = TokenVault(tmp_path / "vault")
    assert Redactor(KEY, vault=vault).text(text) == left
    vault.close()
    assert list(sqlite3.connect(tmp_path / "vault").execute("SELECT * FROM tokens")) == []


def test_a_token_is_the_same_for_the_same_value_and_another_under_another_key(redactor: Redactor) -> None:
    assert redactor.token("u1") == redactor.token("u1")
    assert redactor.token("u1") != redactor.token("u2")
    assert redactor.token("u1") != Redactor(b"j" * 32).token("u1")
    with pytest.raises(InvalidInput, match="16 bytes"):
        Redactor(b"short")


def test_one_person_has_one_token_digest_whatever_kind_of_event_names_it(redactor: Redactor) -> None:
    class Bought(Event, frozen=True, kw_only=True):
        schema: ClassVar[EventSchema] = EventSchema(role="outcome")
        buyer: Personal[str]
        birthday: Personal[str | None] = None
        places: Personal[tuple[str, ...]] = ()
        note: Internal[str] = ""

    EventRegistry([Bought])
    shown = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u1", reason="SPLIT")
    bought = redactor.event(
        Bought(at_utc_seconds=1.0, buyer="u1", places=("here",), note="sent to ann@example.com")
    )
    assert isinstance(bought, Bought)
    redacted = redactor.event(shown)
    assert isinstance(redacted, Exposure)
    assert redacted.targeting_key == bought.buyer == redactor.token("u1")
    assert (bought.birthday, bought.places) == (None, ())
    assert bought.note == f"sent to {redactor.token('ann@example.com', 'email')}"
    assert redacted.flag == "f"


def test_strings_deep_inside_an_unclassified_field_are_searched_too(redactor: Redactor) -> None:
    event = RequestFinished(
        at_utc_seconds=1.0, service="s", route="/", status=200, latency_seconds=0.1,
        attributes={"from": "192.0.2.17", "region": "eu"},
    )  # fmt: skip
    redacted = redactor.event(event)
    assert isinstance(redacted, RequestFinished)
    assert redacted.attributes == {"from": redactor.token("192.0.2.17", "ip"), "region": "eu"}
    assert event.attributes["from"] == "192.0.2.17"


def test_an_event_with_nothing_personal_in_it_is_passed_on_as_it_is(redactor: Redactor) -> None:
    event = RequestFinished(at_utc_seconds=1.0, service="s", route="/", status=200, latency_seconds=0.1)
    assert redactor.event(event) is event


def test_nested_values_are_searched_to_a_bound(redactor: Redactor) -> None:
    nested: object = "ann@example.com"
    for _ in range(50):
        nested = [nested]
    assert "ann@" not in repr(redactor.value(nested))
    assert "too deep" in repr(redactor.value(nested))
    found = redactor.value({"ann@example.com": (1, None, ["bob@example.com"])})
    assert "@" not in repr(found)
    kept = {"a": [1, 2.5, None, True, "plain"]}
    assert redactor.value(kept) is kept


def test_what_is_too_long_to_search_is_not_shown(redactor: Redactor) -> None:
    found = redactor.text("x" * 65_536 + "ann@example.com")
    assert "ann@" not in found
    assert found.endswith("… [15 more characters]")


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        "1 ",
        "a@",
        "a.",
        "eyJ",
        "eyJaaaaaaaa.",
        ":",
        "a:",
        "+1",
        "AB12",
        "1.1.",
        "://a",
        "Bearer ",
        "-",
    ],
)
@pytest.mark.timeout(20)
def test_hostile_text_does_not_hang_the_search(redactor: Redactor, unit: str) -> None:
    # Takes milliseconds; where a pattern backtracks quadratically, minutes.
    assert redactor.text(unit * (65_536 // len(unit)))


def test_a_pattern_of_ones_own_is_looked_for_too() -> None:
    badge = Pattern(name="badge", regex=re.compile(r"\bB-\d{4}\b"))
    assert TOKEN.findall(Redactor(KEY, patterns=(*PATTERNS, badge)).text("badge B-1234")) == ["badge"]


def test_a_sink_with_a_redactor_writes_no_personal_value() -> None:
    lines: list[bytes] = []

    class Writer:
        def write(self, new: list[bytes]) -> int:
            lines.extend(new)
            return len(new)

        def close(self) -> None:
            pass

    with BufferedSink(Writer(), redactor=Redactor(KEY)) as sink:  # type: ignore[arg-type]
        sink.emit(
            LoadSample(
                at_utc_seconds=1.0, phase="p", arm="a", cycle=0, key="ann@example.com", intended_seconds=0.0,
                send_lag_seconds=0.0, latency_seconds=0.0, status=200, degraded=False, staleness_seconds=None,
                age_seconds=None, ending="ok",
            )
        )  # fmt: skip
    assert sink.stats.written == 1
    assert b"ann@" not in lines[0]
    assert b'"key":"[personal:' in lines[0]


class TestTheKey:
    def test_is_made_once_private_and_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "secrets" / "redaction.key"
        key = load_key(path)
        assert len(key) == 32
        assert load_key(path) == key
        assert path.stat().st_mode & 0o777 == 0o600
        assert [file.name for file in path.parent.iterdir()] == ["redaction.key"]

    def test_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(b"")
        with pytest.raises(InvalidInput, match="a key has 32 bytes, this has 0"):
            load_key(tmp_path / "key")

    def test_is_one_for_processes_that_start_together(self, tmp_path: Path) -> None:
        with multiprocessing.get_context("fork").Pool(4) as pool:
            keys = pool.map(load_key, [tmp_path / "key"] * 16, chunksize=1)
        assert len(set(keys)) == 1


class TestTheVault:
    def test_turns_a_token_back_until_its_value_is_forgotten(self, tmp_path: Path) -> None:
        vault = TokenVault(tmp_path / "vault")
        redactor = Redactor(KEY, vault=vault)
        token = redactor.token("ann@example.com", "email")
        other = redactor.token("u2")
        assert vault.reveal(token) == "ann@example.com"
        assert vault.forget("ann@example.com") == 1
        assert vault.reveal(token) is None
        assert vault.reveal(other) == "u2"
        assert redactor.token("ann@example.com", "email") == token  # seen again, kept again
        assert vault.reveal(token) == "ann@example.com"
        vault.close()
        assert b"ann@" in (tmp_path / "vault").read_bytes()

    def test_overwrites_what_it_forgets(self, tmp_path: Path) -> None:
        vault = TokenVault(tmp_path / "vault")
        Redactor(KEY, vault=vault).token("ann@example.com")
        vault.close()
        vault.forget("ann@example.com")
        vault.close()
        assert not any(b"ann@" in file.read_bytes() for file in tmp_path.iterdir())

    def test_forgets_what_was_last_seen_long_ago(self, tmp_path: Path) -> None:
        vault = TokenVault(tmp_path / "vault")
        token = Redactor(KEY, vault=vault).token("u1")
        assert vault.forget_before(time.time() - 60) == 0
        assert vault.forget_before(time.time() + 60) == 1
        assert vault.reveal(token) is None
        vault.close()

    def test_is_private_and_survives_its_process(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "vault"
        first = TokenVault(path)
        token = Redactor(KEY, vault=first).token("u1")
        first.close()
        assert path.stat().st_mode & 0o777 == 0o600
        again = TokenVault(path)
        assert again.reveal(token) == "u1"
        again.close()

    def test_that_cannot_be_written_costs_the_way_back_and_nothing_else(self, tmp_path: Path) -> None:
        vault = TokenVault(tmp_path / "vault")
        redactor = Redactor(KEY, vault=vault)
        blocker = sqlite3.connect(tmp_path / "vault", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        token = redactor.token("u1")
        blocker.execute("ROLLBACK")
        blocker.close()
        assert token == Redactor(KEY).token("u1")
        assert vault.lost == 1
        assert isinstance(vault.failure, sqlite3.OperationalError)
        redactor.token("u1")  # the next time is tried again
        assert vault.reveal(token) == "u1"
        vault.close()

    def test_is_refused_when_it_is_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "vault").write_bytes(b"not a database, and long enough to say so" * 100)
        with pytest.raises(BrokenDocument, match="not a vault of tokens"):
            TokenVault(tmp_path / "vault")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("４１１１ １１１１ １１１１ １１１１", "1"),
        ("4111\u00a01111\u00a01111\u00a01111", "4111"),
        ("4111\u20131111\u20131111\u20131111", "4111"),
        ("4111\u200b1111\u200b1111\u200b1111", "4111"),
        ("4111  1111  1111  1111", "4111"),
        ("card_4111111111111111", "4111"),
        ("ann@ex\u00e4mple.de", "ann"),
        ("ann\uff20example.com", "ann"),
        ("postgres://u:p@ss@host/db", "ss@"),
        ("BEARER abcdefghijkl", "abcdefgh"),
        ("bearer  abcdefghijkl", "abcdefgh"),
    ],
)
def test_what_is_written_unusually_is_found_too(text: str, shown: str) -> None:
    redacted = Redactor(b"k" * 32).text(f"caf\u00e9 {text}")
    assert redacted.startswith("caf\u00e9 ")
    assert text not in redacted
    assert shown not in redacted


def test_typesetting_around_nothing_personal_is_left_as_it_was() -> None:
    text = "caf\u00e9 \u2013 \uff11\uff12 \u00a0 ok"
    assert Redactor(b"k" * 32).text(text) == text


class Buyer(msgspec.Struct, frozen=True):
    who: Personal[str]
    note: str = ""


class Bought(Event, frozen=True, kw_only=True):
    buyer: Internal[Buyer]
    others: Internal[tuple[Buyer, ...]] = ()
    tags: Internal[frozenset[str]] = frozenset()


def test_personal_fields_of_a_struct_inside_an_event_are_replaced() -> None:
    event = Bought(
        at_utc_seconds=1.0,
        buyer=Buyer("ann", "ann@example.com"),
        others=(Buyer("bob"),),
        tags=frozenset({"eve@example.com"}),
    )
    registry = EventRegistry([Bought])
    line = encode_event(Redactor(b"k" * 32).event(event))
    assert not [name for name in (b"ann", b"bob", b"eve@") if name in line]
    assert isinstance(registry.decode(line), Bought)
