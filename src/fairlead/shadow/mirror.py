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
from functools import partial
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar, get_args

from xxhash import xxh3_64_intdigest

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.circuit_breaker import CircuitBreaker
from fairlead.calls.fallback import _degraded
from fairlead.calls.policy import Policy
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import RequestContext, current
from fairlead.errors import InvalidInput
from fairlead.shadow.comparison import Answer, Comparison, error_name
from fairlead.shadow.diff import FieldDiff
from fairlead.shadow.mark import is_shadow, shadow_context
from fairlead.shadow.report import ShadowReport, ShadowTally
from fairlead.telemetry.event import MirrorOutcome
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.queries import current_count

if TYPE_CHECKING:
    from fairlead.telemetry.redact import Redactor
    from fairlead.telemetry.sink import EventSink

__all__ = ["Mirror", "MirrorDrop"]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SPAN = 2**64
_SEED = 0x5AD0  # ours alone: who is mirrored must not hang together with the flags' buckets
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
`too_large`, `incomplete`, `encoded`: its body or its answer could not be kept whole, or is compressed; `incomplete` as
well if the caller left without an answer. `disabled`: also what was cut short by `close`. `broken`: what was handed in
raised."""


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
        self._share = 1.0
        self.set_share(share)
        self._noise_share = noise_share
        self._concurrency = concurrency
        self._start_within = start_within
        self._rng = rng or random.Random()
        self._tally = ShadowTally(name, fields=fields)
        self._breaker = breaker or CircuitBreaker(f"{name} candidate", minimum_calls=10, clock=clock)
        self._comparison = Comparison(
            name=name,
            diff=diff or FieldDiff(),
            timeout=timeout,
            policy=Policy(name=f"{name} shadow", clock=clock),
            breaker=self._breaker,
            again_breaker=CircuitBreaker(f"{name} control again", minimum_calls=10, clock=clock),
            tally=self._tally,
            redactor=redactor,
            shown=frozenset(shown),
            sink=sink,
            clock=clock,
            rng=self._rng,
        )
        self._view = view
        self._seed = xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), _SEED)
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
        except BaseException:  # the caller has left
            self._tally.drop("incomplete")
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
            elif self._closed or not self._share:
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
                task.add_done_callback(self._forget)
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
                await self._comparison.judge(control, candidate, again, context)
            except (asyncio.CancelledError, KeyboardInterrupt):
                raise
            except BaseException:  # the task's edge: nobody awaits its outcome
                self._broken("a comparison failed")

    async def _viewed(self, arm: Callable[[], Awaitable[object]]) -> object:
        assert self._view is not None  # noqa: S101 - only made where there is one
        return self._view(await arm())

    def _draw(self, unit: str) -> float:
        if not unit:
            return self._rng.random()
        return xxh3_64_intdigest(unit.encode("utf-8", "surrogatepass"), self._seed) / _SPAN

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # also one that had not begun: the mirror was closed, or the loop ends
            self._tally.drop("disabled")

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
