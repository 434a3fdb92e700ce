"""The switches of the treatment. Each turns one mechanism off and puts in its place what the control does
there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from fairlead.trial import Mechanism

__all__ = ["FLAG_PREFIX", "MECHANISMS", "Mechanisms"]

FLAG_PREFIX = "feed_uses_"
"""The boolean flag of a mechanism is this and its name."""

MECHANISMS = (
    Mechanism(
        name="deadline", summary="one time budget per request, asked by every wait, instead of fixed timeouts"
    ),
    Mechanism(
        name="coalescing",
        summary="one load per key at a time, shared; without it nobody refreshes, so nothing stale is served",
    ),
    Mechanism(
        name="partial_results",
        summary="a share of the time per candidate source; one that is late or fails is missing, not the page",
    ),
    Mechanism(
        name="field_tiers",
        summary="labels strict, popularity up to 400 ms stale; without it both are one value, all strict",
    ),
    Mechanism(name="negative_caching", summary="who does not exist is not asked about again for a second"),
    Mechanism(name="prewarm", summary="known hot topics loaded at the start and after the cache was emptied"),
    Mechanism(
        name="jitter", summary="lifetimes spread by 10 %, so that keys loaded together do not expire together"
    ),
    Mechanism(
        name="stale_while_revalidate",
        summary="an answer up to 400 ms past its lifetime while one refresh runs",
    ),
    Mechanism(name="batching", summary="all features of a page, and of pages that wait at once, in one call"),
    Mechanism(name="breaker", summary="no calls to a dependency that keeps failing, until a probe succeeds"),
    Mechanism(name="retry_budget", summary="retries for at most a tenth of the calls, with full jitter"),
    Mechanism(
        name="adaptive_limit", summary="calls in flight limited by what the dependency is seen to sustain"
    ),
    Mechanism(
        name="hedge", summary="a second copy of a candidate load that takes longer than nineteen of twenty"
    ),
    Mechanism(
        name="admission",
        summary="a bound on the pages in flight; above it, highest priority first, or items reviewed by hand",
    ),
    Mechanism(
        name="int8_ranking", summary="the quantized model, off the event loop, instead of fp32 in line"
    ),
    Mechanism(
        name="heuristic", summary="a deterministic ranking where features or the model are missing in time"
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanisms:
    """Which mechanisms are on; read from the flags once, when a process starts."""

    deadline: bool = True
    coalescing: bool = True
    partial_results: bool = True
    field_tiers: bool = True
    negative_caching: bool = True
    prewarm: bool = True
    jitter: bool = True
    stale_while_revalidate: bool = True
    batching: bool = True
    breaker: bool = True
    retry_budget: bool = True
    adaptive_limit: bool = True
    hedge: bool = True
    admission: bool = True
    int8_ranking: bool = True
    heuristic: bool = True


if tuple(field.name for field in fields(Mechanisms)) != tuple(mechanism.name for mechanism in MECHANISMS):
    raise AssertionError("MECHANISMS and Mechanisms must list the same names in the same order")
