"""Prints every metric there is: `python scripts/metrics_reference.py > docs/reference/metrics.md`.

The page is made from a registry in which everything that exports is exported, so it cannot say other than the code. A
test compares, and shows the same registry to promtool.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import Iterable

from sqlalchemy import create_engine

from fairlead.admission import LoadShedder, RateLimit
from fairlead.admission.redis import RedisRateLimiter
from fairlead.cache import Cache, Codec, Composite, Field, Freshness, HotKeys, SecondTier, TwoNodes
from fairlead.cache.redis import RedisStore
from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Policy
from fairlead.diagnosis import WaitSampler
from fairlead.flags import FlagDelivery, FlagSet
from fairlead.inference import FeatureSchema, HeuristicScorer, Scheduler
from fairlead.migration import Backfill, Migration, Stage
from fairlead.migration.sqlalchemy import TableStore
from fairlead.shadow import Mirror
from fairlead.telemetry import (
    BufferedSink,
    FamilySnapshot,
    JsonLinesSegments,
    LoopLag,
    MetricRegistry,
    RegistrySnapshot,
    Spool,
    export_all,
)
from fairlead.telemetry.aggregator import Aggregator
from fairlead.telemetry.asgi import MetricsMiddleware
from fairlead.telemetry.nats import NatsToSegments
from fairlead.telemetry.sqlalchemy import export_engine

HEAD = """# Metrics

Made by `python scripts/metrics_reference.py > docs/reference/metrics.md`, from a registry in which everything is
exported; a test compares. How to get them: [the guide](../guides/telemetry-metrics.md).

Every value is counted **per process**. *Fleet* says what `WorkerMetrics` shows for all processes of a service: counters
and histograms add up exactly; a gauge is the sum, the largest or the smallest of the processes that live. Across
machines, a query does the same: `sum`, `max` or `min`. A metric without a unit counts things. A histogram `x` is three
series in Prometheus, `x_bucket`, `x_sum` and `x_count`, and one exponential histogram in OpenTelemetry. Label sets
beyond the registry's `max_label_sets` are counted under `_overflow`.
"""

UNITS = {"seconds": "seconds", "bytes": "bytes", "share": "0–1"}

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Requests", "`MetricsMiddleware`, around the application.", ("http_", "websocket_")),
    ("Event loop", "`LoopLag`, in the lifespan.", ("event_loop_",)),
    ("Waiting", "`fairlead.diagnosis.WaitSampler`, in the lifespan.", ("fairlead_waiter_",)),
    ("Process", "`export_process`, or `export_all`.", ("process_", "python_")),
    (
        "Dependencies",
        "`Policy.export`, and `export` of a `CircuitBreaker` or `ConcurrencyLimit` by itself. `what` is a name of "
        "`PolicyStats`.",
        ("fairlead_policy_", "fairlead_breaker_", "fairlead_limit_"),
    ),
    (
        "Cache",
        "`Cache.export` (`what`: of `CacheStats` or `TierStats`), `HotKeys.export`, `Composite(metrics=registry)`.",
        ("fairlead_cache_", "fairlead_hot_keys_"),
    ),
    (
        "Admission",
        "`LoadShedder(metrics=registry)`, and the rate limiters likewise.",
        ("fairlead_admission_", "fairlead_rate_limit_"),
    ),
    ("Flags", "`FlagDelivery.export`.", ("fairlead_flags_",)),
    ("Inference", "`Scheduler.export`.", ("fairlead_inference_",)),
    (
        "Migration",
        "`Migration(metrics=registry)`, and `Backfill` likewise. `fairlead_migration_stage` counts from 0, off, to 5, "
        "complete; for the whole fleet it is that of the process furthest behind.",
        ("fairlead_migration_",),
    ),
    ("Shadow", "`Mirror.export`; its candidate's circuit is shown as a breaker.", ("fairlead_shadow_",)),
    ("Database", "`fairlead.telemetry.sqlalchemy.export_engine`.", ("db_",)),
    (
        "Events",
        "`BufferedSink.export` (`what`: of `SinkStats`), `Spool.export`, `NatsToSegments.export`.",
        ("fairlead_events_", "fairlead_spool_", "fairlead_event_worker_"),
    ),
    (
        "Workers",
        "Added by the aggregator to the page of all workers.",
        ("fairlead_workers", "fairlead_metric_"),
    ),
)


async def _loads(key: int) -> int:
    return key


def everything() -> MetricRegistry:
    """A registry in which everything that exports is exported."""
    registry = MetricRegistry()
    limit, breaker = ConcurrencyLimit("profiles"), CircuitBreaker("profiles")
    schema = FeatureSchema(names=("age",), version="1")
    model, by_hand = (
        HeuristicScorer(schema, {"age": 1.0}, version=version) for version in ("model", "by hand")
    )
    callbacks = gc.callbacks[:]
    with Scheduler(model, fallback=by_hand) as scheduler:
        both = [
            SecondTier(
                RedisStore(f"redis://127.0.0.1:{port}", codec=Codec(int), namespace="profiles"), name=name
            )
            for port, name in ((1, "first"), (2, "second"))
        ]
        cache = Cache(name="profiles", second=TwoNodes(*both))
        policy = Policy(name="profiles", limit=limit, breaker=breaker)
        flags = FlagDelivery(FlagSet.parse(b'{"flags": {}}'))
        export_all(registry, cache, policy, HotKeys(), scheduler, flags)
        Composite(
            cache,
            "product",
            {"price": Field(load=_loads, freshness=Freshness(ttl=1.0), tier="strict")},
            metrics=registry,
        )
        LoadShedder("feed", metrics=registry)
        RedisRateLimiter(RateLimit(rate=1.0, burst=1), "redis://127.0.0.1:1", metrics=registry)
        migration = Migration(
            "orders",
            old=TableStore("sqlite:////never-opened.db", "orders"),
            new=TableStore("sqlite:////never-opened-either.db", "orders"),
            stage=lambda: Stage.OFF,
            metrics=registry,
        )
        Backfill(migration, metrics=registry)
        Mirror("feed").export(registry)
        LoopLag(registry)
        WaitSampler(registry)
        MetricsMiddleware(_answers, registry=registry, count_queries=True)
        export_engine(create_engine("sqlite:///never-opened.db"), registry)
        breaker.export(registry)
        limit.export(registry)
        with tempfile.TemporaryDirectory() as directory:
            segments = JsonLinesSegments(f"{directory}/events")
            spool = Spool(f"{directory}/spool", to=segments)
            spool.export(registry)
            with BufferedSink(spool) as sink:
                sink.export(registry)
            NatsToSegments("nats://127.0.0.1:1", segments=segments).export(registry)
    gc.callbacks[:] = callbacks
    return registry


async def _answers(scope: object, receive: object, send: object) -> None:
    """An application that does nothing."""


def families() -> Iterable[FamilySnapshot]:
    """Every family, those of the aggregator included."""
    with tempfile.TemporaryDirectory() as directory:
        page = asyncio.run(_page(directory))
    return (*everything().snapshot().families, *page.families)


async def _page(directory: str) -> RegistrySnapshot:
    return await Aggregator(directory).collect()


def table(found: list[FamilySnapshot]) -> str:
    lines = ["| metric | type | unit | labels | fleet | meaning |", "|---|---|---|---|---|---|"]
    for family in found:
        labels = ", ".join(f"`{label}`" for label in family.label_names)
        unit = UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")
        cells = (f"`{family.name}`", family.kind, unit, labels, family.merge, family.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page() -> str:
    left = list(families())
    parts = [HEAD]
    for title, source, prefixes in SECTIONS:
        found = [family for family in left if family.name.startswith(prefixes)]
        left = [family for family in left if family not in found]
        parts.append(f"## {title}\n\n{source}\n\n{table(found)}\n")
    if left:
        raise SystemExit(f"no section for {', '.join(family.name for family in left)}")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
