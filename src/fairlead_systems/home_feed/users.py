"""Made users who respond to the latency that each of them really met: watch time, sessions, clicks, crashes.

Nothing here is found; it is declared, and printed under `simulated:`. A user watches as much as users do,
heavy-tailed and much as last week, less `LOSS_PER_SECOND` of it for each second that a page took on average, and less
`LOSS_PER_FAILURE` for each page that failed. Latencies and failures are the run's own: every user sends the same
requests to both arms, so what each would have done in the other arm is known too, and with it the true effect.
Crashes and clicks do not respond: there the experiment has to find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fairlead.experiment import ExperimentPlan, Fairness, Margin
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.lab import Ending, Samples
from fairlead.metrics import Kind, Metric
from fairlead.telemetry import (
    EVENTS,
    BufferedSink,
    Event,
    EventRegistry,
    EventSchema,
    Exposure,
    Internal,
    Personal,
)
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.trial import Responded, Settings
from fairlead_systems.home_feed.system import PATIENCE, USERS_FLAG

__all__ = ["FeedWeek", "respond"]

FOLDER = "users"
"""Of their events, in the run's folder; apart from `events`, which holds what really happened."""
LOSS_PER_SECOND = 0.6
"""Share of the watch time that a second of mean page latency costs: 6 % for 100 ms."""
LOSS_PER_FAILURE = 0.25
"""Share that a page which failed costs, once."""
_SESSIONS_LOSS = 0.3
"""How much of that loss shows as sessions that were not started."""
_WEEK = 7 * 86400.0
_CRASHES = 0.01
_CLICK = 0.06
_SPREAD, _NOISE = 1.0, 0.5
"""Standard deviations of the logarithm: between users, and of one user's weeks."""
_MEAN_WATCH = 1800.0
_MEAN_SESSIONS = 6.0
_LANGUAGES = ("de", "en", "es")

Floats = NDArray[np.float64]


class FeedWeek(Event, frozen=True, kw_only=True):
    """What one made user did in a week."""

    schema: ClassVar[EventSchema] = EventSchema(role="outcome")

    targeting_key: Personal[str]
    watch_seconds: Internal[float]
    sessions: Internal[int]
    pages: Internal[int]
    """Pages asked for in the run; 0 in the week before."""
    failed_pages: Internal[int]
    """Of these: timed out, refused or failed; real."""
    crashed: Internal[bool]
    impressions: Internal[int]
    clicks: Internal[int]


@dataclass(frozen=True, slots=True)
class _Met:
    """What each user met in one arm; every array by user."""

    pages: NDArray[np.int64]
    failed: NDArray[np.int64]
    mean_latency: Floats
    first: Floats
    """Seconds after the start of the first page."""


def respond(
    samples: Mapping[str, Samples], started_at: float, settings: Settings, directory: Path
) -> Responded:
    """Writes the exposures and weeks of everybody who sent a request in the measured phases."""
    n = 1 + max((int(part.user.max()) for part in samples.values() if len(part)), default=0)
    met = {arm: _met(part, n) for arm, part in samples.items()}
    users = np.flatnonzero((met["control"].pages > 0) & (met["treatment"].pages > 0))
    rng = np.random.default_rng([settings.seed, 7])
    level = rng.lognormal(-(_SPREAD**2) / 2, _SPREAD, n)
    weeks = rng.lognormal(-(_NOISE**2) / 2, _NOISE, (2, n))
    factor = {arm: _response(one) for arm, one in met.items()}
    flags = FlagSet.from_file(directory / "flags.json")
    events: list[Event] = []
    about: list[tuple[str, str]] = []
    registry = EventRegistry([*EVENTS.kinds.values(), FeedWeek])
    for user in users.tolist():
        key = f"u{user}"
        found = flags.evaluate(USERS_FLAG, EvaluationContext(targeting_key=key), "control")
        arm = str(found.value)
        mine = met[arm]
        at = started_at + float(mine.first[user])
        about.append((key, _LANGUAGES[int(rng.integers(len(_LANGUAGES)))]))
        events.append(
            Exposure(
                at_utc_seconds=at, flag=USERS_FLAG, variant=arm, targeting_key=key, reason=str(found.reason)
            )
        )
        loss = 1 - float(factor[arm][user])
        for week, moment in ((0, at - _WEEK / 2), (1, at + 1.0)):
            kept = 1.0 if week == 0 else 1 - loss
            shown = int(rng.poisson(40 * min(4.0, float(level[user]) + 0.2)))
            events.append(
                FeedWeek(
                    at_utc_seconds=moment,
                    targeting_key=key,
                    watch_seconds=float(_MEAN_WATCH * level[user] * weeks[week][user] * kept),
                    sessions=int(
                        rng.poisson(_MEAN_SESSIONS * np.sqrt(level[user]) * (1 - _SESSIONS_LOSS * (1 - kept)))
                    ),
                    pages=int(mine.pages[user]) if week else 0,
                    failed_pages=int(mine.failed[user]) if week else 0,
                    crashed=bool(rng.random() < _CRASHES),
                    impressions=shown,
                    clicks=int(rng.binomial(shown, _CLICK)),
                )
            )
    folder = directory / FOLDER
    sink = BufferedSink(
        JsonLinesSegments(folder, prefix="users"), capacity=len(events) + 1, registry=registry
    )
    try:
        for event in events:
            sink.emit(event)
    finally:
        sink.close()
    if sink.failure is not None:
        raise sink.failure
    # What was known of each user before: the language of the creators whom they follow most.
    file = folder / "about.csv"
    file.write_text("unit,creator_language\n" + "".join(f"{key},{language}\n" for key, language in about))
    # The same users with both arms' latencies: what the change would do to all of them, less what leaving it would.
    gain = factor["treatment"][users] - factor["control"][users]
    return Responded(
        events=folder,
        about_units=file,
        plan=_plan(),
        registry=registry,
        planted={
            "watch_time": float(np.mean(_MEAN_WATCH * level[users] * gain)),
            "session_starts": float(np.mean(_MEAN_SESSIONS * np.sqrt(level[users]) * _SESSIONS_LOSS * gain)),
            "crashes": 0.0,
            "click_through": 0.0,
        },
    )


def _met(samples: Samples, n: int) -> _Met:
    pages = np.bincount(samples.user, minlength=n)
    answered = samples.ending == Ending.OK
    latency = np.where(answered, samples.latency, np.maximum(samples.latency, PATIENCE))
    total = np.bincount(samples.user, weights=latency, minlength=n)
    first = np.full(n, np.inf)
    np.minimum.at(first, samples.user, samples.offset)
    return _Met(
        pages=pages,
        failed=np.bincount(samples.user[~answered], minlength=n),
        mean_latency=total / np.maximum(pages, 1),
        first=first,
    )


def _response(met: _Met) -> Floats:
    """What is kept of the watch time, 0–1, by user."""
    kept = np.exp(-LOSS_PER_SECOND * met.mean_latency) * (1 - LOSS_PER_FAILURE) ** (met.failed > 0)
    return np.asarray(kept, dtype=np.float64)


def _metric(
    name: str,
    title: str,
    kind: Kind,
    unit: str,
    *,
    guardrail: bool = False,
    real: bool = False,
    better: str = "higher",
    field: str | None = None,
    denominator: str | None = None,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        role="guardrail" if guardrail else "secondary",
        kind=kind,
        event="feed_week",
        field=field,
        denominator=denominator,
        unit=unit,
        unit_of_analysis="user",
        unit_field="targeting_key",
        side="client",
        measured="as the client met it in the run" if real else "as declared for made users",
        window="7d",
        segment="users with a page in the measured phases",
        better=better,  # type: ignore[arg-type]  # one of the two words
        design="simulated",
    )


def _plan() -> ExperimentPlan:
    return ExperimentPlan(
        name="home_feed_users",
        metrics=(
            _metric("watch_time", "watch time", "total", "seconds", field="watch_seconds"),
            _metric("session_starts", "session starts", "total", "sessions", field="sessions"),
            _metric(
                "failed_pages",
                "failed pages",
                "ratio",
                "ratio",
                guardrail=True,
                real=True,
                better="lower",
                field="failed_pages",
                denominator="pages",
            ),
            _metric(
                "crashes",
                "users with a crash",
                "proportion",
                "ratio",
                guardrail=True,
                better="lower",
                field="crashed",
            ),
            _metric(
                "click_through",
                "click-through rate",
                "ratio",
                "ratio",
                guardrail=True,
                field="clicks",
                denominator="impressions",
            ),
        ),
        flag=USERS_FLAG,
        mde=0.05,
        pre_period=_WEEK,
        margins={
            "failed_pages": Margin(by=0.002, relative=False),
            "crashes": Margin(by=0.01, relative=False),
            "click_through": Margin(by=0.05),
        },
        segments=("creator_language",),
        fairness=(Fairness(metric="click_through", group="creator_language"),),
    )
