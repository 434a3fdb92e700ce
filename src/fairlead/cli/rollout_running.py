"""The last rollout of a change file, and the plan that it was started with.

Who takes treatment away at night must not have to mend a file first. So these commands go by what was frozen at the
start: a file that was edited since, or broken, or deleted changes nothing for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairlead.change import parse_change, read_change
from fairlead.change.rollout import rollout_plan
from fairlead.errors import FairleadError, InvalidInput
from fairlead.ledger import Ledger
from fairlead.rollout import Journal, RolloutPlan, RolloutState
from fairlead.rollout.journal import plan_sha256
from fairlead.store import Database

__all__ = ["CHANGE_PLACE", "Running", "plan_from", "plan_of", "running"]

CHANGE_PLACE = "change"
"""Among the places of a rollout: its change file."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A rollout that was started, and may have ended."""

    plan: RolloutPlan
    journal: Journal
    state: RolloutState


def plan_of(change: Path) -> RolloutPlan:
    """The rollout that a change file describes now. Raises InvalidInput, BrokenDocument."""
    return plan_from(read_change(change), change)


def plan_from(content: bytes, change: Path) -> RolloutPlan:
    """The rollout that these bytes of a change file describe. Raises InvalidInput, BrokenDocument."""
    try:
        return rollout_plan(parse_change(content, str(change)))
    except InvalidInput as error:
        if str(error).startswith(f"{change}: "):
            raise
        raise type(error)(f"{change}: {error} (fairlead change check {change} lists all)") from error


def running(change: Path, database: Database) -> Running:
    """The last rollout of this file. Raises InvalidInput where there was none, and what is wrong with the file where
    it was never frozen.
    """
    now: RolloutPlan | None = None
    problem: FairleadError | None = None
    try:
        now = plan_of(change)
    except FairleadError as error:
        problem = error
    if now is not None:
        journal = Journal.last(database, now.name)
    else:
        journal = Journal.last_at(database, CHANGE_PLACE, str(change.absolute()))
    if journal is None:
        if problem is not None:
            raise problem
        raise InvalidInput(
            f"{now.name if now else change}: no rollout of it in {database.name}; fairlead rollout start begins one"
        )
    state = journal.state()
    plan = now
    if now is None or plan_sha256(now) != state.plan_sha256:
        plan = _frozen(journal.change, state.plan_sha256, Ledger(database)) or now
    if plan is None:
        raise problem or InvalidInput(f"{change}: it has no plan of {state.rollout}")
    return Running(plan=plan, journal=journal, state=state)


def _frozen(name: str, sha256: str, ledger: Ledger) -> RolloutPlan | None:
    """The frozen plan of this hash; else, as for a drill, None."""
    for version in ledger.history(name):
        try:
            plan = rollout_plan(parse_change(version.content, f"{name}, version {version.version}"))
        except FairleadError:
            continue  # of another Fairlead, or before it had a rollout
        if plan_sha256(plan) == sha256:
            return plan
    return None
