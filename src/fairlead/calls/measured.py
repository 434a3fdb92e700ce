"""Rate, errors and duration of a policy's calls, for policies that are exported and at no cost to all others.

`Policy.call` has no line to spare for a question that most calls answer with no. So `export` changes the class of the
policy, and of those derived from it, to one whose `call` and `attempt` have a watch around them. What a fallback
answered counts as the failure that it was: the metric is the dependency's, and the caller's view is in `fell_back`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from fairlead.calls.attempt import Attempt
from fairlead.calls.policy import FallingBack, Policy
from fairlead.calls.stats import Measures
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["measure"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def measure(policy: Policy, registry: MetricRegistry) -> None:
    """From now on counts and times the calls of `policy` and of all that share its state."""
    measures = Measures(policy.name, registry)
    family = {policy}
    waiting = [policy]
    while waiting:
        each = waiting.pop()
        for other in (each._other, each._single):
            if other is not None and other not in family:
                family.add(other)
                waiting.append(other)
    for each in family:
        each._measures = measures
        each.__class__ = _MeasuredFallingBack if isinstance(each, FallingBack) else _Measured


class _Measured(Policy):
    """A policy with a watch."""

    __slots__ = ()

    async def call(self, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        began = self._now()
        try:
            result = await Policy.call(self, fn, *args, **kwargs)
        except BaseException as error:
            if (measures := self._measures) is not None:
                measures.count(error, self._now() - began)
            raise
        if (measures := self._measures) is not None:
            measures.duration.observe(self._now() - began)
            measures.succeeded._value += 1.0  # add() checks what cannot be wrong here
        return result

    def attempt(self) -> Attempt:
        return _MeasuredAttempt(self)


class _MeasuredFallingBack(FallingBack, _Measured):
    """The fallback outside, the watch inside."""

    __slots__ = ()


class _MeasuredAttempt(Attempt):
    """One attempt with a watch."""

    __slots__ = ("_measures", "_now", "_watch_began")

    def __init__(self, policy: _Measured) -> None:
        super().__init__(policy)
        self._measures = cast(Measures, policy._measures)
        self._now = policy._now

    async def __aenter__(self) -> Attempt:
        self._watch_began = self._now()
        try:
            return await super().__aenter__()
        except BaseException as error:
            self._measures.count(error, self._now() - self._watch_began)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        except BaseException as other:
            self._measures.count(other, self._now() - self._watch_began)
            raise
        if error is not None:
            self._measures.count(error, self._now() - self._watch_began)
        else:
            self._measures.duration.observe(self._now() - self._watch_began)
            self._measures.succeeded.add()
