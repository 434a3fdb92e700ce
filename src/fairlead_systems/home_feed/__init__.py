"""The home feed of a short-video service: from a slow page to a proven one.

`python -m fairlead_systems.home_feed.feed`, `.candidate_source`, `.label_service` and `.feature_service` are its
processes; `HomeFeed` is what `fairlead try home_feed` plays. Importing this package costs little: what the run needs
is imported when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fairlead.trial import Mechanism, Responded, Settings
from fairlead_systems.home_feed.mechanisms import MECHANISMS
from fairlead_systems.reference_system import ReferenceSystem

if TYPE_CHECKING:
    from fairlead.lab import Samples

__all__ = ["HomeFeed"]


class HomeFeed(ReferenceSystem):
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
        "users' weeks: watch time, sessions, clicks and crashes are declared and not found. Watch time is "
        "log-normal and "
        "much like the week before; a user keeps exp(−0.6 · mean page latency in seconds) of it, and three quarters of "
        "that if a page failed, by what each really met in this run; a third of the loss shows as sessions; crashes "
        "(1 %) and clicks (6 %) respond to nothing",
        "the canary's defect: 30 % of the pages of the variant `regressed` end in an error; it, the service, the flag, "
        "its events and the rollback are real",
        "the time and the users of the whole plan: virtual days, made users of whom each meets one request that the "
        "run recorded of the arm that the flag gave him; controller, flag file, guardrails and ledger are real",
        "the clients: one open-loop load engine on the same machine and the same cores as the services",
    )

    inputs: Sequence[str] = ("flags.json", "users/*")
    needs: ClassVar[Mapping[str, str]] = {
        "aiohttp": "aiohttp",
        "duckdb": "duckdb",
        "grpc": "grpcio",
        "httptools": "httptools",
        "ibis": "ibis-framework",
        "numpy": "numpy",
        "onnxruntime": "onnxruntime",
        "psutil": "psutil",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "uvloop": "uvloop",
    }

    def respond(
        self, samples: Mapping[str, Samples], started_at: float, settings: Settings, directory: Path
    ) -> Responded | None:
        responded: Responded = self._part("users").respond(samples, started_at, settings, directory)
        return responded
