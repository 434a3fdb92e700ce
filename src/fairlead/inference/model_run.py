"""One run of a model, on whichever thread: timed, checked, and never an exception.

A model's answer is believed only if it is one finite number per row. Everything else is a `Failure` with its
reason in one line, so that the scheduler can answer with the fallback and count why.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from math import isfinite

from fairlead.inference.cost import CostWindow
from fairlead.inference.feature_schema import Rows
from fairlead.inference.scored import DegradedBy
from fairlead.inference.scorer import Scorer

__all__ = ["WARM_UP_RUNS", "Failure", "Outcome", "Run", "WarmUp", "attempt", "resolve"]

_WARM_UP_UNMEASURED = 5
WARM_UP_RUNS = 30
_WARM_UP_ENOUGH = 0.25


@dataclass(frozen=True, slots=True)
class Failure:
    reason: DegradedBy
    detail: str = ""


Outcome = tuple[float, ...] | Failure


@dataclass(slots=True, eq=False)
class Run:
    """One call on its way through the executor."""

    scorer: Scorer
    costs: CostWindow
    rows: Rows
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Outcome] | None
    """None for a probe: nobody waits, only its cost is of interest."""
    left: bool = field(default=False)
    """The caller no longer waits."""

    def run(self) -> None:
        if self.left:
            return
        try:
            outcome = attempt(self.scorer, self.costs, self.rows)
        except BaseException as error:
            # The edge of the thread: an escape here would leave the pool one thread short.
            outcome = Failure(DegradedBy.SCORER_FAILED, _one_line(error))
        self._post(outcome)

    def abandon(self) -> None:
        self._post(Failure(DegradedBy.CLOSED))

    def _post(self, outcome: Outcome) -> None:
        if self.answer is not None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed, so nobody is left to tell
                self.loop.call_soon_threadsafe(resolve, self.answer, outcome)


def resolve(answer: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _one_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a model's own exception, which cannot say what it is
        text = ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:300]


def attempt(scorer: Scorer, costs: CostWindow, rows: Rows) -> Outcome:
    start = costs.clock.now()
    try:
        raw = scorer.score(rows)
    except Exception as error:
        return Failure(DegradedBy.SCORER_FAILED, _one_line(error))
    costs.observe(costs.clock.now() - start)
    try:
        scores = tuple([float(score) for score in raw])
    except Exception as error:  # the answer may be lazy, and fail as any model may
        return Failure(
            DegradedBy.INVALID_SCORES, f"{scorer.version}: not a sequence of numbers: {_one_line(error)}"
        )
    if len(scores) != len(rows):
        return Failure(
            DegradedBy.INVALID_SCORES, f"{scorer.version}: {len(scores)} scores for {len(rows)} rows"
        )
    if not all(map(isfinite, scores)):
        return Failure(DegradedBy.INVALID_SCORES, f"{scorer.version}: a score is NaN or infinite")
    return scores


class WarmUp:
    """The first runs: some unmeasured, for allocations and caches, then until 30 or a quarter of a second."""

    def __init__(self, scorer: Scorer, costs: CostWindow, rows: Rows) -> None:
        self._scorer = scorer
        self._costs = costs
        self._rows = rows
        self.done = threading.Event()
        self.failure: Failure | None = None

    def run(self) -> None:
        try:
            self._measure()
        except BaseException as error:  # the edge of the thread
            self.failure = Failure(DegradedBy.SCORER_FAILED, _one_line(error))
        finally:
            self.done.set()

    def abandon(self) -> None:
        self.done.set()

    def _measure(self) -> None:
        unmeasured = CostWindow(self._costs.clock)
        end = self._costs.clock.now() + _WARM_UP_ENOUGH
        for number in range(_WARM_UP_UNMEASURED + WARM_UP_RUNS):
            costs = unmeasured if number < _WARM_UP_UNMEASURED else self._costs
            outcome = attempt(self._scorer, costs, self._rows)
            if isinstance(outcome, Failure):
                self.failure = outcome
                return
            if number >= _WARM_UP_UNMEASURED and self._costs.clock.now() > end:
                return
