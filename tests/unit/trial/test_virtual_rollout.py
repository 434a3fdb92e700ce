"""A plan of a day over events that were recorded: by the same controller, in a moment."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fairlead.clock import ManualClock
from fairlead.errors import NoSpace, RunInvalid
from fairlead.flags import FlagSet
from fairlead.metrics import Metric
from fairlead.rollout import (
    Controller,
    DecisionLog,
    FlagTraffic,
    Guardrail,
    MemoryJournal,
    RolloutPlan,
    Stage,
    Tally,
)
from fairlead.rollout.entry import Asked
from fairlead.statistics import sequential_difference_bound, sequential_sample_ratio
from fairlead.store import Database
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RequestFinished
from fairlead.trial import LetOut, Settings, virtual_rollout
from fairlead.trial.promise import LEDGER
from fairlead.trial.rollout_record import RolloutRecord, rollout_record
from fairlead.trial.rollout_words import decision_rows, rollout_in_words
from fairlead.trial.virtual_rollout import RecordedFacts, _write_flag, play_virtual, recorded_events
from fairlead.trial.walk import Recorded
from tests.unit.trial.conftest import ARMS, recorded, steady

# Imported before the first test's two seconds begin: it is numpy and scipy that take most of one.
_STATISTICS = (sequential_difference_bound, sequential_sample_ratio)
HOUR = 3_600.0
ERRORS = Metric(
    name="page_errors", title="errors", role="guardrail", kind="proportion", event="request_finished",
    field="status >= 500", unit="ratio", unit_of_analysis="user", side="server", window="stage",
    segment="users drawn for an arm", better="lower", design="controlled",
)  # fmt: skip
PLAN = RolloutPlan(
    name="feed",
    flag="feed_path",
    stages=(
        Stage(audience="internal", bake=HOUR),
        Stage(share=0.5, bake=4 * HOUR),
        Stage(share=1.0, bake=HOUR),
    ),
    guardrails=(
        Guardrail(metric=ERRORS, worse_by=0.05, relative=False),
        Guardrail(metric=ERRORS, above=0.5, for_seconds=600.0),
    ),
    look_every=1_800.0,
    stale_after=HOUR,
    silence=2 * HOUR,
    expected_rate=0.1,
)


def event(status: int = 200) -> tuple[str, Mapping[str, object]]:
    return "request_finished", {
        "at_utc_seconds": 1.0,
        "route": "/feed",
        "status": status,
        "targeting_key": "x",
    }


def played(treatment: list[tuple[str, Mapping[str, object]]], folder: Path) -> RolloutRecord:
    path = folder / "flags.json"
    _write_flag(path, PLAN)
    clock = ManualClock()
    facts = RecordedFacts(
        PLAN,
        {"control": [event()], "treatment": treatment},
        FlagSet.from_file(path),
        clock,
        per_second=0.1,
        internal=0.05,
        rng=random.Random(1),
    )
    journal = MemoryJournal("feed on virtual time", PLAN, by="test", clock=clock)
    controller = Controller(
        PLAN, journal=journal, traffic=FlagTraffic(path, PLAN.flag), facts=facts, clock=clock
    )

    async def lead() -> None:
        await controller.begin()
        while not controller.state.ended:
            clock.advance(PLAN.look_every)
            await controller.step()

    asyncio.run(lead())
    return rollout_record(journal.rollout, PLAN, journal.read(), virtual=True)


def test_a_good_change_goes_through_every_stage_and_each_decision_has_its_figures(tmp_path: Path):
    record = played([event()], tmp_path)
    assert record.outcome == "completed"
    assert [(each.stage, each.verdict) for each in record.decisions] == [
        ("internal", "advance"),
        ("50 %", "advance"),
        ("100 %", "advance"),
    ]
    half = record.decisions[1]
    assert half.guarded_seconds >= 4 * HOUR
    # A tenth of a user a second, half of them each way; twenty times what chance would do.
    assert 600 < half.units["treatment"] < 900
    assert 600 < half.units["control"] < 900
    found = {each.guardrail: each.verdict for each in half.evaluations}
    assert found == {"page_errors worse_by 5 pp": "PASS", "page_errors above 0.5 for 600 s": "PASS"}
    rows = decision_rows(record)
    assert rows[0][:3] == ("1.5h", "internal", "advance (pass)")
    assert rows[1][:4] == ("6h", "50 %", "advance (pass)", "page_errors worse_by 5 pp")
    assert rows[2][:3] == ("", "", "")
    assert (
        rollout_in_words(record)
        == "completed after 7.5h of virtual time, in 3 stages; every guardrail passed in each"
    )
    weaker = msgspec.structs.replace(half, ground="no_harm_seen")
    record = msgspec.structs.replace(record, decisions=(record.decisions[0], weaker, record.decisions[2]))
    assert rollout_in_words(record).endswith(
        "in 3 stages; 50 % on the weaker ground that no guardrail had shown harm"
    )
    record = msgspec.structs.replace(record, drawn_from={"control": 1_450, "treatment": 7})
    assert rollout_in_words(record).endswith(
        "shown harm; drawn from recorded requests: 1,450 of control and 7 of treatment"
    )


def test_a_bad_change_is_taken_back_in_its_first_comparing_stage(tmp_path: Path):
    record = played([*[event()] * 4, event(500)], tmp_path)
    assert record.outcome == "rolled_back"
    assert [(each.stage, each.verdict) for each in record.decisions] == [
        ("internal", "advance"),
        ("50 %", "rollback"),
    ]
    (failed,) = [each for each in record.decisions[1].evaluations if each.verdict == "FAIL"]
    assert failed.guardrail == "page_errors worse_by 5 pp"
    assert failed.treatment == pytest.approx(0.2, abs=0.06)
    assert FlagSet.from_file(tmp_path / "flags.json").data.count(b'"fairlead_latched": true') == 1


async def test_who_comes_is_served_as_the_flag_says_and_is_never_the_same(tmp_path: Path):
    path = tmp_path / "flags.json"
    _write_flag(path, PLAN)
    await FlagTraffic(path, PLAN.flag).set(
        replace(await FlagTraffic(path, PLAN.flag).read(), share=0.3, rollout="x")
    )
    clock = ManualClock()
    arms = {"control": [event()], "treatment": [event(500)]}
    facts = RecordedFacts(
        PLAN, arms, FlagSet.from_file(path), clock, per_second=1.0, internal=0.0, rng=random.Random(1)
    )
    seen: list[Mapping[str, object]] = []

    class Kept(Tally):
        def see(self, kind: str, event: Mapping[str, object]) -> None:
            seen.append(event)

    clock.advance(1_000.0)
    await facts.gather(Kept(PLAN))
    await facts.gather(Kept(PLAN))  # no time has passed
    assert len(seen) == len({each["targeting_key"] for each in seen}) == 1_000
    variants = Counter(each["variant"] for each in seen)
    assert 250 < variants["treatment"] < 350
    assert {each["status"] for each in seen if each["variant"] == "treatment"} == {500}
    stamps = [each["at_utc_seconds"] for each in seen]
    assert stamps == sorted(stamps)
    assert clock.utc() - 1_000.0 < stamps[0] < stamps[-1] < clock.utc()


def test_what_was_recorded_belongs_to_the_arm_that_had_the_load_and_to_the_phase_in_which_it_arrived(
    tmp_path: Path,
):
    run: Recorded = recorded([(ARMS[0], 0, steady()), (ARMS[1], 0, steady())])
    run.turns = [replace(turn, began_at=1_000.0 + 10 * index) for index, turn in enumerate(run.turns)]

    def finished(at: float, latency: float = 0.0) -> RequestFinished:
        return RequestFinished(
            at_utc_seconds=at,
            service="s",
            route="/feed",
            status=200,
            latency_seconds=latency,
            request_id=str(at),
        )

    folder = tmp_path / "events" / "service"
    with BufferedSink(JsonLinesSegments(folder)) as sink:
        sink.emit(finished(1_000.5))  # lead-in
        sink.emit(finished(1_001.0))  # calm begins
        sink.emit(finished(1_003.1, latency=0.2))  # arrived while it was calm
        sink.emit(finished(1_003.1))  # storm
        sink.emit(finished(1_012.0))  # the other arm's
        sink.emit(finished(1_009.0))  # nobody's
    found = recorded_events(run, ("calm",), {"request_finished"}, tmp_path)
    ids = {arm: [fields["request_id"] for _, fields in events] for arm, events in found.items()}
    assert ids == {"control": ["1001.0", "1003.1"], "treatment": ["1012.0"]}
    assert recorded_events(run, ("calm",), {"exposure"}, tmp_path) == {}


async def test_decision_that_was_asked_for_stands_on_no_look(tmp_path: Path):
    path = tmp_path / "flags.json"
    _write_flag(path, PLAN)
    clock = ManualClock()
    arms = {"control": [event()], "treatment": [event()]}
    facts = RecordedFacts(
        PLAN, arms, FlagSet.from_file(path), clock, per_second=0.1, internal=0.05, rng=random.Random(1)
    )
    journal = MemoryJournal("feed on virtual time", PLAN, by="test", clock=clock)
    controller = Controller(
        PLAN, journal=journal, traffic=FlagTraffic(path, PLAN.flag), facts=facts, clock=clock
    )
    await controller.begin()
    while controller.state.stage == 0 or not controller.state.evaluations:
        clock.advance(PLAN.look_every)
        await controller.step()
    journal.ask(Asked(what="rollback", by="ann", why="lunch"))
    await controller.step()
    first, last = rollout_record(journal.rollout, PLAN, journal.read(), virtual=True).decisions
    assert first.evaluations
    assert (last.verdict, last.reason, last.evaluations, dict(last.units)) == (
        "rollback", "ann asked for it: lunch", (), {},
    )  # fmt: skip


async def test_plan_whose_decisions_cannot_be_written_ends_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run: Recorded = recorded([(ARMS[0], 0, steady()), (ARMS[1], 0, steady())])
    run.turns = [replace(turn, began_at=1_000.0 + 10 * index) for index, turn in enumerate(run.turns)]
    with BufferedSink(JsonLinesSegments(tmp_path / "events" / "service")) as sink:
        for at in (1_001.5, 1_011.5):
            sink.emit(
                RequestFinished(
                    at_utc_seconds=at,
                    service="s",
                    route="/feed",
                    status=200,
                    latency_seconds=0.1,
                    request_id="r",
                )
            )
    with Database(tmp_path / LEDGER) as database:
        database.migrate()

    def full(*given: object) -> None:
        raise NoSpace("ledger.db: the disk is full")

    monkeypatch.setattr(DecisionLog, "record", full)
    monkeypatch.setattr(virtual_rollout, "_PLAYED_WITHIN", 0.7)
    monkeypatch.setattr(virtual_rollout, "rollout_plan", lambda change: PLAN)
    monkeypatch.setattr(virtual_rollout, "parse_change", lambda content, name: None)
    let_out = LetOut(
        shadow_seconds=1.0, shadow_share=0.5, canary_seconds=1.0, canary_share=0.5, regression="none",
        everyday=("calm",), users_per_second=0.01, internal=0.05,
    )  # fmt: skip
    with pytest.raises(RunInvalid, match=r"cannot be written.*ledger\.db: the disk is full"):
        await play_virtual(run, Settings(), let_out, b"", tmp_path)
