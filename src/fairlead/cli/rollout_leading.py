"""The controller of a rollout, in this process: led to its end, or for one step of its own.

Each of these takes the traffic for as long as it needs it, and closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import typer

from fairlead import __version__
from fairlead.cli.outcome import one_line
from fairlead.cli.rollout_setting import Setting
from fairlead.errors import FailedStatus, FairleadError, InvalidInput, StaleEpoch
from fairlead.ledger import Ledger
from fairlead.rollout import (
    Controller,
    DecisionLog,
    Facts,
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

__all__ = ["ask_in_time", "lead", "practise", "take_back", "user_name", "withdraw"]

_AT_ONCE = 1.0
"""Seconds that a rollback waits for the journal before it takes treatment away without it."""


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


def user_name() -> str:
    return getpass.getuser()


def process_name() -> str:
    return f"{user_name()} on {socket.gethostname()}, process {os.getpid()}"
