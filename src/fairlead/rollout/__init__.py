"""Lets a change out by stages, and takes it back by itself when it does harm.

A `RolloutPlan` says which stages and guardrails; a `Controller` leads it: it moves `Traffic`, looks at `Facts`, and
writes all it wants, has, sees and decides into a `Journal`, from which another one goes on when it dies. Treatment is
compared with control, unit by unit, by tests that may be looked at as often as one likes; a rollback outranks
everything, takes treatment away in one step and is final.

One controller leads a rollout, wherever it runs; what processes share is the journal and the traffic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.rollout.guardrail import Evaluation, Reason, Verdict
from fairlead.rollout.plan import Guardrail, RolloutPlan, Stage
from fairlead.rollout.state import Phase, RolloutState
from fairlead.rollout.tally import Tally
from fairlead.rollout.traffic import Split, Traffic

if TYPE_CHECKING:
    from fairlead.rollout.controller import Controller
    from fairlead.rollout.evidence import DecisionLog
    from fairlead.rollout.facts import EventFacts, Facts, ReadingFacts
    from fairlead.rollout.flag_traffic import FlagTraffic
    from fairlead.rollout.journal import Journal, MemoryJournal
    from fairlead.rollout.steady import SteadyPeriod, steady_periods
else:
    # Imported when first asked for: a plan can be read and checked without a database.
    _LATER = {
        "Controller": "controller",
        "DecisionLog": "evidence",
        "EventFacts": "facts",
        "Facts": "facts",
        "FlagTraffic": "flag_traffic",
        "Journal": "journal",
        "MemoryJournal": "journal",
        "Notice": "people",
        "ReadingFacts": "facts",
        "SteadyPeriod": "steady",
        "steady_periods": "steady",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "Controller",
    "DecisionLog",
    "Evaluation",
    "EventFacts",
    "Facts",
    "FlagTraffic",
    "Guardrail",
    "Journal",
    "MemoryJournal",
    "Notice",
    "Phase",
    "ReadingFacts",
    "Reason",
    "RolloutPlan",
    "RolloutState",
    "Split",
    "Stage",
    "SteadyPeriod",
    "Tally",
    "Traffic",
    "Verdict",
    "steady_periods",
]
