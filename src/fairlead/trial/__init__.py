"""Plays a reference system: the same load on its arms, phase by phase, and a report of what came of it.

A `System` says what it is made of and how to start it; the walk drives it and records every request;
`conclude` turns the record into a `Result` whose figures carry their definitions. What needs numpy and
aiohttp is imported on use.
"""

from __future__ import annotations

from fairlead.trial.definitions import load_metrics
from fairlead.trial.result import Figure
from fairlead.trial.system import (
    Arm,
    LetOut,
    Mechanism,
    OneService,
    Phase,
    Plan,
    Running,
    Settings,
    System,
    find_systems,
    load_system,
)
from fairlead.trial.users import Responded

__all__ = [
    "Arm",
    "Figure",
    "LetOut",
    "Mechanism",
    "OneService",
    "Phase",
    "Plan",
    "Responded",
    "Running",
    "Settings",
    "System",
    "find_systems",
    "load_metrics",
    "load_system",
]
