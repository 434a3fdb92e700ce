"""The home feed of a short-video service: from a slow page to a proven one.

`python -m fairlead_systems.home_feed.feed`, `.candidate_source`, `.label_service` and `.feature_service` are its
processes; `HomeFeed` is what `fairlead try home_feed` plays. Importing this package costs little: what the run needs
is imported when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.errors import MissingExtra
from fairlead.trial import Arm, Figure, Mechanism, Phase, Plan, Running, Settings
from fairlead_systems.home_feed.mechanisms import MECHANISMS

if TYPE_CHECKING:
    import numpy as np

    from fairlead.lab import Samples
    from fairlead.metrics import Metric, Target

__all__ = ["HomeFeed"]


_PACKAGES = {
    "aiohttp": "aiohttp",
    "grpc": "grpcio",
    "httptools": "httptools",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "psutil": "psutil",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
}
"""What the walk and the processes import, and the package that brings it."""


def _require_packages() -> None:
    # Before anything is started: what a process misses would show as its death, with a log to read.
    for module, package in _PACKAGES.items():
        try:
            found = find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            raise MissingExtra(package, "try")


class HomeFeed:
    """The system `home_feed`."""

    name = "home_feed"
    title = "Home feed"
    summary = (
        "A home feed asks three candidate sources, a label service and a feature service for every page it has not "
        "cached. When a topic goes viral or a dependency stalls, its p99 and its timeouts are what users notice. "
        "Control is what a competent team writes in a hurry; treatment gives each request a deadline and each source "
        "its share, shares loads, batches labels and features, and does without what does not come in time, except "
        "without a safety label."
    )
    mechanisms: Sequence[Mechanism] = MECHANISMS
    simulated: Sequence[str] = (
        "the downstreams' service time: a seeded log-normal sleep with rare stalls; "
        "workers, queues and refusals are real",
        "what a batch costs: 0.2 ms for each further item's features and 0.05 ms for its label, an assumption that "
        "favours batching over single calls",
        "ranking quality: the model is trained on made data; what int8 costs in quality stands in its manifest",
        "users, follows, topics, videos, features, labels and viewers' profiles: made from the seed",
        "embeddings: synthetic vectors of 32 numbers around 40 themes; the search over them is a real, exact matrix "
        "product",
        "popularity: a constant of the item, so that its staleness is measured and costs no order",
        "the network: loopback, no loss, no distance",
        "the viral event, the cleared cache and the stalled feature service: set off by the plan",
        "the clients: one open-loop load engine on the same machine and the same cores as the services",
    )

    inputs: Sequence[str] = ("flags.json",)

    @property
    def metrics(self) -> Sequence[Metric]:
        from fairlead_systems.home_feed.figures import METRICS

        return METRICS

    @property
    def targets(self) -> Sequence[tuple[str, Target]]:
        from fairlead_systems.home_feed.figures import TARGETS

        return TARGETS

    def plan(self, settings: Settings) -> Plan:
        _require_packages()
        from fairlead_systems.home_feed.system import make_plan

        return make_plan(settings)

    def start(self, plan: Plan, settings: Settings, directory: Path) -> AbstractAsyncContextManager[Running]:
        from fairlead_systems.home_feed.system import start

        return start(plan, settings, directory)

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        from fairlead_systems.home_feed.figures import measure

        return measure(arm, phase, observed, samples, slices)
