"""Which properties of a run's requests are compared.

Within one arm: phase, cycle, key class, whether a phase had just begun, freshness, and whether the sender was late; at
the server: route, variant and whatever attributes its events carry, such as a region. A property that comes about with
the answer (degraded, the reason of a fallback, an error) is marked as an outcome.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fairlead.diagnosis.cohorts import Compared, compare_cohorts
from fairlead.diagnosis.run_events import RunEvents
from fairlead.diagnosis.run_facts import RunFacts
from fairlead.telemetry import LoadSample, RequestFinished

__all__ = ["bad_requests", "compared_requests"]

_OUTCOMES = frozenset({"degraded", "degraded_by", "error", "freshness", "missing"})
"""Known only once there is an answer: what came from a cache was quick, and is no class of requests."""
_SLICE = 0.5  # seconds: requests of one share a queue
_SLOWEST = 0.95
_LATE = 0.005  # seconds of send lag that a reader would see in a latency
_SINGLE_VALUES = 40  # an attribute with more values than this is an id, and no class of requests


def bad_requests(events: RunEvents, samples: list[LoadSample], slow: float) -> NDArray[np.bool_]:
    """Which of them failed, or took longer than `slow` seconds."""
    late = np.array([sample.latency_seconds > slow for sample in samples], dtype=bool)
    both: NDArray[np.bool_] = events.failed(samples) | late
    return both


def compared_requests(
    facts: RunFacts,
    events: RunEvents,
    samples: list[LoadSample],
    own: list[LoadSample],
    arm: str,
    slow: float,
) -> list[Compared]:
    """Every comparison of a run: of the arms, and within `arm` of what clients, and the service, know of a request.

    samples: of all arms, in measured phases; own: those of `arm`. slow: seconds.
    """
    found = [
        compare_cohorts(
            f"slower than {slow * 1000:.0f} ms or failed, over all arms",
            bad_requests(events, samples, slow),
            _slices([sample.at_utc_seconds for sample in samples]),
            {"arm": [sample.arm for sample in samples]},
        )
    ]
    bad = bad_requests(events, own, slow)
    slices = _slices([sample.at_utc_seconds for sample in own])
    dimensions = _of_clients(facts, events, own)
    found.append(
        compare_cohorts(
            f"slower than {slow * 1000:.0f} ms or failed, in {arm}",
            bad,
            slices,
            dimensions,
            outcomes=_OUTCOMES,
        )
    )
    degraded = np.array([sample.ending == "degraded" for sample in own], dtype=bool)
    if degraded.mean() >= 0.01:
        del dimensions["degraded"]
        found.append(compare_cohorts(f"degraded, in {arm}", degraded, slices, dimensions, outcomes=_OUTCOMES))
    server = _at_server(events, arm, {each.name for each in facts.measured})
    if server is not None:
        found.append(server)
    return [each for each in found if each.comparisons or each.refused]


def _slices(moments: list[float]) -> NDArray[np.int64]:
    return np.floor(np.array(moments) / _SLICE).astype(np.int64)


def _of_clients(facts: RunFacts, events: RunEvents, own: list[LoadSample]) -> dict[str, list[str]]:
    began = {(each.arm, each.cycle, each.phase): each.began_at for each in events.moments}
    classes = _key_classes([sample.key for sample in own])

    def freshness(sample: LoadSample) -> str:
        if sample.staleness_seconds is None:
            return "not said"
        return "stale" if sample.staleness_seconds > 0 else "fresh"

    return {
        "phase": [facts.title(sample.phase) for sample in own],
        "cycle": [str(sample.cycle + 1) for sample in own],
        "key": [classes[sample.key] for sample in own],
        "moment": [
            "first half second of a phase"
            if sample.at_utc_seconds - began[sample.arm, sample.cycle, sample.phase] < _SLICE
            else "later in a phase"
            for sample in own
        ],
        "freshness": [freshness(sample) for sample in own],
        "sent": ["late" if sample.send_lag_seconds > _LATE else "in time" for sample in own],
        "degraded": ["yes" if sample.ending == "degraded" else "no" for sample in own],
    }


def _key_classes(keys: list[str]) -> dict[str, str]:
    """The hottest key; the next ones, up to half of all requests; the rest."""
    counts = Counter(keys).most_common()
    found, seen = {}, 0
    for place, (key, count) in enumerate(counts):
        found[key] = "the hottest" if place == 0 else "hot" if seen < len(keys) / 2 else "cold"
        seen += count
    return found


def _at_server(events: RunEvents, arm: str, measured: set[str]) -> Compared | None:
    rows: list[RequestFinished] = []
    for _, request in events.requests:
        moment = events.moment(request.at_utc_seconds - request.latency_seconds)
        if moment is not None and moment.arm == arm and moment.phase in measured:
            rows.append(request)
    if not rows:
        return None
    slow = float(np.quantile([row.latency_seconds for row in rows], _SLOWEST))
    dimensions = {
        "service": [row.service for row in rows],
        "route": [row.route for row in rows],
        "variant": [row.variant for row in rows],
        "error": [row.error or "none" for row in rows],
        "freshness": ["stale" if row.stale else "fresh" for row in rows],
    }
    for name in sorted({name for row in rows for name in row.attributes}):
        values = [row.attributes.get(name, "") or "none" for row in rows]
        if len(set(values)) <= _SINGLE_VALUES:
            dimensions[name] = values
    return compare_cohorts(
        f"slower than {slow * 1000:.0f} ms or failed at the server, in {arm}",
        np.array([row.latency_seconds > slow or row.failed() for row in rows], dtype=bool),
        _slices([row.at_utc_seconds for row in rows]),
        dimensions,
        outcomes=_OUTCOMES,
    )
