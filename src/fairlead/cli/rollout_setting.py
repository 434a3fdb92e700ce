"""Where the traffic and the facts of a rollout are, and its controller led in this process.

What was named on the command line is kept in the journal, so that later commands need not be told again.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fairlead import __version__
from fairlead.cli.outcome import one_line
from fairlead.errors import FailedStatus, FairleadError, InvalidInput, StaleEpoch
from fairlead.ledger import Ledger
from fairlead.metrics import Reading
from fairlead.rollout import (
    Controller,
    DecisionLog,
    EventFacts,
    Facts,
    FlagTraffic,
    Journal,
    ReadingFacts,
    RolloutPlan,
    RolloutState,
    Split,
    Traffic,
)
from fairlead.rollout.drill import Drilled, drill_evidence
from fairlead.rollout.drill import drill as run_drill
from fairlead.rollout.entry import Asked, Written
from fairlead.store import Database
from fairlead.telemetry import BufferedSink, EventTail, JsonLinesSegments

if TYPE_CHECKING:
    from fairlead.rollout.haproxy_log import HaproxyLogStats

__all__ = [
    "Setting",
    "ask_in_time",
    "lead",
    "places_of",
    "practise",
    "take_back",
    "user_name",
    "with_places",
    "withdraw",
]

_AT_ONCE = 1.0
"""Seconds that a rollback waits for the journal before it takes treatment away without it."""

_CAPACITY = 100_000
"""Events of the log that may wait for the disk: whatever the kernel held while this process was busy comes at once."""


@dataclass
class Setting:
    """Where the traffic and the facts of a rollout are."""

    plan: RolloutPlan
    places: Mapping[str, str]

    def traffic(self) -> Traffic:
        """Raises InvalidInput where none was named, or where it cannot be used."""
        if sockets := self.places.get("haproxy"):
            if "map" not in self.places:
                raise InvalidInput("--haproxy: add --map, the map file that its configuration names")
            from fairlead.rollout.haproxy import HaproxyTraffic

            return HaproxyTraffic(self.places["map"], sockets=sockets.split("\n"))
        if flags := self.places.get("flags"):
            return FlagTraffic(
                flags,
                self.places.get("flag", self.plan.flag),
                treatment=self.places.get("treatment", self.plan.treatment),
                control=self.places.get("control", self.plan.control),
            )
        raise InvalidInput("what splits the traffic? name it: --flags FILE, or --haproxy SOCKET --map FILE")

    @contextmanager
    def facts(self) -> Iterator[Facts]:
        """What guardrails look at; while inside, HAProxy's log is received, where one was named.

        Raises InvalidInput where a guardrail would have nothing to look at.
        """
        readings = self._readings()
        events, address = self.places.get("events"), self.places.get("haproxy_log")
        if address:
            if "haproxy" not in self.places:
                raise InvalidInput(
                    "--haproxy-log: it is read where HAProxy splits the traffic: --haproxy SOCKET"
                )
            if not events:
                raise InvalidInput(
                    "--haproxy-log: add --events DIR, the folder that its requests are kept in"
                )
            with self._logged(address, events, readings) as facts:
                yield facts
            return
        if events:
            yield EventFacts(EventTail(events), readings=readings)
            return
        blind = [guardrail.name for guardrail in self.plan.guardrails if not guardrail.query]
        if blind:
            raise InvalidInput(
                f"guardrail {blind[0]} is computed from events: name their folder, --events DIR (or give it a query)"
            )
        yield ReadingFacts(readings)

    def _readings(self) -> dict[str, Callable[[], Reading]]:
        asked = [guardrail for guardrail in self.plan.guardrails if guardrail.query]
        if not asked:
            return {}
        if "prometheus" not in self.places:
            raise InvalidInput(
                f"guardrail {asked[0].name} has a query: name the server that answers it, --prometheus URL"
            )
        from fairlead.metrics.prometheus import PrometheusServer

        server = PrometheusServer(self.places["prometheus"])
        return {guardrail.name: partial(server.value, guardrail.query) for guardrail in asked}

    @contextmanager
    def _logged(
        self, address: str, events: str, readings: Mapping[str, Callable[[], Reading]]
    ) -> Iterator[Facts]:
        from fairlead.rollout.haproxy_log import HaproxyLog, HaproxyLogFacts

        plan = self.plan
        with (
            BufferedSink(JsonLinesSegments(events, prefix="haproxy"), capacity=_CAPACITY) as sink,
            HaproxyLog(sink, flag=plan.flag, control=plan.control, treatment=plan.treatment) as log,
        ):
            log.listen(address)
            if said := open_to(address):
                typer.echo(said, err=True)
            try:
                yield HaproxyLogFacts(log, EventTail(events), readings=readings)
            finally:
                typer.echo(f"log {address}: {log_counts(log.stats)}")


async def lead(
    setting: Setting, facts: Facts, journal: Journal, database: Database, webhook: str | None, slack: bool
) -> tuple[RolloutState, bool]:
    """How it ended, and whether this controller ended it."""
    said: RolloutState | None = None
    by_us = True
    hook = None
    if webhook:
        from fairlead.rollout.httpx import Webhook

        hook = Webhook(webhook, form="slack" if slack else "json")

    async def notice(what: str, state: RolloutState) -> None:
        typer.echo(f"{time.strftime('%H:%M:%S')} {one_line(what)}")
        if hook is not None:
            try:
                await hook(what, state)
            except FailedStatus as error:
                typer.echo(f"the notice could not be sent: {error}", err=True)
                raise

    traffic = setting.traffic()
    controller = Controller(
        setting.plan,
        journal=journal,
        traffic=traffic,
        facts=facts,
        decisions=_decisions(database),
        notice=notice,
        by=process_name(),
    )
    try:
        said = await controller.run()
    except StaleEpoch:
        # Rolled back from elsewhere, as a rule: then its end is this one's, too.
        by_us = False
        for _ in range(50):
            said = await asyncio.to_thread(journal.state)
            if said.ended:
                break
            await asyncio.sleep(0.2)
        else:
            raise
    finally:
        await traffic.close()
        if hook is not None:
            await hook.close()
    return said, by_us


async def take_back(
    setting: Setting, journal: Journal, database: Database, reason: str
) -> tuple[RolloutState, float | None]:
    """The state, and when this process saw that nobody is served treatment any more, by the monotonic clock.

    None: another one took it away.
    """
    traffic = setting.traffic()
    controller = Controller(
        setting.plan,
        journal=journal,
        traffic=traffic,
        facts=ReadingFacts({}),
        decisions=_decisions(database),
        by=process_name(),
    )
    try:
        state = await controller.take_back(reason)
        return state, controller.withdrawn_at
    except StaleEpoch:
        state = await asyncio.to_thread(journal.state)
        if not state.ended:
            raise
        return state, None
    finally:
        await traffic.close()


def ask_in_time(journal: Journal, wish: Asked, late: Callable[[], None]) -> None:
    """Writes a wish. late: what to do, once, when that takes longer than a second. Raises what the journal does."""
    answer: Future[Written] = Future()

    def ask() -> None:
        try:
            answer.set_result(journal.ask(wish))
        except BaseException as error:  # carried to who asked
            answer.set_exception(error)

    threading.Thread(target=ask, name="rollout-wish", daemon=True).start()
    try:
        answer.result(_AT_ONCE)
    except TimeoutError:
        with contextlib.suppress(FairleadError):  # what follows tries again, and says what stands in the way
            late()
        answer.result()


async def withdraw(setting: Setting, change: str, state: RolloutState | None = None) -> None:
    """Takes treatment away without a word in the journal. state: None where the journal could not be read; then by the
    marks that its rollout left in the traffic.

    Raises InvalidInput where the traffic was not moved by this change, and what the driver raises.
    """
    traffic = setting.traffic()
    try:
        served = await traffic.read()
        if served.rollout.rpartition("/")[0] != change:
            raise InvalidInput(
                f"{traffic.name}: it is moved by {served.rollout or 'no rollout'}, not by {change}"
            )
        await traffic.set(Split(share=0.0, rollout=served.rollout, epoch=served.epoch, latched=True))
    finally:
        await traffic.close()


async def practise(plan: RolloutPlan, journal: Journal, traffic: Traffic, database: Database) -> Drilled:
    controller = Controller(
        plan,
        journal=journal,
        traffic=traffic,
        facts=ReadingFacts({}),
        decisions=_decisions(database),
        by=process_name(),
    )
    try:
        found = await run_drill(controller, plan.stages[0].share)
        evidence = drill_evidence(plan, found, traffic.name, time.time())
        await asyncio.to_thread(Ledger(database).record_evidence, evidence)
        return found
    finally:
        await traffic.close()


def _decisions(database: Database) -> DecisionLog:
    return DecisionLog(Ledger(database), by=f"fairlead rollout {__version__}")


def with_places(before: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Where everything is: as it was, but for what is named now. Another kind of traffic takes the place of the one
    before."""
    kept = dict(before)
    if "flags" in given or "haproxy" in given:
        for name in ("flags", "haproxy", "map"):
            kept.pop(name, None)
    if "flags" in given:
        kept.pop("haproxy_log", None)
    return {**kept, **given}


def places_of(
    plan: RolloutPlan,
    flags: Path | None,
    haproxy: list[str] | None,
    map: Path | None,
    events: Path | None,
    prometheus: str | None,
    haproxy_log: str | None = None,
) -> dict[str, str]:
    """What was named on the command line; paths whole, so that later commands find them from anywhere."""
    if flags and haproxy:
        raise InvalidInput("give --flags or --haproxy: one of them splits the traffic")
    places = {"flag": plan.flag, "treatment": plan.treatment, "control": plan.control}
    for name, path in (("flags", flags), ("map", map), ("events", events)):
        if path is not None:
            places[name] = str(path.absolute())
    if haproxy:
        places["haproxy"] = "\n".join(haproxy)
    if prometheus:
        places["prometheus"] = prometheus
    if haproxy_log:
        places["haproxy_log"] = haproxy_log
    return places


def open_to(address: str) -> str:
    """Who is believed at an address that others can reach, in words; empty for the loopback."""
    if ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback:
        return ""
    return f"log {address}: whoever can send to it is believed; let a firewall pass HAProxy's machines alone"


def log_counts(stats: HaproxyLogStats) -> str:
    """What became of the lines, in words."""
    received = stats.counted + stats.unkeyed + stats.elsewhere + stats.duplicates + stats.other
    others = {
        "without a key": stats.unkeyed,
        "of neither arm": stats.elsewhere,
        "twice": stats.duplicates,
        "of another kind": stats.other,
    }
    passed_over = "".join(f", {count} {what}" for what, count in others.items() if count)
    return f"{received} lines received{passed_over}; {stats.lost} lost"


def user_name() -> str:
    return getpass.getuser()


def process_name() -> str:
    return f"{user_name()} on {socket.gethostname()}, process {os.getpid()}"
