"""What is played in live traffic once the arms were compared: treatment unseen, then a canary that does harm.

    shadow    control answers, treatment is asked the same, unseen; what differs, and by more than control from itself?
    canary    a share of the users meets a planted regression: who finds it, how soon, and is it gone then?

The service, its flag file, its events, journal and ledger are those of a rollout in earnest; only the harm is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from fairlead import __version__
from fairlead.change import parse_change
from fairlead.change.incident import add_rollback
from fairlead.change.rollout import rollout_plan
from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import InvalidInput
from fairlead.lab.load import Progress as LoadProgress
from fairlead.lab.load import drive
from fairlead.lab.samples import Ending, Samples
from fairlead.ledger import Ledger
from fairlead.rollout import Controller, DecisionLog, EventFacts, FlagTraffic, Journal, RolloutPlan, Stage
from fairlead.rollout.entry import Decided, Had, Written
from fairlead.statistics import discordant_pairs
from fairlead.store import Database
from fairlead.telemetry import EventTail, RequestFinished
from fairlead.telemetry.jsonl import read_events
from fairlead.trial.promise import LEDGER
from fairlead.trial.result import write_atomically
from fairlead.trial.rollout_record import CanaryRecord, FieldRecord, ShadowRecord, rollout_record
from fairlead.trial.system import LetOut, OneService

__all__ = ["CHANGE_FILE", "LiveRecord", "canary_to_its_end", "play_live"]

CHANGE_FILE = "change.toml"
"""The run's copy of the change file, in its folder: incidents are written into it."""

_LOOK_EVERY = 0.25
_AFTERWARDS = 1.0  # seconds of traffic after the rollback, in which nobody may meet the variant
_DECIDER = f"fairlead {__version__}, canary"
_MAX_IN_FLIGHT = 2_000

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRecord:
    """What came of both."""

    shadow: ShadowRecord
    canary: CanaryRecord
    decided_at: float | None
    """UTC seconds of the rollback's decision."""
    events: Path
    """Of the service."""


async def play_live(
    service: OneService, let_out: LetOut, patience: float, content: bytes, directory: Path, say: Say
) -> LiveRecord:
    """Plays both at the service. content: the change file, whose guardrails are watched. Raises what drivers raise."""
    write_atomically(directory / CHANGE_FILE, content)
    shadow = await _shadow(service, let_out, patience)
    say(
        f"shadow: {shadow.requests} live requests, {shadow.compared} answered by treatment too, unseen; "
        f"{shadow.outcomes.get('same', 0)} alike"
    )
    canary, decided_at = await _canary(service, let_out, patience, content, directory, say)
    return LiveRecord(shadow=shadow, canary=canary, decided_at=decided_at, events=service.events)


def canary_to_its_end(live: LiveRecord) -> CanaryRecord:
    """The canary with its last page, once the service has ended and all its events are on the disk. Blocks."""
    variant = live.canary.rollout.treatment
    begun = [
        event.at_utc_seconds - event.latency_seconds
        for event in read_events(live.events)
        if isinstance(event, RequestFinished) and event.variant == variant
    ]
    if live.decided_at is None or not begun:
        return live.canary
    return msgspec.structs.replace(live.canary, last_page_seconds=max(begun) - live.decided_at)


@dataclass(slots=True)
class _Sent:
    progress: LoadProgress | None = None
    ended: bool = False

    def samples(self) -> Samples | None:
        """What has ended, one way or another."""
        if self.progress is None:
            return None
        samples = self.progress.samples()
        return samples.select(samples.ending != Ending.UNFINISHED)

    def counts(self) -> tuple[int, int]:
        """Requests, and of them those without a good answer."""
        samples = self.samples()
        return (0, 0) if samples is None else (len(samples), len(samples) - samples.count(Ending.OK))


@asynccontextmanager
async def _traffic_on(
    service: OneService, seconds: float, part: str, patience: float
) -> AsyncIterator[_Sent]:
    """Everyday traffic while the block runs, for `seconds` at most."""
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
    discordant = report.discordant()
    verdicts = discordant_pairs(discordant) if discordant else {}
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
                p_value=verdicts[path].p_value if path in verdicts else 1.0,
                verdict=verdicts[path].verdict if path in verdicts else "not shown",
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
        places = {"flags": str(service.flags), "events": str(service.events)}
        journal = await asyncio.to_thread(Journal.start, database, plan, by=_DECIDER, places=places)
        traffic = FlagTraffic(service.flags, plan.flag, treatment=plan.treatment, control=plan.control)
        controller = Controller(
            plan,
            journal=journal,
            traffic=traffic,
            facts=EventFacts(EventTail(service.events)),
            decisions=DecisionLog(Ledger(database), by=_DECIDER),
            by=_DECIDER,
        )
        end = SYSTEM_CLOCK.now() + let_out.canary_seconds
        longest = let_out.canary_seconds + _AFTERWARDS
        try:
            async with _traffic_on(service, longest, "canary", patience) as sent:
                await controller.begin()
                while not controller.state.ended and SYSTEM_CLOCK.now() < end:
                    await controller.step()
                    await asyncio.sleep(plan.look_every / 4)
                if not controller.state.ended:
                    await controller.take_back("the planted regression was not found in time")
                await asyncio.sleep(_AFTERWARDS)
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
    found = CanaryRecord(
        rollout=rollout_record(journal.rollout, plan, entries, virtual=False),
        planted=let_out.regression,
        share=let_out.canary_share,
        requests=requests,
        failed=failed,
        decided_seconds=None if served is None or decided is None else decided - served,
        withdrawn_seconds=None if decided is None or gone is None else gone - decided,
        last_page_seconds=None,
        incident=incident,
    )
    return found, decided


def _canary_plan(service: OneService, let_out: LetOut, content: bytes) -> RolloutPlan:
    """The change's own guardrails around one stage that serves the variant with the regression."""
    plan = rollout_plan(parse_change(content, CHANGE_FILE))
    stage = Stage(share=let_out.canary_share, bake=3600.0)
    if not any(each.is_relative for each in plan.guardrails):
        raise InvalidInput(f"{plan.name}: no guardrail compares with control, so none finds harm in seconds")
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
