"""Processes that the tests start: they write into a ledger until they have done, or are killed.

They are forked from a server that has imported what they need: eight of them start in the time of one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

from fairlead.ledger import Ledger
from fairlead.store import Database
from tests.unit.ledger.contract import decision, figure

Tell = Callable[[object], None]


def record(where: str, who: str, count: int, tell: Tell) -> None:
    """Tells the ids that are recorded, as soon as it knows."""
    ledger = Ledger(Database(where))
    for n in range(count):
        id = ledger.record_evidence(figure(metric=f"of_{who}", n=n))
        tell(id)
        ledger.record_decision(decision(id, decided_by=who, reason=f"the {n}th"))


def freeze(where: str, who: str, count: int, tell: Tell) -> None:
    """Tells the versions that it has made."""
    ledger = Ledger(Database(where))
    for n in range(count):
        tell(ledger.freeze("home_feed", f"{who} {n}".encode()).version)


def migrate(where: str, who: str, count: int, tell: Tell) -> None:
    tell("ready")
    Database(where).migrate()


class Writer:
    """One process, and what it has told; a file, since that outlives it."""

    def __init__(
        self,
        run: Callable[..., None],
        where: str,
        who: str,
        count: int,
        told: Path,
        start: Barrier | None = None,
    ) -> None:
        self._told = told / who
        self._told.touch()
        self.process: BaseProcess = _CONTEXT.Process(
            target=_run, args=(run, where, who, count, self._told, start)
        )
        self.process.start()

    def told(self) -> list[str]:
        return self._told.read_text().splitlines()

    def ended(self) -> list[str]:
        """What it has told, having ended well."""
        self.process.join(60)
        assert self.process.exitcode == 0
        return self.told()


def _run(
    run: Callable[..., None], where: str, who: str, count: int, told: Path, start: Barrier | None
) -> None:
    with told.open("w", buffering=1) as file:
        if start is not None:
            start.wait(60)
        run(where, who, count, lambda what: print(what, file=file))


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "fairlead.store.migration", "fairlead.store.postgres"])


def barrier(parties: int) -> Barrier:
    return _CONTEXT.Barrier(parties)
