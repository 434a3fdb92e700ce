"""One comparison: both arms asked in an order drawn by lot, judged field by field, and written down.

The candidate, and control once more for the noise, each have the mirror's timeout and a circuit breaker. An error is an
answer as well, and is compared by its class: a candidate that fails as control does is no worse.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.calls.policy import Policy
from fairlead.clock import Clock
from fairlead.context import Priority, RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, InvalidInput
from fairlead.shadow.diff import Differences, FieldDiff
from fairlead.shadow.report import FieldExample, ShadowTally
from fairlead.telemetry.event import MirrorOutcome, ShadowCompared

if TYPE_CHECKING:
    from fairlead.telemetry.redact import Redactor
    from fairlead.telemetry.sink import EventSink

__all__ = ["Answer", "Comparison", "error_name"]

_log = logging.getLogger(__name__)

_MOST_NAMED = 100
_LONGEST_SHOWN = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one side answered. A candidate may return one, to say more than its value."""

    value: object = None
    """What is compared."""
    seconds: float | None = None
    """Its own time; None: as the mirror measures it."""
    error: str = ""
    """Class name of the error that it ended in; compared by, unless `value` is what its caller was shown instead."""
    failed: bool = False
    """Whether the answer speaks against the candidate as an error would: a 503."""
    whole: bool = True
    """False: it was too large to be kept, or is compressed, so nothing is compared; the outcome is `cut`, and nobody's
    failure."""

    @property
    def answered(self) -> bool:
        """Whether there is a value to compare."""
        return not self.error or self.value is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a mirror compares, and where it writes the outcome down."""

    name: str
    """The mirror's."""
    diff: FieldDiff
    timeout: float
    """Seconds for each answer."""
    policy: Policy
    breaker: CircuitBreaker
    again_breaker: CircuitBreaker
    """Control is spared likewise: asking it again must not add to its trouble."""
    tally: ShadowTally
    redactor: Redactor | None
    shown: Collection[str]
    sink: EventSink | None
    clock: Clock
    rng: random.Random

    async def judge(
        self,
        control: Answer,
        candidate: Callable[[], Awaitable[object]],
        again: Callable[[], Awaitable[object]] | None,
        context: RequestContext,
    ) -> None:
        if self.breaker.state is not BreakerState.CLOSED:
            again = None  # a candidate that may not be asked needs no noise to be compared with
        first = again is not None and self.rng.random() < 0.5
        repeated = (
            await self._guarded(self.again_breaker, again, control, context) if first and again else None
        )
        answered = await self._guarded(self.breaker, candidate, control, context)
        if answered is None:
            self.tally.drop("circuit_open")
            return
        if again and not first:
            repeated = await self._guarded(self.again_breaker, again, control, context)
        noise: Differences | None = None
        outcome: MirrorOutcome
        try:
            found = await self._differences(control, answered)
            if repeated is not None:
                noise = await self._differences(control, repeated)
        except InvalidInput as error:
            _log.debug("%s: %s", self.name, error)
            found, noise, outcome = Differences(fields={}), None, "unreadable"
        else:
            if found.cut or (noise is not None and noise.cut):
                outcome = "cut"
            elif not found.fields:
                outcome = "same"
            elif answered.error:
                outcome = "timeout" if answered.error == _TIMEOUT else "failed"
            else:
                outcome = "different"
        self._record(control, answered, repeated, found, noise, outcome, context)

    async def _guarded(
        self,
        breaker: CircuitBreaker,
        arm: Callable[[], Awaitable[object]],
        control: Answer,
        context: RequestContext,
    ) -> Answer | None:
        """Its answer; None if it was not asked, as its circuit is open."""
        answer = None
        try:
            with breaker.permit():
                answer = await self._ask(arm, context)
                if answer.answered:
                    is_worse = answer.failed and not (control.failed or control.error)
                else:
                    is_worse = answer.error != control.error
                if is_worse:
                    raise _CountsAgainstIt
        except (_CountsAgainstIt, CircuitOpen):
            pass
        return answer

    async def _ask(self, arm: Callable[[], Awaitable[object]], context: RequestContext) -> Answer:
        clock = self.clock
        began = clock.now()
        background = RequestContext(
            request_id=context.request_id,
            deadline=Deadline(began + self.timeout, clock),
            priority=Priority.BACKGROUND,
            targeting_key=context.targeting_key,
        )
        try:
            with request_context(background):
                value = await self.policy.call(arm)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a candidate must not end the service
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # It is us who are cancelled, not something within the candidate, whatever that makes of it.
                raise asyncio.CancelledError from error
            return Answer(error=error_name(error), seconds=clock.now() - began)
        seconds = clock.now() - began
        if not isinstance(value, Answer):
            return Answer(value=value, seconds=seconds)
        return value if value.seconds is not None else replace(value, seconds=seconds)

    async def _differences(self, control: Answer, other: Answer) -> Differences:
        if not other.whole:
            return Differences(fields={}, cut=True)
        if not (control.answered and other.answered):
            same = control.error == other.error
            return Differences(fields={} if same else {"error": (control.error, other.error)})
        steps = self.diff.steps(control.value, other.value)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                found: Differences = done.value
                return found
            await asyncio.sleep(0)

    def _record(
        self,
        control: Answer,
        answered: Answer,
        repeated: Answer | None,
        found: Differences,
        noise: Differences | None,
        outcome: MirrorOutcome,
        context: RequestContext,
    ) -> None:
        judged = outcome not in ("cut", "unreadable")
        one = found.fields if judged else {}
        two = noise.fields if judged and noise is not None else {}
        # One bound for both: a field that only one of them may name would be found to differ, or not to.
        paths = sorted({*one, *two})
        event = ShadowCompared(
            at_utc_seconds=self.clock.utc(),
            request_id=context.request_id,
            mirror=self.name,
            outcome=outcome,
            differing=[self._name(path) for path in paths[:_MOST_NAMED] if path in one],
            again=judged and noise is not None,
            differing_again=[self._name(path) for path in paths[:_MOST_NAMED] if path in two],
            unnamed=max(0, len(paths) - _MOST_NAMED),
            control_seconds=control.seconds or 0.0,
            candidate_seconds=answered.seconds if answered.answered else None,
            again_seconds=repeated.seconds if repeated is not None and repeated.answered else None,
            error=answered.error,
        )
        self.tally.add(event)
        if judged and self.redactor is not None:
            self._keep_examples(found, context, self.redactor)
        if self.sink is not None:
            self.sink.emit(event)

    def _name(self, path: str) -> str:
        # A key that looks like a name may still be somebody's.
        return self.redactor.text(path) if self.redactor is not None else path

    def _keep_examples(self, found: Differences, context: RequestContext, redactor: Redactor) -> None:
        for path, (control, candidate) in found.fields.items():
            if self.tally.wants_example(path):
                show = redactor.text if path in self.shown or path == "error" else redactor.token
                self.tally.example(
                    path,
                    FieldExample(
                        request_id=context.request_id,
                        control=show(_text(control))[:_LONGEST_SHOWN],
                        candidate=show(_text(candidate))[:_LONGEST_SHOWN],
                    ),
                )


_TIMEOUT = "TimeoutError"


def error_name(error: BaseException) -> str:
    """What an error is compared by: its class, and one name for all that say that time ran out."""
    return _TIMEOUT if isinstance(error, TimeoutError) else type(error).__name__


class _CountsAgainstIt(Exception):
    """Tells a breaker that an answer was none."""


def _text(value: object) -> str:
    if isinstance(value, bytes):  # in JSON it would be base64, in which nothing personal is found
        return value.decode("utf-8", "backslashreplace")
    try:
        return msgspec.json.encode(value).decode()
    except Exception:  # what JSON cannot hold is shown as Python would
        try:
            return repr(value)
        except Exception:
            return f"a {type(value).__name__} that cannot be shown"
