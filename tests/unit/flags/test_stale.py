"""A flag is called stale by what is written and met, never by a guess."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from fairlead.flags import FlagDocument, FlagSet
from fairlead.flags.stale import SeenFlags, stale_flags
from fairlead.telemetry import Event, Exposure

DAY = 86_400.0
NOW = datetime(2026, 6, 30, tzinfo=UTC).timestamp()


def bucket(slots: list[list[object]]) -> dict[str, object]:
    return {"bucket": {"by": "targetingKey", "salt": "s", "algo": "xxh32/10000@1", "slots": slots}}


HALF = bucket([["on", 0, 5000]])
ALL = bucket([["on", 0, 10_000]])


def document(
    targeting: object = None, metadata: dict[str, object] | None = None, state: str = "ENABLED"
) -> FlagDocument:
    flag = {
        "state": state,
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": targeting,
        "metadata": metadata or {},
    }
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode()).document


def why(flags: FlagDocument, seen: SeenFlags | None = None) -> list[str]:
    return [found.why for found in stale_flags(flags, now=NOW, seen=seen)]


def exposures(days: float, *variants: str, flag: str = "f") -> SeenFlags:
    events: list[Event] = [
        Exposure(at_utc_seconds=NOW - at, flag=flag, variant=variant, targeting_key="u", reason="SPLIT")
        for variant in variants
        for at in (days * DAY, 0.0)
    ]
    return SeenFlags.of(events)


def test_a_flag_past_its_date_is_expired_and_one_on_its_day_is_not() -> None:
    (found,) = stale_flags(document(HALF, {"expires": "2026-06-01"}), now=NOW)
    assert (found.why, found.said) == ("expired", "expired on 2026-06-01, 29 days ago")
    assert why(document(HALF, {"expires": "2026-06-30"})) == []


def test_a_date_that_is_none_is_said() -> None:
    assert why(document(HALF, {"expires": "soon", "created": 2026})) == ["no_date", "no_date"]


def test_one_variant_for_everybody_is_stale_after_a_while() -> None:
    assert why(document(None, {"created": "2026-01-01"})) == ["one_variant"]
    assert why(document(None, {"created": "2026-06-01"})) == []
    assert why(document(HALF, {"created": "2026-01-01"})) == []


def test_what_is_left_of_a_rollout_is_stale_without_a_date_and_a_setting_is_not() -> None:
    (found,) = stale_flags(document(ALL), now=NOW)
    assert found.said == "serves 'on' to everybody; since when is not written (created)"
    assert why(document({"if": [{"var": "x"}, "off", "off"]})) == ["one_variant"]
    assert why(document(None)) == []
    assert why(document({"if": [{"var": "x"}, "on"]})) == []
    assert why(document({"var": "x"})) == []


def test_a_flag_that_is_meant_to_stay_is_left_alone_until_its_date() -> None:
    assert (
        why(document(ALL, {"permanent": True, "created": "2020-01-01"}), exposures(100, "on", flag="g")) == []
    )
    assert why(document(ALL, {"permanent": True, "expires": "2020-01-01"})) == ["expired"]


def test_a_flag_that_is_switched_off_is_stale_after_a_while() -> None:
    assert why(document(HALF, {"created": "2026-01-01"}, "DISABLED")) == ["switched_off"]
    assert why(document(HALF, {"created": "2026-06-01"}, "DISABLED"), exposures(100, "on", flag="g")) == []


def test_what_was_exposed_is_compared_with_what_may_be_served() -> None:
    assert why(document(HALF), exposures(10, "on", flag="g")) == ["never_exposed"]
    assert why(document(HALF), exposures(100, "on")) == ["one_exposed"]
    assert why(document(HALF), exposures(10, "on")) == []
    assert why(document(HALF), exposures(100, "on", "off")) == []
    # No events at all say nothing about a flag.
    assert why(document(HALF), SeenFlags.of([])) == []
