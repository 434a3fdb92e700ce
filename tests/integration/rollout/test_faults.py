"""What a rollout stands on breaks while treatment is served: it is taken away in time, and told when that can be."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import StaleEpoch
from fairlead.ledger import Ledger
from fairlead.metrics import Reading
from fairlead.metrics.prometheus import PrometheusServer as PrometheusSource
from fairlead.rollout import DecisionLog, EventFacts, Guardrail, Journal, ReadingFacts, RolloutPlan, Stage
from fairlead.rollout.controller import Controller
from fairlead.rollout.entry import Asked
from fairlead.rollout.flag_traffic import FlagTraffic
from fairlead.rollout.state import RolloutState
from fairlead.rollout.tally import Tally
from fairlead.store import Database
from fairlead.telemetry import EventTail, JsonLinesSegments, encode_event
from fairlead.telemetry.event import RequestFinished
from fairlead.testing import PostgresServer
from tests.integration.rollout.leading import FLAGS, START, decided, lead, moves, prepare, process, served
from tests.integration.rollout.test_killed import check_agreement
from tests.unit.rollout.conftest import ERRORS, plan

ROOT = Path(__file__).resolve().parents[3]
LIMIT = Guardrail(metric=ERRORS, above=0.1, for_seconds=30.0)
RELATIVE = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)
STAGE = (Stage(share=0.5, bake=3_000.0),)


def traffic_in(folder: Path) -> FlagTraffic:
    (folder / "flags.json").write_text(json.dumps(FLAGS))
    return FlagTraffic(folder / "flags.json", "feed")


# Two at once ---------------------------------------------------------------------------------------------------------


def contend(where: str, change: str, folder: str, harm: bool, times: int) -> None:
    """Leads; pushed aside, it takes the lead back, so often."""
    for _ in range(times):
        try:
            lead(where, change, folder, harm, 0)
        except StaleEpoch:
            continue


@pytest.mark.parametrize("harm", [False, True], ids=["harmless", "harmful"])
def test_of_two_controllers_at_once_one_ends_the_rollout(
    where: str, database: Database, tmp_path: Path, harm: bool
):
    journal = prepare(database, "feed", tmp_path)
    others = [process(contend, where, "feed", str(tmp_path), harm, 3) for _ in range(3)]
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    state = journal.state()
    if not state.ended:  # each pushed another aside as its last act
        lead(where, "feed", str(tmp_path), harm, 0)
        state = journal.state()
    assert state.phase == ("rolled_back" if harm else "completed")
    entries = journal.read()
    assert [written.epoch for written in entries] == sorted(written.epoch for written in entries)
    now = served(tmp_path)
    assert state.want is not None
    assert now.serves_as(state.want)
    assert decided(database, "feed")[-1] == ("rollback" if harm else "advance")
    latched = [index for index, (_, latched) in enumerate(moves(tmp_path)) if latched]
    if latched:
        assert {share for share, _ in moves(tmp_path)[latched[0] :]} == {0.0}


# A source of figures that is gone -------------------------------------------------------------------------------------


async def led(
    controller: Controller, clock: ManualClock, seconds: float, each: Callable[[], None] = lambda: None
):
    for _ in range(round(seconds / 10)):
        if controller.state.ended:
            break
        clock.advance(10.0)
        each()
        await controller.step()
    return controller.state


class Service:
    """Requests of the last seconds, written as a service writes them."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.sink = JsonLinesSegments(folder, clock=clock)
        self.clock = clock
        self.errors = 0.0
        self._number = 0

    def write(self) -> None:
        lines = []
        for n in range(100):
            self._number += 1
            arm = "treatment" if n % 2 else "control"
            failed = arm == "treatment" and n % 10 < 10 * self.errors
            request = RequestFinished(
                at_utc_seconds=self.clock.utc() - (100 - n) / 10, service="feed", route="/", variant=arm,
                status=500 if failed else 200, latency_seconds=0.1, targeting_key=f"u{self._number}",
            )  # fmt: skip
            lines.append(encode_event(request))
        self.sink.write(lines)


def rollout(
    database: Database, folder: Path, rollout_plan: RolloutPlan, clock: ManualClock, facts: Any
) -> Controller:
    journal = Journal.start(database, rollout_plan, by="ann", clock=clock)
    return Controller(
        rollout_plan, journal=journal, traffic=traffic_in(folder), facts=facts, clock=clock,
        decisions=DecisionLog(Ledger(database), by="test"),
    )  # fmt: skip


async def test_a_folder_of_events_that_is_gone_freezes_and_is_rolled_back(database: Database, tmp_path: Path):
    clock = ManualClock(utc=START)
    service = Service(tmp_path / "events", clock)
    chosen = plan(look_every=10.0, stages=STAGE, guardrails=(RELATIVE, LIMIT), patience=600.0)
    controller = rollout(database, tmp_path, chosen, clock, EventFacts(EventTail(tmp_path / "events")))
    await controller.begin()
    state = await led(controller, clock, 200, service.write)
    assert state.phase == "baking"
    assert {each.verdict for each in state.evaluations} == {"PASS"}
    shutil.rmtree(tmp_path / "events")
    (tmp_path / "events").write_text("in its place")
    state = await led(controller, clock, 200)
    assert state.phase == "frozen"
    assert "Not a directory" in state.evaluations[0].detail
    assert served(tmp_path).share == 0.5
    state = await led(controller, clock, 1_000)
    assert state.phase == "rolled_back"
    check_agreement(database, "feed", tmp_path, state)


async def test_a_prometheus_that_is_gone_freezes_and_is_rolled_back(database: Database, tmp_path: Path):
    clock = ManualClock(utc=START)
    chosen = plan(look_every=10.0, stages=STAGE, guardrails=(LIMIT,), patience=300.0)
    with PrometheusSource("http://127.0.0.1:9", timeout=0.5) as source:
        readings = {"errors": lambda: source.ratio('bad_total{arm="t"}', 'all_total{arm="t"}', 60.0)}
        controller = rollout(database, tmp_path, chosen, clock, ReadingFacts(readings))
        await controller.begin()
        state = await led(controller, clock, 150)
        assert (state.phase, state.guarded_seconds) == ("frozen", 0.0)
        state = await led(controller, clock, 600)
    assert state.phase == "rolled_back"
    check_agreement(database, "feed", tmp_path, state)


class _Hostile:
    """A source whose errors say what no journal takes as it is."""

    names_units = True

    async def gather(self, tally: Tally) -> None:
        raise OSError("events/\udcff:\n\x00 " + "x" * 9_000)

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return Reading(value=None, reason="query_error", detail="\udc80\x1b[2J\r\n" + "y" * 9_000)


async def test_whatever_an_error_or_a_person_says_is_written_down(database: Database, tmp_path: Path):
    clock = ManualClock(utc=START)
    chosen = plan(look_every=10.0, stages=STAGE, guardrails=(RELATIVE, LIMIT))
    controller = rollout(database, tmp_path, chosen, clock, _Hostile())
    await controller.begin()
    state = await led(controller, clock, 120)
    assert state.phase == "frozen"
    Journal.last(database, "feed").ask(Asked(what="rollback", by="ann", why="\x07" + "it hurts\n" * 2_000))
    state = await led(controller, clock, 10)
    assert state.phase == "rolled_back"
    check_agreement(database, "feed", tmp_path, state)


# A clock that is moved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["goes on", "starts again"])
@pytest.mark.parametrize("seconds", [-7_200.0, 7_200.0], ids=["back", "forward"])
async def test_harm_is_seen_though_the_wall_clock_was_moved(
    database: Database, tmp_path: Path, seconds: float, again: bool
):
    clock = ManualClock(utc=START)
    service = Service(tmp_path / "events", clock)
    chosen = plan(look_every=10.0, stages=STAGE, guardrails=(RELATIVE,))
    facts = EventFacts(EventTail(tmp_path / "events"))
    controller = rollout(database, tmp_path, chosen, clock, facts)
    await controller.begin()
    before = await led(controller, clock, 200, service.write)
    clock.set_utc(clock.utc() + seconds)
    if again:
        controller = Controller(
            chosen, journal=Journal.last(database, "feed", clock=clock), clock=clock,
            traffic=FlagTraffic(tmp_path / "flags.json", "feed"), facts=EventFacts(EventTail(tmp_path / "events")),
            decisions=DecisionLog(Ledger(database), by="test"),
        )  # fmt: skip
        await controller.begin()
    state = await led(controller, clock, 100, service.write)
    assert state.phase == "baking"
    assert before.guarded_seconds < state.guarded_seconds <= before.guarded_seconds + 110
    service.errors = 0.5
    state = await led(controller, clock, 200, service.write)
    assert state.phase == "rolled_back"
    assert "worse_by" in state.reason
    check_agreement(database, "feed", tmp_path, state)


# A database that hangs, or is gone ------------------------------------------------------------------------------------


class _Failing:
    """Half of treatment's units fail once it is told so; on the machine's own clock."""

    names_units = True

    def __init__(self) -> None:
        self.harm = False
        self._number = 0

    async def gather(self, tally: Tally) -> None:
        for n in range(200):
            self._number += 1
            event = {
                "at_utc_seconds": time.time(),
                "targeting_key": f"u{self._number}",
                "variant": "treatment" if n % 2 else "control",
                "status": 500 if self.harm and n % 4 == 1 else 200,
            }
            tally.see("request_finished", event)

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return None


async def until(holds: Callable[[], bool], within: float) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within, f"not within {within:g} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("fault", ["hangs", "dies"])
async def test_harm_ends_though_the_database_does_not_answer(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path, fault: str
):
    chosen = plan(look_every=0.2, settle=5.0, stages=STAGE, guardrails=(RELATIVE,))
    facts = _Failing()
    with Database(postgres_url, timeout=1.0) as database:
        database.migrate()
        journal = Journal.start(database, chosen, by="ann")
        controller = Controller(
            chosen, journal=journal, traffic=traffic_in(tmp_path), facts=facts,
            decisions=DecisionLog(Ledger(database), by="test"),
        )  # fmt: skip
        task: asyncio.Task[RolloutState] = asyncio.create_task(controller.run())
        await until(lambda: controller.state.guarded_seconds > 0.3, within=20)
        if fault == "hangs":
            postgres.pause()
        else:
            postgres.kill()
        facts.harm = True
        try:
            file = tmp_path / "flags.json"
            # Three looks' worth of a journal that is given up after five seconds each.
            await until(lambda: '"fairlead_latched": true' in file.read_text(), within=20)
            assert not task.done()
        finally:
            if fault == "hangs":
                postgres.resume()
            else:
                postgres.restart()
        state = await asyncio.wait_for(task, 60)
        assert state.phase == "rolled_back"
        assert decided(database, "feed")[-1] == "rollback"
        assert journal.state().have == state.have


# A full disk ----------------------------------------------------------------------------------------------------------

_FULL = """
import asyncio, resource, sys
from pathlib import Path
from tests.integration.rollout.leading import *
from fairlead.ledger import Ledger
from tests.integration.rollout.leading import _Facts, _Traffic

where, folder = sys.argv[1], Path(sys.argv[2])

async def main():
    clock = ManualClock(utc=START)
    with Database(where) as database:
        database.migrate()
        journal = prepare(database, "feed", folder)
        traffic = _Traffic(folder, Moments(0))
        facts = _Facts(clock, traffic, harm=False)
        controller = Controller(
            plan_of("feed"), journal=Journal.last(database, "feed", clock=clock), traffic=traffic, facts=facts,
            decisions=DecisionLog(Ledger(database), by="test"), clock=clock,
        )
        task = asyncio.create_task(controller.run())

        async def until(holds):
            for _ in range(2_000):
                if holds():
                    return
                await clock.run_for(1.0)
                await asyncio.sleep(0.003)
            raise SystemExit("it never came to that")

        await until(lambda: controller.state.stage == 1 and controller.state.guarded_seconds > 0)
        # Enough for a flag file, and less than the database has already.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, resource.RLIM_INFINITY))
        entries = len(journal.read())
        facts._harm = True
        await until(lambda: '"fairlead_latched": true' in (folder / "flags.json").read_text())
        for _ in range(20):
            await clock.run_for(1.0)
            await asyncio.sleep(0.003)
        assert not task.done()
        assert len(journal.read()) == entries, "nothing can be written"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await until(task.done)
        print((await task).phase)

asyncio.run(main())
"""


def test_harm_ends_though_the_disk_is_full_and_is_written_down_when_there_is_room(tmp_path: Path):
    where = tmp_path / "fairlead.db"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FULL, str(where), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "rolled_back\n")
    with Database(where) as database:
        state = Journal.last(database, "feed").state()
        check_agreement(database, "feed", tmp_path, state)
