"""The state of a rollout: any journal adds up, an end is an end, and whatever breaks, a rollout comes to one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import DatabaseUnavailable, StaleEpoch
from fairlead.metrics import Reading
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.entry import (
    Asked,
    Claimed,
    Decided,
    Ended,
    Entry,
    Had,
    Looked,
    Paged,
    Started,
    Wanted,
    Written,
)
from fairlead.rollout.guardrail import Evaluation
from fairlead.rollout.state import Phase, RolloutState, fold
from tests.unit.rollout.conftest import ERRORS

if TYPE_CHECKING:
    from tests.unit.rollout.conftest import World

_stages = st.integers(0, 3)
_shares = st.sampled_from([0.0, 0.01, 0.5, 1.0])
_texts = st.sampled_from(["", "ann", "a reason"])
_evaluations = st.lists(
    st.builds(
        Evaluation,
        guardrail=st.sampled_from(["a", "b"]),
        verdict=st.sampled_from(["PASS", "FAIL", "INCONCLUSIVE"]),
        reason=st.sampled_from(["", "harm", "waiting", "no_control", "no_data"]),
        log_e_value=st.floats(-50, 50),
    ),
    max_size=3,
).map(tuple)
_states = st.sampled_from(["", "baking", "gate", "frozen"])
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Started, plan_sha256=_texts, by=_texts),
    st.builds(Claimed, by=_texts),
    st.builds(Wanted, stage=_stages, share=_shares, audience=_texts),
    st.builds(Wanted, stage=_stages, share=st.just(0.0), latched=st.just(True)),
    st.builds(Had, stage=_stages, share=_shares, audience=_texts),
    st.builds(Had, stage=_stages, share=st.just(0.0), latched=st.just(True)),
    st.builds(
        Looked,
        stage=_stages,
        guarded_seconds=st.floats(0, 1e6),
        waited_seconds=st.floats(0, 1e6),
        evaluations=_evaluations,
    ),
    st.builds(
        Decided,
        stage=_stages,
        verdict=st.sampled_from(["advance", "hold", "rollback"]),
        reason=_texts,
        state=_states,
    ),
    st.builds(Asked, what=st.sampled_from(["pause", "resume", "advance", "rollback"]), by=_texts, why=_texts),
    st.builds(Paged, what=_texts),
    st.builds(Ended, outcome=st.sampled_from(["completed", "rolled_back"]), reason=_texts),
)
JOURNALS = st.lists(ENTRIES, max_size=40)


def written(entries: list[Entry], after: int = 0) -> list[Written]:
    return [
        Written(number=number, epoch=1 + number // 10, at_utc_seconds=float(number), entry=entry)
        for number, entry in enumerate(entries, after + 1)
    ]


@settings(deadline=None)
@given(JOURNALS)
def test_any_journal_adds_up_to_a_state(entries: list[Entry]):
    state = fold("feed/1", written(entries))
    assert state.number == len(entries)
    assert state.phase in get_args(Phase)
    if state.want is not None and state.want.latched:
        assert state.withdrawn or state.phase == "completed"


@settings(deadline=None)
@given(JOURNALS, st.integers(0, 40))
def test_a_journal_read_in_two_parts_adds_up_to_the_same(entries: list[Entry], cut: int):
    all_of_it = written(entries)
    assert fold("feed/1", all_of_it[cut:], after=fold("feed/1", all_of_it[:cut])) == fold("feed/1", all_of_it)


@settings(deadline=None)
@given(JOURNALS, st.sampled_from(["completed", "rolled_back"]), JOURNALS)
def test_nothing_leads_on_from_an_end(before: list[Entry], outcome: str, behind: list[Entry]):
    ended = fold("feed/1", written([*before, Ended(outcome=outcome)]))  # type: ignore[arg-type]
    state = fold("feed/1", written(behind, after=ended.number), after=ended)
    assert state.ended
    assert state == RolloutState(
        **{
            name: getattr(state if name == "number" else ended, name)
            for name in RolloutState.__dataclass_fields__
        }
    )


@settings(deadline=None)
@given(JOURNALS, JOURNALS)
def test_nothing_is_let_in_again_once_it_is_being_taken_away(before: list[Entry], behind: list[Entry]):
    state = fold("feed/1", written([*before, Decided(stage=0, verdict="rollback", reason="harm")]))
    for each in written(behind, after=state.number):
        share = 0.0 if state.want is None else state.want.share
        after = fold("feed/1", [each], after=state)
        assert after.want is None or after.want.share <= share
        # Only an entry that says so calls it completed: the controller writes none behind a rollback.
        if not isinstance(each.entry, Ended) or state.ended:
            assert after.withdrawn or after.phase == state.phase
        state = after


@settings(deadline=None)
@given(JOURNALS)
def test_what_was_waited_is_that_of_the_phase(entries: list[Entry]):
    state = RolloutState(rollout="feed/1")
    for each in written(entries):
        after = fold("feed/1", [each], after=state)
        if (after.phase, after.stage) != (state.phase, state.stage):
            assert after.waited_seconds == 0.0
        state = after


# Every phase comes to its end -----------------------------------------------------------------------------------------

LIMITS = (
    Guardrail(metric=ERRORS, above=0.5, for_seconds=60.0),
    Guardrail(metric=ERRORS, above=0.4, for_seconds=100.0),
)
FAULTS = [
    "none",
    "both silent",
    "treatment silent",
    "events break",
    "reading gone",
    "traffic fails",
    "traffic lies",
    "journal fails",
    "harm",
    "restart",
    "another leads",
    "clock back",
    "clock forward",
    "pause",
    "resume",
    "advance",
]
HARMLESS = {
    "none",
    "journal fails",
    "restart",
    "another leads",
    "clock back",
    "clock forward",
    "resume",
    "advance",
    "traffic fails",
}
"""Faults that a rollout may outlive; those that last are mended after a while."""
LONGEST = 60 * 60


def faulty_plan(make_plan: Callable[..., RolloutPlan], gate: str) -> RolloutPlan:
    stages = (
        Stage(share=0.2, bake=60.0, longest=100.0),
        Stage(share=0.5, bake=40.0, longest=100.0, gate=gate),  # type: ignore[arg-type]
        Stage(share=1.0, bake=20.0, longest=60.0),
    )
    return make_plan(
        stages=stages, guardrails=LIMITS, patience=200.0, silence=80.0, settle=20.0, stale_after=40.0
    )


class Breaking:
    """A world in which one thing at a time is broken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fault = "none"
        world.service.rate = 2.0
        self._gather, self._set = world.service.gather, world.traffic.set
        self._append, self._read = world.journal.append, world.traffic.read
        world.service.gather = self.gather  # type: ignore[method-assign]
        world.service.reading = self.reading
        world.traffic.read = self.read  # type: ignore[method-assign]
        world.journal.append = self.append  # type: ignore[method-assign]

    async def gather(self, tally: object) -> None:
        if self.fault == "events break":
            raise OSError("events: input/output error")
        await self._gather(tally)  # type: ignore[arg-type]

    def reading(self, guardrail: Guardrail) -> Reading | None:
        return Reading(value=None, reason="query_error") if self.fault == "reading gone" else None

    async def read(self) -> object:
        served = await self._read()
        if self.fault == "traffic lies" and not served.latched:
            return type(served)(share=0.07, rollout=served.rollout, epoch=served.epoch)
        return served

    def append(self, entries: object, epoch: int) -> object:
        if self.fault == "journal fails":
            raise DatabaseUnavailable("fairlead.db: the disk is full")
        return self._append(entries, epoch)  # type: ignore[arg-type]

    async def begin(self, fault: str) -> None:
        """Breaks this and mends the last."""
        world, self.fault = self.world, fault
        silent = {"both silent": {"control", "treatment"}, "treatment silent": {"treatment"}}
        world.service.silent = frozenset(silent.get(fault, ()))
        world.service.treatment_errors = 0.9 if fault == "harm" else 0.01
        world.traffic.failing = fault == "traffic fails"
        if fault.startswith("clock"):
            world.clock.set_utc(world.clock.utc() + (5_000 if fault == "clock forward" else -5_000))
            world.service._until = world.clock.utc()
        if fault in ("pause", "resume", "advance"):
            world.journal.ask(Asked(what=fault, by="ann"))  # type: ignore[arg-type]


async def end_of(world: World, faults: list[str]) -> RolloutState:
    """Leads through these, eighty seconds each, and then on with the last of them until the rollout has ended."""
    breaking = Breaking(world)
    task = asyncio.create_task(world.controller().run())
    turns = [*faults, *[""] * (LONGEST // 80)]
    for index, fault in enumerate(turns):
        if fault:
            await breaking.begin(fault)
        if index == len(faults) and breaking.fault in ("traffic fails", "journal fails"):
            await breaking.begin("none")  # nothing can be taken away, or written, while they last
        if fault in ("restart", "another leads"):
            if fault == "restart":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            other = asyncio.create_task(world.controller("next").run())
            await world.clock.run_for(5.0)
            if fault == "another leads":
                (told,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(told, RolloutState):  # it ended just before
                    await other
                    return told
                assert isinstance(told, StaleEpoch)
            task = other
        for _ in range(8):
            if task.done():
                return await task
            await world.clock.run_for(10.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    raise AssertionError(f"{faults}: still {fold('feed/1', world.journal.read())}")


def check_end(world: World, state: RolloutState) -> None:
    assert state.ended
    assert state.phase == fold("feed/1", world.journal.read()).phase
    assert state.want is not None
    assert world.traffic.served.serves_as(state.want)
    latched = [index for index, split in enumerate(world.traffic.sets) if split.latched]
    if state.phase == "rolled_back":
        assert world.traffic.served.latched
        assert not [split for split in world.traffic.sets[latched[0] :] if split.share]
    else:
        assert world.traffic.served.share == 1.0
        assert not latched


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_stays_broken_the_rollout_ends(
    make_world: Callable[..., World], make_plan: Callable[..., RolloutPlan], fault: str
):
    for before in ([], ["none"], ["pause"]):
        world = make_world(faulty_plan(make_plan, "automatic"))
        state = await end_of(world, [*before, fault])
        check_end(world, state)
        if fault not in HARMLESS:
            assert state.phase == "rolled_back"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(FAULTS), max_size=8), st.sampled_from(["automatic", "manual"]))
def test_whatever_breaks_in_whatever_order_the_rollout_ends(
    make_world: Callable[..., World],
    make_plan: Callable[..., RolloutPlan],
    faults: list[str],
    gate: str,
):
    world = make_world(faulty_plan(make_plan, gate))
    check_end(world, asyncio.run(end_of(world, faults)))
