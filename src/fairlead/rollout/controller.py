"""Leads a rollout from its first stage to its end, and takes it back by itself.

    every `look_every`:   read the journal → gather → evaluate → judge → write → carry out → read back

What it wants is written before it is done, and what it has after it was read back, so a controller that is killed
anywhere goes on where the journal ends. A rollback is the exception: traffic is moved at once, while the entry is being
written, and goes on being moved though nothing can be written at all.

One controller leads; a second one takes the lead by claiming a higher epoch, and the first finds its next entry refused
and stops without touching traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import DatabaseUnavailable, FairleadError, InvalidInput, NoSpace, StaleEpoch
from fairlead.ledger import Decision
from fairlead.rollout.entry import Decided, Ended, Entry, Had, Looked, Wanted, one_line
from fairlead.rollout.evidence import DecisionLog, Recorded
from fairlead.rollout.facts import Facts
from fairlead.rollout.journal import RolloutJournal, plan_sha256
from fairlead.rollout.judgement import Judgement, Look, judge
from fairlead.rollout.people import Notice, People
from fairlead.rollout.plan import RolloutPlan
from fairlead.rollout.state import RolloutState, fold
from fairlead.rollout.traffic import Split, Traffic
from fairlead.rollout.watch import Watch, said

__all__ = ["Controller"]

_Answer = TypeVar("_Answer")
_RETRY = 1.0
"""Seconds between attempts at what has to succeed: taking treatment away."""
_ASK_AGAIN = 3
"""Times that traffic is asked again after treatment was taken away."""
_POLL = 1.0
"""Seconds between looks into the journal for what a person asked."""
_ANSWER = 5.0
"""Seconds that a look waits for the journal or the ledger, at least; as long as `look_every`, if that is longer."""


class Controller:
    """Leads one rollout. `run` until it ends; cancelled, it leaves traffic as it is, and another may go on."""

    def __init__(
        self,
        plan: RolloutPlan,
        *,
        journal: RolloutJournal,
        traffic: Traffic,
        facts: Facts,
        decisions: DecisionLog | None = None,
        notice: Notice | None = None,
        clock: Clock = SYSTEM_CLOCK,
        by: str = "controller",
    ) -> None:
        """by: which process this is, for whoever reads the journal. decisions: where evidence and decisions are
        recorded; None: in the journal only. Raises InvalidInput where the journal was started with another plan.
        """
        self._plan = plan
        self._journal = journal
        self._traffic = traffic
        self._watch = Watch(plan, facts, clock=clock)
        self._decisions = decisions
        self._clock = clock
        self._by = by
        self._epoch = 0
        self._state = RolloutState(rollout=journal.rollout)
        self._people = People(notice, state=lambda: self._state, write=self._write, clock=clock)
        self._looked_at = -math.inf
        self._written_at = 0.0
        self._moving_since: float | None = None
        self._phase_key: tuple[object, ...] = ()
        self._phase_at = 0.0
        self._held = ""
        self.withdrawn_at: float | None = None
        """By the clock, when treatment was read back as taken away; None while it was not."""
        self._at_journal = asyncio.Lock()
        # One each: what hangs there takes no thread from what moves traffic.
        self._journal_thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-journal")
        self._ledger_thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-ledger")

    @property
    def state(self) -> RolloutState:
        """Where the rollout stands, as this controller knows."""
        return self._state

    async def run(self) -> RolloutState:
        """Leads the rollout to its end.

        Raises StaleEpoch when another controller takes the lead, or another rollout the traffic; InvalidInput for
        another plan; DatabaseUnavailable when the journal does not answer at the start; BrokenDocument when it holds
        an entry that cannot be read, at the start or once treatment was taken away.
        """
        await self.begin()
        try:
            while not self._state.ended:
                await self.step()
                if not self._state.ended:
                    await self._clock.sleep(min(self._plan.look_every, _POLL))
            await self._stays_withdrawn()
            return self._state
        finally:
            await self._people.heard()

    async def begin(self) -> None:
        """Takes the lead, and finds out where traffic is."""
        async with self._at_journal:
            await self._read_on()
        # Before the lead is taken: whoever cannot lead must not stop the one who does.
        if self._state.plan_sha256 != plan_sha256(self._plan):
            raise InvalidInput(
                f"rollout {self._journal.rollout}: it was started with another plan; go on with the frozen one, or "
                "roll it back and start anew"
            )
        if self._state.ended:
            return
        self._written_at = self._clock.now()
        self._epoch = await self._ask_journal(self._journal.claim, self._by)
        await self._catch_up()
        if self._state.ended or self._state.withdrawn or self._state.rollback_asked:
            return
        if await self._rolled_back_before():
            return
        # Somebody may have taken treatment away, and could not write it down.
        served = None
        with contextlib.suppress(Exception):  # what cannot be read is set, and read, next
            async with asyncio.timeout(self._plan.settle):
                served = await self._traffic.read()
        if served is not None and await self._follow(served):
            return
        if self._state.want is not None:
            # Under this epoch from now on, so that the one before can move nothing.
            await self._move(self._state.stage)

    async def take_back(self, reason: str) -> RolloutState:
        """Takes the lead and treatment away, whatever the plan; returns when nobody is served it any more.

        A rollout that has ended stays as it is.
        """
        self._epoch = await self._ask_journal(self._journal.claim, self._by)
        await self._catch_up()
        if not self._state.ended:
            judgement = Judgement(verdict="rollback", reason=reason)
            await self._roll_back(judgement)
            await self._stays_withdrawn()
        return self._state

    async def step(self) -> RolloutState:
        """One turn: reads what was asked, looks if it is time, and carries out what follows."""
        try:
            await self._catch_up()
        except StaleEpoch:
            raise
        except FairleadError as error:
            await self._people.page(f"the journal cannot be read: {said(error)}")
        if self._state.ended:
            return self._state
        if self._state.withdrawn:
            await self._roll_back(Judgement(verdict="rollback", reason=self._state.reason or "asked for"))
            return self._state
        if self._state.rollback_asked:
            await self._roll_back(
                judge(self._plan, self._state, Look(evaluations=(), guarded_seconds=0.0), waited=0.0)
            )
            return self._state
        if self._state.want is None:
            if self._state.paused:  # nobody is served yet, and there is nothing to look at
                await self._end_a_long_pause()
                return self._state
            await self._move(0)
        elif (
            self._state.have is None
            or not self._state.have.serves_as(self._state.want)
            or self._state.want.epoch != self._epoch
        ):
            await self._move(self._state.stage)
        if self._state.stage_began_utc_seconds is None or self._state.withdrawn:
            return self._state
        if self._clock.now() - self._looked_at >= self._plan.look_every:
            await self._look()
        return self._state

    async def _end_a_long_pause(self) -> None:
        waited = self._clock.now() - self._phase_at
        judgement = judge(self._plan, self._state, Look(evaluations=(), guarded_seconds=0.0), waited=waited)
        if judgement.verdict == "rollback":
            await self._roll_back(judgement)

    # Reading and writing the journal ---------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        async with self._at_journal:
            await self._read_on()
        if self._state.epoch > self._epoch:
            raise StaleEpoch(
                f"rollout {self._journal.rollout}: {self._state.leader} leads now, with epoch {self._state.epoch}"
            )

    async def _read_on(self) -> None:
        new = await self._ask_journal(self._journal.read, self._state.number)
        self._state = fold(self._journal.rollout, new, after=self._state)
        key = (self._state.phase, self._state.stage)
        if key != self._phase_key:
            # What the controllers before this one have waited counts: a deadline is not put off by starting again.
            self._phase_key, self._phase_at = key, self._clock.now() - self._state.waited_seconds

    async def _ask_journal(self, call: Callable[..., _Answer], *args: object) -> _Answer:
        return await self._in_time(self._journal_thread, call, *args) if self._journal.blocks else call(*args)

    async def _in_time(
        self, thread: ThreadPoolExecutor, call: Callable[..., _Answer], *args: object
    ) -> _Answer:
        """The answer of a database that may hang, and must not keep the guard from its next look.

        What is written late all the same is found by the next reading, and was fenced by its epoch.
        """
        longest = max(_ANSWER, self._plan.look_every)
        try:
            async with asyncio.timeout(longest):
                return await asyncio.get_running_loop().run_in_executor(thread, call, *args)
        except TimeoutError as late:
            raise DatabaseUnavailable(
                f"no answer within {longest:g} s; whether it was written is not known"
            ) from late

    async def _write(self, *entries: Entry) -> None:
        async with self._at_journal:
            await self._ask_journal(self._journal.append, entries, self._epoch)
            # Written is written, and must not be written again because it could not be read: the next turn reads it.
            with contextlib.suppress(FairleadError):
                await self._read_on()

    # Moving traffic --------------------------------------------------------------------------------------------------

    async def _move(self, index: int) -> None:
        """Sends traffic to a stage, and says so when it is there. Rolls back what does not arrive in time."""
        if self._moving_since is None:
            self._moving_since = self._clock.now()
        try:
            problem = await self._moved(index)
        except StaleEpoch:
            raise
        except FairleadError as error:
            # What cannot be written down is not guarded either: no look comes before the entry.
            problem = f"the journal cannot be written: {said(error)}"
        if not problem:
            self._moving_since = None
        elif self._clock.now() - self._moving_since > self._plan.settle:
            await self._roll_back(
                Judgement(
                    verdict="rollback",
                    reason=f"traffic could not be moved within {self._plan.settle:g} s: {problem}",
                    page=f"traffic could not be moved: {problem}",
                )
            )

    async def _moved(self, index: int) -> str:
        """Sends traffic to a stage; returns what stood in the way, empty when it is there."""
        stage = self._plan.stages[index]
        want = self._state.want
        if want is None or self._state.stage != index or want.epoch != self._epoch:
            await self._write(Wanted(stage=index, share=stage.share, audience=stage.audience))
        if self._state.rollback_asked:
            return ""  # meanwhile; the next turn takes away what is there
        split = self._split(stage.share, stage.audience)
        try:
            async with asyncio.timeout(self._plan.settle):
                await self._traffic.set(split)
                served = await self._traffic.read()
        except StaleEpoch:
            await self._catch_up()
            try:
                async with asyncio.timeout(self._plan.settle):
                    served = await self._traffic.read()
            except Exception as error:  # asked again the next turn
                return said(error)
            if await self._follow(served):
                return ""
            raise
        except Exception as error:  # a driver's defect has to end in a rollback, too
            return said(error)
        if not served.serves_as(split):
            return f"{self._traffic.name} serves {served.share:.4%} and not {split.share:.4%}"
        await self._write(Had(stage=index, share=served.share, audience=served.audience))
        self._looked_at = self._written_at = self._clock.now()
        return ""

    async def _follow(self, served: Split) -> bool:
        """Whether traffic was rolled back without a word in the journal, which then gets it."""
        if not (served.latched and served.rollout == self._journal.rollout):
            return False
        await self._roll_back(Judgement(verdict="rollback", reason="traffic was found rolled back"))
        return True

    def _split(self, share: float, audience: str = "", *, latched: bool = False) -> Split:
        return Split(
            share=share, audience=audience, rollout=self._journal.rollout, epoch=self._epoch, latched=latched
        )

    async def _roll_back(
        self, judgement: Judgement, looked: Looked | None = None, *, recorded: Recorded | None = None
    ) -> None:
        """Takes treatment away, writes it down, and does not return before both are done.

        looked: what it stands on. recorded: where it stands in the ledger already.
        """
        written = asyncio.create_task(self._write_rollback(judgement, looked, recorded))
        try:
            began = self._clock.now()
            while True:
                problem = ""
                try:
                    async with asyncio.timeout(max(_RETRY, self._plan.settle)):
                        await self._traffic.set(self._split(0.0, latched=True))
                        served = await self._traffic.read()
                    if served.share == 0 and not served.audience:
                        break
                    problem = f"{self._traffic.name} still serves {served.share:.4%}"
                except StaleEpoch as error:
                    # A later rollout's traffic: this one has none to take away.
                    problem = str(error)
                    break
                except Exception as error:  # whatever a driver raises, treatment has to go
                    problem = said(error)
                if self._clock.now() - began > self._plan.settle:
                    await self._people.page(f"treatment cannot be taken away: {problem}")
                await self._clock.sleep(_RETRY)
            self.withdrawn_at = self._clock.now()
            await written
        finally:
            if not written.done():
                written.cancel()
                await asyncio.gather(written, return_exceptions=True)
        if judgement.page:
            await self._people.page(judgement.page)
        await self._insist(
            Had(stage=self._state.stage, share=0.0, latched=True),
            Ended(outcome="rolled_back", reason=judgement.reason),
        )
        self._people.tell(f"rolled back: {judgement.reason}")
        while not self._state.ended:  # it could not be read; an entry of a newer Fairlead never can
            try:
                await self._catch_up()
            except (DatabaseUnavailable, NoSpace):
                await self._clock.sleep(_RETRY)

    async def _stays_withdrawn(self) -> None:
        """Asks again for a few seconds: a proxy that was just starting anew may have read what was served before."""
        if self.withdrawn_at is None:
            return
        for _ in range(_ASK_AGAIN):
            await self._clock.sleep(_RETRY)
            with contextlib.suppress(FairleadError, OSError, TimeoutError):
                async with asyncio.timeout(max(_RETRY, self._plan.settle)):
                    served = await self._traffic.read()
                    if served.share or served.audience:
                        await self._traffic.set(self._split(0.0, latched=True))

    async def _write_rollback(
        self, judgement: Judgement, looked: Looked | None, recorded: Recorded | None
    ) -> None:
        state = self._state
        if state.phase == "rolling_back" and state.want is not None and state.want.latched:
            return  # by a controller that was killed after it
        # The ledger first: killed in between, the next one finds traffic rolled back and the journal silent, and says
        # so in both; the other way round the ledger would never hear of it.
        recorded = recorded or await self._record_surely(judgement, looked)
        await self._insist(
            *([looked] if looked is not None else []),
            Decided(
                stage=state.stage,
                verdict="rollback",
                reason=judgement.reason,
                by=self._by,
                decision=recorded.decision,
                evidence=recorded.evidence,
            ),
            Wanted(stage=state.stage, share=0.0, latched=True),
        )

    async def _insist(self, *entries: Entry) -> None:
        """Writes until it is written: for what has been done already."""
        began = self._clock.now()
        while True:
            try:
                await self._write(*entries)
                return
            except StaleEpoch:
                raise
            except FairleadError as error:
                if self._clock.now() - began > self._plan.settle:
                    await self._people.page(f"the journal cannot be written: {said(error)}")
                await self._clock.sleep(_RETRY)

    # Looking ---------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        if not await self._is_served():
            return
        state = self._state
        look = await self._watch.look(state)
        now = self._clock.now()
        self._looked_at = now
        waited = now - self._phase_at
        judgement = judge(self._plan, state, look, waited=waited)
        looked = Looked(
            stage=state.stage,
            guarded_seconds=look.guarded_seconds,
            waited_seconds=waited,
            evaluations=look.evaluations,
            units=dict(look.units),
            sample_ratio_p=look.sample_ratio_p,
            silent=tuple(look.silent),
        )
        if judgement.verdict == "rollback":
            await self._roll_back(judgement, looked)
            return
        try:
            await self._carry_out(judgement, looked)
            self._written_at = now
        except StaleEpoch:
            raise
        except FairleadError as error:
            # Nothing was decided, and nothing moved; the next look tries again.
            await self._people.page(f"nothing can be decided, as it cannot be written down: {said(error)}")
            if now - self._written_at > self._plan.patience:
                reason = f"nothing could be written down for {self._plan.patience:g} s: {said(error)}"
                await self._roll_back(Judgement(verdict="rollback", reason=reason), looked)

    async def _is_served(self) -> bool:
        """Whether traffic still is where it was sent: somebody may have moved it, or started the proxy again."""
        want = self._state.want
        assert want is not None  # noqa: S101 - the stage is served
        try:
            async with asyncio.timeout(self._plan.settle):
                served = await self._traffic.read()
        except Exception as error:  # what it serves goes on being watched
            await self._people.page(f"traffic cannot be asked: {said(error)}")
            return True
        if await self._follow(served):
            return False
        if not served.serves_as(want):
            await self._people.page(
                f"{self._traffic.name} served {served.share:.4%} where {want.share:.4%} was wanted; set again"
            )
            await self._move(self._state.stage)
            return not self._state.withdrawn
        return True

    async def _carry_out(self, judgement: Judgement, looked: Looked) -> None:
        if judgement.page:
            await self._people.page(judgement.page)
        if judgement.verdict == "hold":
            hold = Decided(
                stage=looked.stage,
                verdict="hold",
                reason=judgement.reason,
                state=judgement.state,
                by=self._by,
            )
            await self._write(looked, *([hold] if self._changed(judgement) else []))
            return
        await self._catch_up()
        if self._state.rollback_asked or self._state.paused:
            return  # meanwhile
        if await self._rolled_back_before():  # or an advance that was written too late
            return
        recorded = await self._record(judgement, looked)
        advance = Decided(
            stage=looked.stage,
            verdict="advance",
            reason=judgement.reason,
            ground=judgement.ground,
            by=self._by,
            decision=recorded.decision,
            evidence=recorded.evidence,
        )
        following = looked.stage + 1
        if following == len(self._plan.stages):
            await self._write(looked, advance, Ended(outcome="completed", reason=judgement.reason))
            self._people.tell(f"completed: {judgement.reason}")
            return
        stage = self._plan.stages[following]
        await self._write(
            looked, advance, Wanted(stage=following, share=stage.share, audience=stage.audience)
        )
        self._people.tell(f"advanced to {stage.name}: {judgement.reason}")
        await self._move(following)

    def _changed(self, judgement: Judgement) -> bool:
        """Whether a hold is worth an entry: its kind changed, not a figure in its sentence."""
        kind = "".join(letter for letter in judgement.reason if not letter.isdigit())
        changed = kind != self._held or judgement.state not in ("", self._state.phase)
        self._held = kind
        return changed

    # The ledger ------------------------------------------------------------------------------------------------------

    async def _record(self, judgement: Judgement, looked: Looked) -> Recorded:
        """The ids in the ledger."""
        if self._decisions is None:
            return Recorded()
        return await self._in_time(
            self._ledger_thread,
            self._decisions.record,
            self._plan,
            self._journal.rollout,
            judgement,
            looked,
            self._clock.utc(),
        )

    async def _rolled_back_before(self) -> bool:
        """Carries out a rollback that the ledger has and the journal has not, and says whether there was one."""
        try:
            lost = await self._lost()
        except FairleadError as error:
            await self._people.page(f"the ledger cannot be asked: {said(error)}")
            return False
        if lost is None:
            return False
        recorded, decision = lost
        reason = f"decided by a controller that ended before it was done: {decision.reason}"
        await self._roll_back(Judgement(verdict="rollback", reason=reason), recorded=recorded)
        return True

    async def _lost(self) -> tuple[Recorded, Decision] | None:
        """The rollback of this rollout that the journal does not know, as its controller ended in between.

        An advance that it does not know is taken back in the ledger, as nothing moved.
        """
        if self._decisions is None:
            return None
        name, last = self._journal.rollout, self._state.decision
        lost = await self._in_time(self._ledger_thread, self._decisions.unknown, self._plan, name, last)
        if lost is None or lost[1].verdict == "rollback":
            return lost
        at = self._clock.utc()
        await self._in_time(self._ledger_thread, self._decisions.take_back, self._plan, name, lost[1], at)
        return None

    async def _record_surely(self, judgement: Judgement, looked: Looked | None) -> Recorded:
        """Records a rollback as soon as it can be; what the ledger refuses for good, the journal still gets."""
        state = self._state
        looked = looked or Looked(stage=state.stage, guarded_seconds=state.guarded_seconds, evaluations=())
        while True:
            try:
                # An advance that could not be written is taken back; and this one may be there, its answer lost.
                lost = await self._lost()
                if lost is not None and lost[1].reason.endswith(one_line(judgement.reason)):
                    return lost[0]
                return await self._record(judgement, looked)
            except (DatabaseUnavailable, NoSpace) as error:
                await self._people.page(f"the ledger cannot be written: {said(error)}")
                await self._clock.sleep(_RETRY)
            except FairleadError as error:
                await self._people.page(f"the ledger refuses a decision: {said(error)}")
                return Recorded()
