"""A controller that is killed at every moment of a rollout: the next one ends it, and serves what is written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from fairlead.rollout import Journal
from fairlead.rollout.entry import Decided
from fairlead.rollout.state import RolloutState
from fairlead.store import Database
from tests.integration.rollout.leading import decided, lead, moves, prepare, process, served

KILLED = -9


def led(where: str, change: str, folder: Path, harm: bool, kill_at: int = 0) -> int | None:
    """The exit code of a controller that is killed at that moment; 0: at none."""
    child = process(lead, where, change, str(folder), harm, kill_at)
    child.join(60)
    return child.exitcode


def check_agreement(database: Database, change: str, folder: Path, state: RolloutState) -> None:
    """What is served is what the journal and the ledger say, and nothing was let in after a rollback."""
    now = served(folder)
    assert state.want is not None
    assert state.have is not None
    assert now.serves_as(state.want)
    assert now.serves_as(state.have)
    verdicts = decided(database, change)
    last = verdicts[-1]
    # What the ledger holds and nobody carried out is followed by a hold that says so.
    carried_out = [each for each, then in pairwise([*verdicts, ""]) if each != "hold" and then != "hold"]
    journal = Journal.last(database, change)
    assert journal is not None
    written = [each.entry for each in journal.read() if isinstance(each.entry, Decided)]
    assert carried_out == [each.verdict for each in written if each.verdict != "hold"], verdicts
    if state.phase == "rolled_back":
        assert (now.share, now.latched, last) == (0.0, True, "rollback")
    else:
        assert (now.share, now.latched, last) == (1.0, False, "advance")
    shares = [share for share, _ in moves(folder)]
    latched = [index for index, (_, latched) in enumerate(moves(folder)) if latched]
    if latched:
        assert set(shares[latched[0] :]) == {0.0}
    else:
        assert shares == sorted(shares)


@pytest.mark.parametrize("harm", [False, True], ids=["harmless", "harmful"])
def test_whenever_it_is_killed_the_next_controller_ends_the_rollout(
    where: str, database: Database, tmp_path: Path, harm: bool
):
    kill_at = 0
    code = KILLED
    while code == KILLED:
        kill_at += 3 if "://" in where else 1  # the engines differ in how they write, not in when
        change, folder = f"change_{kill_at}", tmp_path / str(kill_at)
        folder.mkdir()
        journal = prepare(database, change, folder)
        code = led(where, change, folder, harm, kill_at)
        if journal.state().phase == "rolled_back":
            assert served(folder).share == 0.0
        if code == KILLED and kill_at % 3 == 0:
            led(where, change, folder, harm, kill_at // 3 % 12 + 1)  # and the next one is killed as well
        assert led(where, change, folder, harm) == 0
        state = journal.state()
        assert state.phase == ("rolled_back" if harm else "completed"), (kill_at, state.reason)
        check_agreement(database, change, folder, state)
    assert code == 0
    assert kill_at > 30  # it was killed at each of so many moments, and then at none
