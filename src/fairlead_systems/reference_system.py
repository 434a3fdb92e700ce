"""What every reference system does alike: importing it costs little, and a run brings the parts that it needs.

The package of a system has a module `system` (make_plan, start) and a module `figures` (METRICS, TARGETS, measure).
They are imported when they are first asked for: `fairlead try --list` must not wait for numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fairlead.errors import MissingExtra
from fairlead.trial import Arm, Figure, Phase, Plan, Responded, Running, Settings

if TYPE_CHECKING:
    import numpy as np

    from fairlead.lab import Samples
    from fairlead.metrics import Metric, Target
    from fairlead.slo import Objective

__all__ = ["ReferenceSystem"]


class ReferenceSystem:
    """A `fairlead.trial.System`, but for what it says of itself; the package that it lies in has its parts."""

    needs: ClassVar[Mapping[str, str]]
    """Modules that the walk and the processes import, and the package that brings each."""

    @property
    def metrics(self) -> Sequence[Metric]:
        found: Sequence[Metric] = self._part("figures").METRICS
        return found

    @property
    def targets(self) -> Sequence[tuple[str, Target]]:
        found: Sequence[tuple[str, Target]] = self._part("figures").TARGETS
        return found

    @property
    def objectives(self) -> Sequence[Objective]:
        found: Sequence[Objective] = getattr(self._part("figures"), "OBJECTIVES", ())
        return found

    @property
    def change(self) -> bytes | None:
        return files(type(self).__module__).joinpath("change.toml").read_bytes()

    def plan(self, settings: Settings) -> Plan:
        # Before anything is started: what a process misses would show as its death, with a log to read.
        for module, package in self.needs.items():
            if not _is_there(module):
                raise MissingExtra(package, "try")
        plan: Plan = self._part("system").make_plan(settings)
        return plan

    def start(self, plan: Plan, settings: Settings, directory: Path) -> AbstractAsyncContextManager[Running]:
        started: AbstractAsyncContextManager[Running] = self._part("system").start(plan, settings, directory)
        return started

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        figures: list[Figure] = self._part("figures").measure(arm, phase, observed, samples, slices)
        return figures

    def respond(
        self, samples: Mapping[str, Samples], started_at: float, settings: Settings, directory: Path
    ) -> Responded | None:
        return None

    def _part(self, name: str) -> Any:
        return import_module(f"{type(self).__module__}.{name}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
