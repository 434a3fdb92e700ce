"""What is played in live traffic once the arms were compared: treatment unseen, then a canary that does harm.

    shadow    control answers, treatment is asked the same, unseen; what differs, and by more than control from itself?
    canary    a share of the users meets a planted regression: who finds it, how soon, and is it gone then?

The service, its flag file, its events, journal and ledger are those of a rollout in earnest; only the harm is made.
However the canary ends, by its guardrails, its time, Ctrl-C or the death of a process, the flag serves nobody the harm
afterwards; only SIGKILL leaves it as it was, with no process behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from fairlead import __version__
from fairlead.change import parse_change
from fairlead.change.incident import add_rollback
from fairlead.change.rollout import rollout_plan
from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import FairleadError, InvalidInput, RunInvalid
from fairlead.lab.load import Progress as LoadProgress
from fairlead.lab.load import drive
from fairlead.lab.samples import Ending
from fairlead.ledger import Ledger
from fairlead.rollout import (
    Controller,
    DecisionLog,
    EventFacts,
    FlagTraffic,
    Journal,
    RolloutPlan,
    RolloutState,
    Split,
    Stage,
)
from fairlead.rollout.entry import Asked, Decided, Had, Written
from fairlead.statistics import discordant_pairs
from fairlead.store import Database
from fairlead.telemetry import EventTail, RequestFinished
from fairlead.telemetry.jsonl import read_events
from fairlead.trial.promise import LEDGER
from fairlead.trial.result import write_atomically
from fairlead.trial.rollout_record import CanaryRecord, FieldRecord, ShadowRecord, rollout_record
from fairlead.trial.system import LetOut, OneService

__all__ = ["CHANGE_FILE", "LiveRecord", "canary_to_its_end", "check_let_out", "play_live"]

CHANGE_FILE = "change.toml"
"""The run's copy of the change file, in its folder: incidents are written into it."""

_LOOK_EVERY = 0.25
_AFTERWARDS = 1.0  # seconds of traffic after the rollback, in which nobody may meet the variant
_ENDED_WITHIN = (
    10.0  # seconds past its time in which the canary has to be off again; a full disk could take for ever
)
_ABANDONED_WITHIN = 3.0  # seconds for each step of taking it back when the run ends early
_DECIDER = f"fairlead {__version__}, canary"
_MAX_IN_FLIGHT = 2_000

Say = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class LiveRecord:
    """What came of both, growing while they are played."""

    events: Path
    """Of the service."""
    shadow: ShadowRecord | None = None
    """None before its end."""
    canary: CanaryRecord | None = None
    """None before its end."""
    rolled_back_at: float | None = None
    """UTC seconds at which the canary's rollback was written down."""


def check_let_out(name: str, content: bytes | None) -> None:
    """Raises InvalidInput, before anything starts, where this change file lets nothing out."""
    if content is None:
        raise InvalidInput(f"{name}: it has no change file, so nothing says how its change is let out")
    plan = rollout_plan(parse_change(content, CHANGE_FILE))
    if not any(each.is_relative for each in plan.guardrails):
        raise InvalidInput(f"{plan.name}: no guardrail compares with control, so none finds harm in seconds")


async def play_live(
    record: LiveRecord,
    service: OneService,
    let_out: LetOut,
    patience: float,
    content: bytes,
    directory: Path,
    say: Say,
) -> None:
    """Plays both at the service and fills the record. content: the change file, whose guardrails are watched.

    Raises what drivers raise, and RunInvalid where the canary cannot be ended. Cancelled, it takes the canary back.
    """
    write_atomically(directory / CHANGE_FILE, content)
    share = f"{let_out.canary_share * 100:g} %"
    say(
        f"letting it out: unseen for {let_out.shadow_seconds:g} s, then with a planted defect to {share} of the users"
    )
    record.shadow = shadow = await _shadow(service, let_out, patience)
    say(
        f"shadow: {shadow.requests} live requests, {shadow.compared} answered by treatment too, unseen; "
        f"{shadow.outcomes.get('same', 0)} alike"
    )
    record.canary, record.rolled_back_at = await _canary(service, let_out, patience, content, directory, say)


def canary_to_its_end(live: LiveRecord) -> CanaryRecord | None:
    """The canary with its last page, once the service has ended and all its events are on the disk. Blocks."""
    if live.canary is None or live.rolled_back_at is None:
        return live.canary
    variant = live.canary.rollout.treatment
    begun = [
        event.at_utc_seconds - event.latency_seconds
        for event in read_events(live.events)
        if isinstance(event, RequestFinished) and event.variant == variant
    ]
    if not begun:
        return live.canary
    return msgspec.structs.replace(live.canary, last_page_seconds=max(begun) - live.rolled_back_at)


@dataclass(slots=True)
class _Sent:
    progress: LoadProgress | None = None

    def counts(self) -> tuple[int, int]:
        """Requests that have ended, and of them those without a good answer."""
        if self.progress is None:
            return 0, 0
        samples = self.progress.samples()
        ended = len(samples) - samples.count(Ending.UNFINISHED)
        return ended, ended - samples.count(Ending.OK)


@asynccontextmanager
async def _traffic_on(
    service: OneService, seconds: float, part: str, patience: float
) -> AsyncIterator[_Sent]:
    """Everyday traffic while the block runs, for `seconds` at most. Raises what broke it."""
    sent = _Sent()

    def moved(progress: LoadProgress) -> None:
        sent.progress = progress

    schedule = service.schedule(seconds, part)
    load = asyncio.create_task(
        drive(
            schedule,
            service.paths(schedule).__getitem__,
            base_url=service.url,
            timeout=patience,
            max_in_flight=_MAX_IN_FLIGHT,
            on_progress=moved,
        )
    )
    try:
        yield sent
        if load.done():
            load.result()
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)


async def _shadow(service: OneService, let_out: LetOut, patience: float) -> ShadowRecord:
    await service.shadow(let_out.shadow_share)
    async with _traffic_on(service, let_out.shadow_seconds, "shadow", patience) as sent:
        await asyncio.sleep(let_out.shadow_seconds)
    await service.shadow(0.0)
    await asyncio.sleep(patience / 2)  # for comparisons that run
    report = await service.shadow(0.0)
    requests, failed = sent.counts()
    # Fields that told nothing apart, too: they are those of which too few were compared twice.
    verdicts = discordant_pairs(
        {path: (counts.only_again, counts.only_candidate) for path, counts in report.fields.items()}
    )
    arms = {"control": "control", "treatment": "candidate"}
    answered = {arm: name for arm, name in arms.items() if name in report.seconds}
    return ShadowRecord(
        seconds=let_out.shadow_seconds,
        requests=requests,
        failed=failed,
        compared=report.compared,
        compared_twice=report.compared_twice,
        outcomes=report.outcomes,
        dropped={why: count for why, count in report.dropped.items() if why != "disabled"},
        fields=tuple(
            FieldRecord(
                path=path,
                differed=counts.differed,
                only_treatment=counts.only_candidate,
                only_control=counts.only_again,
                p_value=verdicts[path].adjusted_p_value,
                verdict=verdicts[path].verdict,
            )
            for path, counts in sorted(report.fields.items())
        ),
        p50_seconds={arm: report.quantile(name, 0.5) for arm, name in answered.items()},
        p99_seconds={arm: report.quantile(name, 0.99) for arm, name in answered.items()},
    )


async def _canary(
    service: OneService, let_out: LetOut, patience: float, content: bytes, directory: Path, say: Say
) -> tuple[CanaryRecord, float | None]:
    plan = _canary_plan(service, let_out, content)
    copy = directory / CHANGE_FILE
    with Database(directory / LEDGER) as database:
        journal = await asyncio.to_thread(
            Journal.start, database, plan, by=_DECIDER, places=_places(service, plan)
        )
        traffic = FlagTraffic(service.flags, plan.flag, treatment=plan.treatment, control=plan.control)
        told: list[str] = []

        async def notice(what: str, state: RolloutState) -> None:
            told.append(what)

        controller = Controller(
            plan,
            journal=journal,
            traffic=traffic,
            facts=EventFacts(EventTail(service.events)),
            decisions=DecisionLog(Ledger(database), by=_DECIDER),
            notice=notice,
            by=_DECIDER,
        )
        try:
            async with _traffic_on(service, let_out.canary_seconds + _AFTERWARDS, "canary", patience) as sent:
                await _led(controller, journal, let_out.canary_seconds, told)
                await asyncio.sleep(_AFTERWARDS)
        except BaseException:
            await _abandoned(controller, journal, traffic)
            raise
        finally:
            await traffic.close()
        entries = await asyncio.to_thread(journal.read)
    state = controller.state
    say(f"canary at {let_out.canary_share * 100:g} %: {state.phase.replace('_', ' ')}: {state.reason}")
    incident = await asyncio.to_thread(add_rollback, copy, plan, state)
    requests, failed = sent.counts()
    served = _at(entries, lambda entry: isinstance(entry, Had) and not entry.latched)
    decided = _at(entries, lambda entry: isinstance(entry, Decided) and entry.verdict == "rollback")
    gone = _at(entries, lambda entry: isinstance(entry, Had) and entry.latched)
    rollout = rollout_record(journal.rollout, plan, entries, virtual=False)
    found = any(each.verdict == "FAIL" for decision in rollout.decisions for each in decision.evaluations)
    canary = CanaryRecord(
        rollout=rollout,
        planted=let_out.regression,
        share=let_out.canary_share,
        requests=requests,
        failed=failed,
        decided_seconds=decided - served if found and decided is not None and served is not None else None,
        withdrawn_seconds=None if decided is None or gone is None else gone - decided,
        last_page_seconds=None,
        incident=incident,
    )
    return canary, decided


async def _led(controller: Controller, journal: Journal, seconds: float, told: list[str]) -> None:
    """Until a guardrail has rolled it back, or the run has, after `seconds`. RunInvalid where neither is done."""
    end = SYSTEM_CLOCK.now() + seconds
    try:
        async with asyncio.timeout(seconds + _ENDED_WITHIN):
            await controller.begin()
            while not controller.state.ended and SYSTEM_CLOCK.now() < end:
                await controller.step()
                await asyncio.sleep(_LOOK_EVERY / 4)
            if not controller.state.ended:
                await _asked_back(
                    controller, journal, f"no guardrail found the planted regression in {seconds:g} s"
                )
    except TimeoutError as late:
        raise RunInvalid(
            f"the canary was not over {_ENDED_WITHIN:g} s after its time: {told[-1] if told else 'it hangs'}"
        ) from late


async def _asked_back(controller: Controller, journal: Journal, why: str) -> None:
    await asyncio.to_thread(journal.ask, Asked(what="rollback", by="the run", why=why))
    await controller.step()


async def _abandoned(controller: Controller, journal: Journal, traffic: FlagTraffic) -> None:
    """Takes the variant away, and writes that down if it can be: whatever ended the run goes on afterwards."""
    if controller.state.ended:
        return
    nobody = Split(share=0.0, rollout=journal.rollout, epoch=controller.state.epoch, latched=True)
    with suppress(FairleadError, TimeoutError):
        async with asyncio.timeout(_ABANDONED_WITHIN):
            await traffic.set(nobody)
    with suppress(FairleadError, TimeoutError):
        async with asyncio.timeout(_ABANDONED_WITHIN):
            await _asked_back(controller, journal, "it ended early")


def _places(service: OneService, plan: RolloutPlan) -> dict[str, str]:
    """What `fairlead rollout` needs to find this rollout's traffic, from anywhere."""
    return {
        "flag": plan.flag,
        "treatment": plan.treatment,
        "control": plan.control,
        "flags": str(service.flags.absolute()),
        "events": str(service.events.absolute()),
    }


def _canary_plan(service: OneService, let_out: LetOut, content: bytes) -> RolloutPlan:
    """The change's own guardrails around one stage that serves the variant with the regression."""
    plan = rollout_plan(parse_change(content, CHANGE_FILE))
    stage = Stage(share=let_out.canary_share, bake=3600.0)
    return replace(
        plan,
        stages=(stage,),
        treatment=service.regressed,
        look_every=_LOOK_EVERY,
        advance_on="pass",
        stale_after=max(plan.stale_after, let_out.canary_seconds),
    )


def _at(entries: list[Written], is_it: Callable[[object], bool]) -> float | None:
    return next((each.at_utc_seconds for each in entries if is_it(each.entry)), None)
