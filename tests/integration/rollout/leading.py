"""A process that leads a rollout: real journal, ledger and flag file, virtual time, and a moment at which it is killed.

What can be seen from outside is done in steps: claim, append, set, record. Before and after each of them lies a moment;
`kill_at` says at which of them, counted from 1, the process sends itself SIGKILL.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fairlead.clock import ManualClock
from fairlead.ledger import Decision, Ledger
from fairlead.metrics import Reading
from fairlead.rollout import DecisionLog, Guardrail, Journal, RolloutPlan, Split, Stage
from fairlead.rollout.controller import Controller
from fairlead.rollout.flag_traffic import FlagTraffic
from fairlead.rollout.tally import Tally
from fairlead.store import Database
from tests.unit.rollout.conftest import ERRORS, plan

START = 1_750_000_000.0
STAGES = (
    Stage(share=0.2, bake=20.0, longest=20.0),
    Stage(share=0.5, bake=20.0, longest=20.0),
    Stage(share=1.0, bake=0.0),
)
FLAGS = {
    "flags": {
        "feed": {
            "state": "ENABLED",
            "variants": {"treatment": True, "control": False},
            "defaultVariant": "control",
        }
    }
}  # fmt: skip


def plan_of(change: str) -> RolloutPlan:
    guardrail = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)
    return plan(name=change, look_every=10.0, stages=STAGES, guardrails=(guardrail,))


def prepare(database: Database, change: str, folder: Path) -> Journal:
    """A rollout that was started, and a flag that it may move."""
    (folder / "flags.json").write_text(json.dumps(FLAGS))
    return Journal.start(database, plan_of(change), by="ann", clock=ManualClock(utc=START))


class Moments:
    """Counts moments, and ends the process at one of them."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self._count = 0
        self._lock = threading.Lock()

    def pass_one(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: object) -> object:
            self.pass_one()
            result = call(*args)
            self.pass_one()
            return result

        return counted


class _Traffic:
    """A flag file whose moves are counted, and noted."""

    def __init__(self, folder: Path, moments: Moments) -> None:
        self._traffic = FlagTraffic(folder / "flags.json", "feed")
        self._noted = folder / "sets"
        self._moments = moments
        self.name = self._traffic.name

    async def set(self, split: Split) -> None:
        self._moments.pass_one()
        await self._traffic.set(split)
        with self._noted.open("a") as file:
            file.write(f"{split.share} {split.latched}\n")
        self._moments.pass_one()

    async def read(self) -> Split:
        return await self._traffic.read()

    async def close(self) -> None:
        await self._traffic.close()


class _Facts:
    """Twenty units a second; of treatment every other one fails, from the second stage on, if it does harm."""

    names_units = True

    def __init__(self, clock: ManualClock, traffic: _Traffic, *, harm: bool) -> None:
        self._clock, self._traffic, self._harm = clock, traffic, harm
        self._until = clock.utc()

    async def gather(self, tally: Tally) -> None:
        share = (await self._traffic.read()).share
        since, self._until = self._until, self._clock.utc()
        for n in range(round((self._until - since) * 20)):
            served = n % 10 < share * 10
            at = since + n / 20
            event = {
                "at_utc_seconds": at,
                "targeting_key": f"{at}",
                "variant": "treatment" if served else "control",
                "status": 500 if self._harm and share == 0.5 and served and n % 2 else 200,
            }
            tally.see("request_finished", event)

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return None


def lead(where: str, change: str, folder: str, harm: bool, kill_at: int) -> None:
    """Leads the rollout to its end, or to the moment at which it is killed."""
    asyncio.run(_lead(where, change, Path(folder), harm, Moments(kill_at)))


async def _lead(where: str, change: str, folder: Path, harm: bool, moments: Moments) -> None:
    time = folder / "time"
    clock = ManualClock(utc=float(time.read_text()) if time.exists() else START)
    with Database(where) as database:
        journal: Any = Journal.last(database, change, clock=clock)
        journal.append, journal.claim = moments.around(journal.append), moments.around(journal.claim)
        decisions: Any = DecisionLog(Ledger(database), by="test")
        decisions.record = moments.around(decisions.record)
        traffic = _Traffic(folder, moments)
        controller = Controller(
            plan_of(change), journal=journal, traffic=traffic, facts=_Facts(clock, traffic, harm=harm),
            decisions=decisions, clock=clock,
        )  # fmt: skip
        await controller.begin()
        for _ in range(60):
            if controller.state.ended:
                break
            clock.advance(5.0)
            beside = folder / "time.new"
            beside.write_text(str(clock.utc()))
            beside.rename(time)
            await controller.step()
        await traffic.close()


def decided(database: Database, change: str) -> list[str]:
    """The verdicts that the ledger holds of a change, in their order."""
    bodies = [entry.body for entry in Ledger(database).decisions(change)]
    return [body.verdict for body in bodies if isinstance(body, Decision)]


def served(folder: Path) -> Split:
    """What the flag file serves."""
    # In a thread, since the caller's may run a loop.
    traffic = FlagTraffic(folder / "flags.json", "feed")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(traffic.read())).result()


def moves(folder: Path) -> list[tuple[float, bool]]:
    """Each move of traffic that was seen to its end: the share, and whether it was a rollback."""
    noted = folder / "sets"
    lines = [line.split() for line in noted.read_text().splitlines()] if noted.exists() else []
    return [(float(share), latched == "True") for share, latched in lines]


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "fairlead.store.migration", "fairlead.store.postgres"])


def process(target: Callable[..., None], *args: object) -> BaseProcess:
    """A process of its own, forked from one that has imported what it needs; started."""
    made = _CONTEXT.Process(target=target, args=args)
    made.start()
    return made
