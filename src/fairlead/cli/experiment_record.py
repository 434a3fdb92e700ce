"""An experiment's figures into the ledger, where the change file lies frozen as it is: `analyze --store`.

Asked before anything is computed: who sees the figures first and freezes then has promised nothing.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from fairlead.change import moved_promises
from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import InvalidInput
from fairlead.experiment import ExperimentPlan, ExperimentResult, Units
from fairlead.experiment.evidence import Scope, caveats_of, metric_evidence
from fairlead.ledger import FrozenChange, Ledger
from fairlead.store import Database

__all__ = ["Record"]


class Record:
    """A ledger that holds the change file of an experiment; a context manager.

    Entering it raises InvalidInput where the file is not frozen there, or not as it is, and what a database raises.
    """

    def __init__(self, store: str, plan: ExperimentPlan, content: bytes, path: Path) -> None:
        self._store = store
        self._plan = plan
        self._content = content
        self._path = path

    def __enter__(self) -> Self:
        if "://" not in self._store and not Path(self._store).exists():
            raise InvalidInput(f"{self._store}: no such ledger; {self._freeze()}")
        self._database = Database(self._store).__enter__()
        try:
            self._ledger = Ledger(self._database)
            self._frozen = self._checked(self._ledger.frozen(self._plan.name))
        except BaseException:
            self._database.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._database.close()

    @property
    def database(self) -> Database:
        """The ledger's, in which a rollout of the change has its journal, too."""
        return self._database

    def recorded(self, result: ExperimentResult, units: Units) -> ExperimentResult:
        """The result with every figure recorded, and the ids of the entries. Blocks."""
        assert result.data_sha256 is not None  # noqa: S101 - the caller hashed the events
        caveats = (*caveats_of(result), *self._broken_promises(units))
        at = SYSTEM_CLOCK.utc()
        scopes = {metric.name: Scope.of(metric) for metric in self._plan.metrics}
        metrics = []
        for found in result.metrics:
            figures = metric_evidence(
                found,
                result,
                scopes[found.name],
                change=self._plan.name,
                data_sha256=result.data_sha256,
                measured_at=at,
                caveats=caveats,
            )
            ids = tuple(self._ledger.record_evidence(figure) for figure in figures)
            metrics.append(msgspec.structs.replace(found, evidence=ids))
        return msgspec.structs.replace(result, metrics=tuple(metrics))

    def _checked(self, frozen: FrozenChange | None) -> FrozenChange:
        if frozen is None:
            raise InvalidInput(f"{self._path}: not frozen in {self._database.name}; {self._freeze()}")
        if frozen.sha256 != hashlib.sha256(self._content).hexdigest():
            raise InvalidInput(
                f"{self._path}: not the file that is frozen in {self._database.name} as version {frozen.version}; "
                f"fairlead change show --diff says what changed"
            )
        return frozen

    def _freeze(self) -> str:
        return f"fairlead change freeze {self._path} --store {self._store}, before there are data"

    def _broken_promises(self, units: Units) -> list[str]:
        said = []
        if units.entered is not None and self._frozen.frozen_at_utc_seconds > units.entered[0]:
            at = datetime.fromtimestamp(self._frozen.frozen_at_utc_seconds, UTC)
            said.append(
                f"the change file was frozen on {at:%Y-%m-%d %H:%M} UTC, after the first unit had entered"
            )
        moved = moved_promises(self._ledger, self._plan.name)
        if moved:
            said.append(f"promises were moved after figures had been seen: {', '.join(moved)[:300]}")
        return said
