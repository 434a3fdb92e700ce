"""Remote configuration, twice: three services that were proposed, and the one table that does the job.

`python -m fairlead_systems.remote_config.service` is the one process of the treatment,
`python -m fairlead_systems.remote_config.three_services ROLE` one of the control's three; `RemoteConfig` is what
`fairlead try remote_config` plays. Importing this package costs little: what the run needs is imported when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.errors import MissingExtra
from fairlead.trial import Arm, Figure, Mechanism, Phase, Plan, Running, Settings
from fairlead_systems.remote_config.mechanisms import MECHANISMS

if TYPE_CHECKING:
    import numpy as np

    from fairlead.lab import Samples
    from fairlead.metrics import Metric, Target

__all__ = ["RemoteConfig"]

_PACKAGES = ("aiohttp", "httptools", "numpy", "psutil", "sqlalchemy", "starlette", "uvicorn", "uvloop")
"""What the walk and the processes import."""


def _require_packages() -> None:
    # Before anything is started: what a process misses would show as its death, with a log to read.
    for package in _PACKAGES:
        try:
            found = find_spec(package) is not None
        except ImportError:
            found = False
        if not found:
            raise MissingExtra(package, "try")


class RemoteConfig:
    """The system `remote_config`."""

    name = "remote_config"
    title = "Remote configuration"
    summary = (
        "A page reads its configuration before it can be used. Proposed was a personalisation layer of three services: "
        "profiles, rules, assembly. Control is that layer, well written. Treatment is one process with one table and a "
        "cached response, which gives the same answers. Each arm meets a database that hangs and processes that crash."
    )
    mechanisms: Sequence[Mechanism] = MECHANISMS
    simulated: Sequence[str] = (
        "the database that hangs: every query of the arm's processes waits in its thread; SQLite itself is real, and "
        "on the same disk for both arms",
        "users, segments and their settings: made from the seed; nobody changes any during the run",
        "a crash: SIGKILL, half a second in which the port refuses, then a start; connections wait while it starts",
        "the network: loopback, no loss, no distance; between three services on three machines each hop costs more",
        "the clients: one open-loop load engine on the same machine and the same cores as the services; they keep "
        "nothing between requests and send no ETag",
    )

    inputs: Sequence[str] = ("data/*.db",)

    @property
    def metrics(self) -> Sequence[Metric]:
        from fairlead_systems.remote_config.figures import METRICS

        return METRICS

    @property
    def targets(self) -> Sequence[tuple[str, Target]]:
        from fairlead_systems.remote_config.figures import TARGETS

        return TARGETS

    def plan(self, settings: Settings) -> Plan:
        _require_packages()
        from fairlead_systems.remote_config.system import make_plan

        return make_plan(settings)

    def start(self, plan: Plan, settings: Settings, directory: Path) -> AbstractAsyncContextManager[Running]:
        from fairlead_systems.remote_config.system import start

        return start(plan, settings, directory)

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        from fairlead_systems.remote_config.figures import measure

        return measure(arm, phase, observed, samples, slices)
