"""The change's whole plan, days of it, on virtual time: the same controller, flag file and ledger over recorded events.

Made users come at a steady rate, each once. The flag file, which the rollout moves, says which arm each is served, and
what he meets is one of the requests that the run recorded of that arm, drawn by lot from the phases in which nothing
was broken on purpose. What this cannot show: users who come back, days that differ, services that tire.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from fairlead import __version__
from fairlead.change import parse_change
from fairlead.change.rollout import rollout_plan
from fairlead.clock import ManualClock
from fairlead.errors import RunInvalid
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.ledger import Ledger
from fairlead.metrics import Reading
from fairlead.rollout import (
    Controller,
    DecisionLog,
    FlagTraffic,
    Guardrail,
    MemoryJournal,
    RolloutPlan,
    RolloutState,
    Tally,
)
from fairlead.store import Database
from fairlead.telemetry.jsonl import read_events
from fairlead.trial.promise import LEDGER
from fairlead.trial.rollout_record import RolloutRecord, rollout_record
from fairlead.trial.system import LetOut, Settings
from fairlead.trial.walk import Recorded

__all__ = ["RecordedFacts", "play_virtual", "recorded_events"]

FLAGS = Path("rollout", "virtual-flags.json")
"""The flag file that this rollout moves, in the run's folder."""

_LOOK_EVERY = 3600.0
_LONGEST = 60 * 86_400.0
_PLAYED_WITHIN = 120.0  # real seconds; on a clock that is moved by hand, whoever retries would wait for ever
_CAVEAT = (
    "time was virtual: users were made, and each met one request that this run had recorded of the arm that the flag "
    "gave: one of {} of control, or of {} of treatment"
)

_Event = tuple[str, Mapping[str, object]]


async def play_virtual(
    recorded: Recorded, settings: Settings, let_out: LetOut, content: bytes, directory: Path
) -> RolloutRecord:
    """Plays the plan of the change file.

    Raises RunInvalid where an arm has no event that a guardrail counts, or where it cannot be played to its end.
    """
    plan = _on_virtual_time(rollout_plan(parse_change(content, "change.toml")), let_out)
    kinds = {guardrail.metric.event for guardrail in plan.guardrails}
    events = await asyncio.to_thread(recorded_events, recorded, let_out.everyday, kinds, directory)
    arms = {plan.control: events.get("control", []), plan.treatment: events.get("treatment", [])}
    for arm, found in arms.items():
        if not found:
            raise RunInvalid(
                f"{arm}: no {' or '.join(sorted(kinds))} event was recorded, so its rollout cannot be played"
            )
    drawn_from = {arm: len(found) for arm, found in arms.items()}
    caveat = _CAVEAT.format(drawn_from[plan.control], drawn_from[plan.treatment])
    path = directory / FLAGS
    await asyncio.to_thread(_write_flag, path, plan)
    clock = ManualClock(utc=recorded.started_at)
    facts = RecordedFacts(
        plan,
        arms,
        FlagSet.from_file(path),
        clock,
        per_second=let_out.users_per_second,
        internal=let_out.internal,
        rng=random.Random(settings.seed),
    )
    by = f"fairlead {__version__}, on virtual time"
    journal = MemoryJournal(f"{plan.name} on virtual time", plan, by=by, clock=clock)
    told: list[str] = []

    async def notice(what: str, state: RolloutState) -> None:
        told.append(what)

    with Database(directory / LEDGER) as database:
        controller = Controller(
            plan,
            journal=journal,
            traffic=FlagTraffic(path, plan.flag, treatment=plan.treatment, control=plan.control),
            facts=facts,
            decisions=DecisionLog(Ledger(database), by=by, caveats=(caveat,), simulated=True),
            notice=notice,
            clock=clock,
            by=by,
        )
        try:
            async with asyncio.timeout(_PLAYED_WITHIN):
                await controller.begin()
                while not controller.state.ended and clock.now() < _LONGEST:
                    clock.advance(plan.look_every)
                    await controller.step()
        except TimeoutError as late:
            raise RunInvalid(
                f"{journal.rollout} was not over after {_PLAYED_WITHIN:g} s: {told[-1] if told else 'it hangs'}"
            ) from late
    record = rollout_record(journal.rollout, plan, journal.read(), virtual=True)
    return msgspec.structs.replace(record, drawn_from=drawn_from)


def _on_virtual_time(plan: RolloutPlan, let_out: LetOut) -> RolloutPlan:
    """The same stages, guardrails and alpha, looked at every hour."""
    return replace(
        plan,
        look_every=_LOOK_EVERY,
        stale_after=max(plan.stale_after, 2 * _LOOK_EVERY),
        silence=max(plan.silence, 4 * _LOOK_EVERY),
        expected_rate=let_out.users_per_second,
    )


def _write_flag(path: Path, plan: RolloutPlan) -> None:
    flag = {
        "state": "ENABLED",
        "variants": {arm: arm for arm in (plan.control, plan.treatment)},
        "defaultVariant": plan.control,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"flags": {plan.flag: flag}}, indent=1))


def recorded_events(
    recorded: Recorded, phases: Sequence[str], kinds: Iterable[str], directory: Path
) -> dict[str, list[_Event]]:
    """By arm, what the services recorded of requests that arrived within these phases, while that arm had the load."""
    spans = [
        (turn.began_at + start, turn.began_at + end, turn.arm.name)
        for turn in recorded.turns
        for phase, start, end in recorded.phase_bounds()
        if phase.name in phases
    ]
    wanted = frozenset(kinds)
    found: dict[str, list[_Event]] = {}
    for folder in sorted(each for each in (directory / "events").iterdir() if each.is_dir()):
        for event in read_events(folder):
            kind = str(event.__struct_config__.tag)
            if kind not in wanted:
                continue
            arrived = event.at_utc_seconds - getattr(event, "latency_seconds", 0.0)
            for start, end, arm in spans:
                if start <= arrived < end:
                    found.setdefault(arm, []).append((kind, msgspec.structs.asdict(event)))
                    break
    return found


class RecordedFacts:
    """`Facts` of made users who meet recorded events, as the flag says."""

    names_units = True

    def __init__(
        self,
        plan: RolloutPlan,
        events: Mapping[str, Sequence[_Event]],
        flags: FlagSet,
        clock: ManualClock,
        *,
        per_second: float,
        internal: float,
        rng: random.Random,
    ) -> None:
        self._plan = plan
        self._events = events
        self._flags = flags
        self._clock = clock
        self._per_second = per_second
        self._internal = internal
        self._audience = next((stage.audience for stage in plan.stages if stage.audience), "")
        self._rng = rng
        self._began = self._until = clock.utc()
        self._users = 0

    async def gather(self, tally: Tally) -> None:
        """Everybody who came since the last look."""
        self._flags.reload()
        since, self._until = self._until, self._clock.utc()
        due = int((self._until - self._began) * self._per_second) - self._users
        see: Callable[[str, Mapping[str, object]], None] = tally.see
        for number in range(due):
            self._one(see, since + (self._until - since) * (number + 0.5) / due)

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return None

    def _one(self, see: Callable[[str, Mapping[str, object]], None], at: float) -> None:
        self._users += 1
        user = f"made-{self._users}"
        belongs = self._audience and self._rng.random() < self._internal
        context = EvaluationContext(
            targeting_key=user, attributes={"audience": self._audience} if belongs else {}
        )
        served = self._flags.evaluate(self._plan.flag, context)
        arm = served.variant or self._plan.control
        stamp = {"at_utc_seconds": at, "targeting_key": user, "variant": arm}
        if belongs:
            see("exposure", {**stamp, "flag": self._plan.flag, "reason": served.reason})
        kind, event = self._rng.choice(self._events[arm])
        see(kind, {**event, **stamp})
