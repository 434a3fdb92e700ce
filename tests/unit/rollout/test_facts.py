"""Facts from a folder and from readings: what one look could not get, the next one gets."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput
from fairlead.metrics import Reading
from fairlead.rollout import EventFacts, Guardrail, ReadingFacts
from fairlead.rollout import facts as facts_module
from fairlead.rollout.tally import Tally
from fairlead.telemetry import EventTail, JsonLinesSegments, encode_event
from fairlead.telemetry.event import Exposure, RequestFinished
from tests.unit.rollout.conftest import ERRORS, plan

RAIL = Guardrail(metric=ERRORS, above=0.1)


def request(unit: str, variant: str = "treatment") -> RequestFinished:
    return RequestFinished(
        at_utc_seconds=10.0, service="feed", route="/", status=200, latency_seconds=0.1, targeting_key=unit,
        variant=variant,
    )  # fmt: skip


def exposure(unit: str) -> Exposure:
    return Exposure(at_utc_seconds=9.0, flag="feed", variant="treatment", targeting_key=unit, reason="SPLIT")


def tally() -> Tally:
    made = Tally(plan(guardrails=(RAIL,)))
    made.begin(0.0)
    return made


async def test_exposures_are_shown_before_the_events_that_need_them(tmp_path: Path):
    JsonLinesSegments(tmp_path).write([encode_event(each) for each in (request("a", ""), exposure("a"))])
    counts = tally()
    await EventFacts(EventTail(tmp_path)).gather(counts)
    assert counts.units()["treatment"] == 1


async def test_a_long_past_is_shown_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facts_module, "_AT_ONCE", 10)
    JsonLinesSegments(tmp_path).write([encode_event(request(f"u{n}")) for n in range(95)])
    counts = tally()
    facts = EventFacts(EventTail(tmp_path))
    await facts.gather(counts)
    assert counts.units()["treatment"] == 95
    await facts.gather(counts)
    assert counts.events["treatment"] == 95


async def test_what_was_read_before_a_file_that_cannot_be_is_not_lost(tmp_path: Path):
    JsonLinesSegments(tmp_path, prefix="a").write([encode_event(request("a"))])
    (tmp_path / "b.jsonl").mkdir()
    counts = tally()
    with pytest.raises(InvalidInput, match=r"b\.jsonl"):
        await EventFacts(EventTail(tmp_path)).gather(counts)
    assert counts.units()["treatment"] == 1


async def test_a_gathering_that_was_cancelled_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    JsonLinesSegments(tmp_path).write([encode_event(request("a"))])
    tail, may, counts = EventTail(tmp_path), threading.Event(), tally()
    read = tail.read

    def slow() -> object:
        may.wait(5)
        yield from read()

    monkeypatch.setattr(tail, "read", slow)
    facts = EventFacts(tail)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await facts.gather(counts)
    may.set()
    await facts.gather(counts)
    assert counts.units()["treatment"] == 1


async def test_a_reading_that_hangs_takes_one_thread_and_no_other(tmp_path: Path):
    may, asked = threading.Event(), []

    def hanging() -> Reading:
        asked.append(1)
        may.wait(5)
        return Reading(value=0.5)

    facts = ReadingFacts({RAIL.name: hanging})
    for _ in range(40):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await facts.read(RAIL)
    assert len(asked) == 1
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1.0) == "free"
    may.set()
    found = await facts.read(RAIL)
    assert found is not None
    assert found.value == 0.5
    assert await facts.read(RAIL) == found
    assert len(asked) == 2


async def test_a_reading_that_raises_raises_to_who_asked_and_is_asked_again():
    answers = iter([OSError("reset"), Reading(value=0.1)])

    def ask() -> Reading:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    facts = EventFacts(EventTail("nowhere"), readings={RAIL.name: ask})
    with pytest.raises(OSError, match="reset"):
        await facts.read(RAIL)
    assert await facts.read(RAIL) == Reading(value=0.1)


async def test_a_guardrail_without_a_reading_has_none():
    assert await ReadingFacts({}).read(RAIL) is None
