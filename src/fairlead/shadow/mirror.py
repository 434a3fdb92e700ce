"""Asks a candidate what control was asked, after control's caller has its answer, and counts how they differ.

A new ranker, query or service is proven by the requests that it will get, and must not be felt by those who send them.

    control answers → its caller goes on
            └ enters? → task of the mirror → candidate, within its own timeout ┐
                                           └ control again, for some requests  ┴→ diff by field → tally, event

A request that finds no place is dropped and counted: nothing waits, so a candidate that hangs costs a bounded number of
tasks, and a circuit breaker ends even that. What a comparison raises, however it ends, reaches no caller; a caller that
is cancelled after its answer takes no comparison along. The candidate runs marked (`is_shadow`), as background work,
with the id and the unit of the request and a deadline of its own.

All state is per process, and belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar, get_args

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.calls.fallback import _degraded
from fairlead.calls.policy import Policy
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import Priority, RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, InvalidInput
from fairlead.shadow.diff import Differences, FieldDiff
from fairlead.shadow.mark import is_shadow, shadow_context
from fairlead.shadow.report import FieldExample, ShadowReport, ShadowTally
from fairlead.telemetry.event import MirrorOutcome, ShadowCompared
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.queries import current_count

if TYPE_CHECKING:
    from fairlead.telemetry.redact import Redactor
    from fairlead.telemetry.sink import EventSink

__all__ = ["Answer", "AnswerTooLarge", "Mirror", "MirrorDrop"]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SPAN = 2**64
_SEED = 0x5AD0  # ours alone: who is mirrored must not hang together with the flags' buckets
_MOST_NAMED = 100
_LONGEST_SHOWN = 120
_GRACE = 1.0

MirrorDrop = Literal[
    "disabled",
    "sampled_out",
    "marked",
    "not_idempotent",
    "full",
    "late",
    "circuit_open",
    "too_large",
    "incomplete",
    "encoded",
    "broken",
]
"""Why a request was not compared. `marked`: it is itself a shadow. `late`: the loop was too busy to begin in time.
`too_large`, `incomplete`, `encoded`: its body or its answer could not be kept whole, or is compressed. `broken`: what
was handed in raised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one side answered. A candidate may return one, to say more than its value."""

    value: object = None
    """What is compared."""
    seconds: float | None = None
    """Its own time; None: as the mirror measures it."""
    error: str = ""
    """Class name of the error that it ended in."""
    failed: bool = False
    """Whether the answer speaks against the candidate as an error would: a 503."""


class AnswerTooLarge(Exception):
    """Raised by a candidate for an answer larger than it may keep: the comparison is `cut`, and nobody's failure."""


class Mirror:
    """Compares a candidate with control, for a share of the calls. One per candidate and process.

    name: of the comparison, in reports, events and metrics.
    diff: what counts as a difference.
    share: of the calls that are compared, 0–1; changed by `set_share` at any time. 0 switches it off.
    noise_share: of the compared, in how many control is asked a second time, 0–1. Without it no difference can be told
        from noise; it costs control that much more work. 0.2.
    timeout: seconds for each answer of the comparison, above 0 up to 60.
    concurrency: comparisons at once, 1 to 10,000; more are dropped.
    start_within: seconds in which a comparison must have begun, above 0 up to 60. A loop that needs longer is busy with
        real requests, so the comparison is dropped. 0.1.
    breaker: stops asking a candidate that fails or hangs. None: one that opens when half of 10 calls or more in 10 s
        failed.
    fields: tracked at most, 1 to 10,000; differences in later ones are only counted.
    view: what of an answer is compared, if not all. Control's is taken on its caller's path, before the caller has it:
        so a `view` that copies makes it safe to change the answer afterwards.
    redactor: replaces what is personal in examples. None: no examples are kept.
    shown: fields whose values examples show; of any other a token stands there, the same for equal values.
    sink: gets a ShadowCompared for each comparison.

    >>> async def old(x): return {"sum": x + 1}
    >>> async def new(x): return {"sum": x + 2}
    >>> async def main():
    ...     mirror = Mirror("sums", noise_share=1.0)
    ...     answer = await mirror.call(old, new, 1)
    ...     await mirror.close()
    ...     return answer, mirror.report().discordant()
    >>> asyncio.run(main())
    ({'sum': 2}, {'sum': (0, 1)})
    """

    def __init__(
        self,
        name: str,
        *,
        diff: FieldDiff | None = None,
        share: float = 1.0,
        noise_share: float = 0.2,
        timeout: float = 1.0,
        concurrency: int = 8,
        start_within: float = 0.1,
        breaker: CircuitBreaker | None = None,
        view: Callable[[object], object] | None = None,
        fields: int = 200,
        redactor: Redactor | None = None,
        shown: Collection[str] = (),
        sink: EventSink | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        check_number("Mirror.noise_share", noise_share, low=0.0, high=1.0)
        check_number("Mirror.timeout", timeout, above=0.0, high=60.0)
        check_whole("Mirror.concurrency", concurrency, low=1, high=10_000)
        check_number("Mirror.start_within", start_within, above=0.0, high=60.0)
        check_whole("Mirror.fields", fields, low=1, high=10_000)
        if breaker is not None and breaker.clock is not clock:
            raise InvalidInput(f"Mirror {name!r}: its CircuitBreaker reads another clock; pass both one")
        if isinstance(shown, str):
            raise InvalidInput(f"Mirror.shown: {shown!r} is one string; pass a tuple of fields")
        self.name = name
        self.clock = clock
        self.timeout = timeout
        self._diff = diff or FieldDiff()
        self._share = 1.0
        self.set_share(share)
        self._noise_share = noise_share
        self._concurrency = concurrency
        self._start_within = start_within
        self._breaker = breaker or CircuitBreaker(f"{name} candidate", minimum_calls=10, clock=clock)
        # Control is spared likewise: asking it again must not add to its trouble.
        self._again_breaker = CircuitBreaker(f"{name} control again", minimum_calls=10, clock=clock)
        self._policy = Policy(name=f"{name} shadow", clock=clock)
        self._view = view
        self._redactor = redactor
        self._shown = frozenset(shown)
        self._sink = sink
        self._rng = rng or random.Random()
        self._seed = xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), _SEED)
        self._tally = ShadowTally(name, fields=fields)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Comparisons that run."""
        return len(self._tasks)

    def set_share(self, share: float) -> None:
        """Compares this share of the calls from now on, 0–1. Raises InvalidInput."""
        check_number("Mirror.share", share, low=0.0, high=1.0)
        self._share = float(share)

    def report(self) -> ShadowReport:
        """What was compared and dropped so far, in this process."""
        return self._tally.report()

    async def call(
        self,
        control: Callable[_P, Awaitable[_T]],
        candidate: Callable[_P, Awaitable[object]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """What `control` answers, or raises; `candidate` is asked with the same arguments afterwards, by the mirror.

        For questions only: both may be asked once more than they were, so neither may change anything. Arguments and
        answer are read after this returns: do not change them, or see `view`.
        """
        if not self.enters(current().targeting_key):
            return await control(*args, **kwargs)
        began = self.clock.now()
        arms = partial(candidate, *args, **kwargs), partial(control, *args, **kwargs)
        try:
            value = await control(*args, **kwargs)
        except Exception as error:
            self.offer(Answer(error=error_name(error), seconds=self.clock.now() - began), *arms)
            raise
        seconds = self.clock.now() - began
        if self._view is None:
            self.offer(Answer(value=value, seconds=seconds), *arms)
            return value
        try:
            seen = self._view(value)
        except Exception:  # the caller's answer is there; nothing of ours may take it away
            self._broken("its view failed")
        else:
            self.offer(Answer(value=seen, seconds=seconds), *(partial(self._viewed, arm) for arm in arms))
        return value

    def enters(self, unit: str = "") -> bool:
        """Whether a call that begins now shall be offered; if not, it is counted by reason.

        unit: what the share is drawn by, the same units each time; empty: by lot.
        """
        if self._closed or not self._share:
            reason: MirrorDrop = "disabled"
        elif is_shadow():
            reason = "marked"
        elif self._share < 1.0 and self._draw(unit) >= self._share:
            reason = "sampled_out"
        elif len(self._tasks) >= self._concurrency:
            reason = "full"
        elif self._breaker.refuses():
            reason = "circuit_open"
        else:
            return True
        self._tally.drop(reason)
        return False

    def drop(self, reason: MirrorDrop) -> None:
        """Counts a call that entered and cannot be offered."""
        self._tally.drop(reason)

    def offer(
        self,
        control: Answer,
        candidate: Callable[[], Awaitable[object]],
        again: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Begins a comparison with what control answered. Neither waits nor raises.

        again: asks control once more; None: this request says nothing about noise.
        """
        try:
            if len(self._tasks) >= self._concurrency:
                self._tally.drop("full")
            elif self._closed:
                self._tally.drop("disabled")
            else:
                if again is not None and self._rng.random() >= self._noise_share:
                    again = None
                context = current()
                task = asyncio.get_running_loop().create_task(
                    self._compare(control, candidate, again, context, self.clock.now()),
                    name=f"{self.name} shadow",
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except Exception:  # never the caller's loss
            self._broken("a comparison could not begin")

    async def close(self, timeout: float = 1.0) -> None:
        """Compares nothing from now on, lets what runs end within `timeout` seconds, and cancels the rest.

        A candidate that does not end when it is cancelled is left behind a second later.
        """
        check_number("Mirror.close timeout", timeout, low=0.0, high=86_400.0)
        self._closed = True
        try:
            if await self._ended(timeout):
                return
        finally:
            for task in tuple(self._tasks):
                task.cancel()
        if not await self._ended(_GRACE):
            _log.warning("%s: %d candidates ignore their cancellation", self.name, len(self._tasks))

    def export(self, registry: MetricRegistry) -> None:
        """Shows in `registry` what was compared and dropped, and how many comparisons run."""
        compared = registry.counter(
            "fairlead_shadow_compared_total",
            "Comparisons of a candidate with control, by outcome.",
            labels=("mirror", "outcome"),
        )
        for outcome in get_args(MirrorOutcome):
            compared.labels(mirror=self.name, outcome=outcome).track(partial(self._tally.outcome, outcome))
        dropped = registry.counter(
            "fairlead_shadow_dropped_total",
            "Requests that were not compared, by reason.",
            labels=("mirror", "reason"),
        )
        for reason in get_args(MirrorDrop):
            dropped.labels(mirror=self.name, reason=reason).track(partial(self._tally.drops, reason))
        in_flight = registry.gauge("fairlead_shadow_in_flight", "Comparisons that run.", labels=("mirror",))
        in_flight.labels(mirror=self.name).track(lambda: len(self._tasks))
        self._breaker.export(registry)

    # What follows runs in the mirror's own tasks.

    async def _compare(
        self,
        control: Answer,
        candidate: Callable[[], Awaitable[object]],
        again: Callable[[], Awaitable[object]] | None,
        context: RequestContext,
        offered: float,
    ) -> None:
        # What is counted for the request counts its own work only. The rest of its context (a tenant, a locale) stays.
        current_count.set(None)
        _degraded.set(None)
        # Gives way once, so that the caller goes first on a loop that runs new tasks at once, too.
        await asyncio.sleep(0)
        if self.clock.now() - offered > self._start_within:
            self._tally.drop("late")
            return
        with shadow_context():
            try:
                await self._judge(control, candidate, again, context)
            except asyncio.CancelledError:
                self._tally.drop("disabled")  # the mirror was closed, or the loop ends
                raise
            except Exception:  # the task's edge: nobody awaits its outcome
                self._broken("a comparison failed")

    async def _judge(
        self,
        control: Answer,
        candidate: Callable[[], Awaitable[object]],
        again: Callable[[], Awaitable[object]] | None,
        context: RequestContext,
    ) -> None:
        if self._breaker.state is not BreakerState.CLOSED:
            again = None  # a candidate that may not be asked needs no noise to be compared with
        first = again is not None and self._rng.random() < 0.5
        repeated = (
            await self._guarded(self._again_breaker, again, control, context) if first and again else None
        )
        answered = await self._guarded(self._breaker, candidate, control, context)
        if answered is None:
            self._tally.drop("circuit_open")
            return
        if again and not first:
            repeated = await self._guarded(self._again_breaker, again, control, context)
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
            too_large = _CUT in (answered.error, repeated and repeated.error)
            if too_large or found.cut or (noise is not None and noise.cut):
                outcome = "cut"
            elif answered.error and answered.error != control.error:
                outcome = "timeout" if answered.error == _TIMEOUT else "failed"
            else:
                outcome = "different" if found.fields else "same"
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
                if answer.error not in ("", _CUT, control.error) or (answer.failed and not control.failed):
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
                value = await self._policy.call(arm)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a candidate must not end the service
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # it is us who are cancelled, not something within the candidate
            return Answer(error=error_name(error), seconds=clock.now() - began)
        seconds = clock.now() - began
        if not isinstance(value, Answer):
            return Answer(value=value, seconds=seconds)
        return value if value.seconds is not None else replace(value, seconds=seconds)

    async def _differences(self, control: Answer, other: Answer) -> Differences:
        if control.error or other.error:
            same = control.error == other.error
            return Differences(fields={} if same else {"error": (control.error, other.error)})
        steps = self._diff.steps(control.value, other.value)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                found: Differences = done.value
                return found
            await asyncio.sleep(0)

    async def _viewed(self, arm: Callable[[], Awaitable[object]]) -> object:
        assert self._view is not None  # noqa: S101 - only made where there is one
        return self._view(await arm())

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
        event = ShadowCompared(
            at_utc_seconds=self.clock.utc(),
            request_id=context.request_id,
            mirror=self.name,
            outcome=outcome,
            differing=self._named(found) if judged else [],
            again=judged and noise is not None,
            differing_again=self._named(noise) if judged and noise is not None else [],
            control_seconds=control.seconds or 0.0,
            candidate_seconds=None if answered.error else answered.seconds,
            again_seconds=None if repeated is None or repeated.error else repeated.seconds,
            error=answered.error,
        )
        self._tally.add(event)
        if judged and self._redactor is not None:
            self._keep_examples(found, context, self._redactor)
        if self._sink is not None:
            self._sink.emit(event)

    def _named(self, found: Differences) -> list[str]:
        paths = sorted(found.fields)[:_MOST_NAMED]
        # A key that looks like a name may still be somebody's.
        return [self._redactor.text(path) for path in paths] if self._redactor is not None else paths

    def _keep_examples(self, found: Differences, context: RequestContext, redactor: Redactor) -> None:
        for path, (control, candidate) in found.fields.items():
            if self._tally.wants_example(path):
                show = redactor.text if path in self._shown or path == "error" else redactor.token
                self._tally.example(
                    path,
                    FieldExample(
                        request_id=context.request_id,
                        control=show(_text(control))[:_LONGEST_SHOWN],
                        candidate=show(_text(candidate))[:_LONGEST_SHOWN],
                    ),
                )

    def _draw(self, unit: str) -> float:
        if not unit:
            return self._rng.random()
        return xxh3_64_intdigest(unit.encode("utf-8", "surrogatepass"), self._seed) / _SPAN

    def _broken(self, what: str) -> None:
        self._tally.drop("broken")
        _log.debug("%s: %s", self.name, what, exc_info=True)

    async def _ended(self, timeout: float) -> bool:
        """Whether all comparisons ended within `timeout` seconds of the mirror's clock."""
        if not self._tasks:
            return True
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def look(_: object) -> None:
            if not self._tasks and not ended.done():
                ended.set_result(True)

        def give_up() -> None:
            if not ended.done():
                ended.set_result(False)

        for task in self._tasks:
            task.add_done_callback(look)  # after the callback that takes it out of the set
        timer = self.clock.call_at(self.clock.now() + timeout, give_up)
        try:
            return await ended
        finally:
            timer.cancel()


_TIMEOUT = "TimeoutError"
_CUT = "AnswerTooLarge"


def error_name(error: BaseException) -> str:
    """What an error is compared by: its class, and one name for all that say that time ran out."""
    return _TIMEOUT if isinstance(error, TimeoutError) else type(error).__name__


class _CountsAgainstIt(Exception):
    """Tells a breaker that an answer was none."""


def _text(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except Exception:  # what JSON cannot hold is shown as Python would
        return repr(value)
