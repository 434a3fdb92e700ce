"""The change file: spec, rollout plan, experiment design and skeleton of the report, in one TOML file.

What a change promises is written down before it is measured, checked for what reviews usually find too late, and
frozen into the ledger, so that later nobody need be believed. Only this room knows the file: the rooms below take
plain plans and metrics.
"""

from __future__ import annotations

from fairlead.change.check import check_change
from fairlead.change.finding import Finding
from fairlead.change.freeze import Difference, compare_changes, freeze_change, moved_promises
from fairlead.change.madr import madr
from fairlead.change.parse import parse_change, read_change
from fairlead.change.scorecard import Flip, Scorecard, scorecard
from fairlead.change.sections import ChangeFile
from fairlead.change.template import new_change

__all__ = [
    "ChangeFile",
    "Difference",
    "Finding",
    "Flip",
    "Scorecard",
    "check_change",
    "compare_changes",
    "freeze_change",
    "madr",
    "moved_promises",
    "new_change",
    "parse_change",
    "read_change",
    "scorecard",
]
