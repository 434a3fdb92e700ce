"""Scenarios of everything that may be looked at all the time: every experiment is looked at 25 times or more.

A false alarm is one at *any* look, coverage is that of all looks together, power is a find by twice the units that a
single, final look would need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from fairlead.statistics import (
    CumulativeCounts,
    Effect,
    Hypothesis,
    Moments,
    cuped_effect,
    discordant_pairs,
    mean_effect,
    ratio_effect,
    sample_ratio,
    sample_size,
    sequential_effect,
    sequential_sample_ratio,
)
from fairlead.statistics.mixtures import dirichlet_log_e, spread
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e
from fairlead.statistics.sequential_means import FEWEST, cautious_errors, tuned_information
from fairlead.statistics.sequential_means import watched_log_e as watched_mean
from fairlead.statistics.sequential_quantile_effect import EvidenceAbove
from fairlead.telemetry.histogram import upper_bound
from tests.calibration.fixed import ALPHA, USERS, Rng, answered_twice, scenario, users
from tests.calibration.row import Scenario

Arm = Callable[[Rng, int], np.ndarray]
"""Rows of so many new units."""
LOOKS = np.unique(np.geomspace(100, 10_000, 25).astype(int))


def _paths(
    rng: Rng, columns: tuple[str, ...], arms: tuple[Arm, Arm], share: float
) -> Iterator[tuple[Moments, Moments]]:
    """Moments of both arms at each look, as units come in."""
    so_far = [Moments.from_rows(columns, []) for _ in arms]
    before = 0
    for look in LOOKS:
        new = int(look - before)
        before = int(look)
        in_treatment = int(rng.binomial(new, share))
        for index, n in enumerate((new - in_treatment, in_treatment)):
            so_far[index] += Moments.from_rows(columns, arms[index](rng, n))
        if min(arm.n for arm in so_far) >= 50:
            yield so_far[0], so_far[1]


def _ever(
    columns: tuple[str, ...],
    arms: tuple[Arm, Arm],
    compare: Callable[[Moments, Moments], Effect],
    share: float = 0.5,
) -> Callable[[Rng], bool]:
    def run(rng: Rng) -> bool:
        return any(
            sequential_effect(compare(c, t), tuned_for=2000).effect.p_value <= ALPHA
            for c, t in _paths(rng, columns, arms, share)
        )

    return run


def _at_every_unit(draw: Callable[[Rng, int], np.ndarray], share: float, n: int) -> Callable[[Rng], bool]:
    """A/A with a look after each unit, computed for all looks at once as `sequential_effect` does for one."""
    information = tuned_information(ALPHA) * np.arange(1, n + 1) / (n // 5)

    def run(rng: Rng) -> bool:
        y, treated = draw(rng, n), rng.random(n) < share
        sizes, means, errors = [], [], []
        for arm in (~treated, treated):
            size = np.cumsum(arm)
            with np.errstate(invalid="ignore", divide="ignore"):  # before the first units of an arm
                mean = np.cumsum(y * arm) / size
                square = np.maximum(0.0, np.cumsum(y * y * arm) - size * mean * mean) / (size - 1)
                errors.append(np.sqrt(square / size))
            sizes.append(size)
            means.append(mean)
        seen = np.minimum(*sizes) >= FEWEST
        safe = cautious_errors([e[seen] for e in errors], [size[seen] for size in sizes])
        spread = np.hypot(*safe)
        varies = spread > 0
        z = (means[1][seen] - means[0][seen])[varies] / spread[varies]
        return bool((watched_mean(z, information[seen][varies], "two_sided") >= -math.log(ALPHA)).any())

    return run


def _skewed(factor: float = 1.0) -> Arm:
    return lambda rng, n: factor * rng.lognormal(size=(n, 1))


def _gamma(factor: float = 1.0) -> Arm:
    return lambda rng, n: factor * rng.gamma(2, 1, (n, 1))


def _mean(c: Moments, t: Moments) -> Effect:
    return mean_effect(c, t, "y")


def _covers_always(rng: Rng) -> bool:
    truth = 0.2 * math.exp(0.5)
    for c, t in _paths(rng, ("y",), (_skewed(), _skewed(1.2)), 0.5):
        effect = sequential_effect(_mean(c, t), tuned_for=2000).effect
        if not effect.low <= truth <= effect.high:
            return False
    return True


def _found_in_time(rng: Rng) -> bool:
    n = 2 * sample_size(standard_deviation=1.0, effect=0.1).total
    half = n // 2
    c, t = (Moments.from_rows("y", rng.normal(shift, 1, (half, 1))) for shift in (0.0, 0.1))
    return sequential_effect(_mean(c, t), tuned_for=n // 2).effect.p_value <= ALPHA


_LIMIT = Hypothesis(alternative="greater", ratio=1.1)


def _events(share: float, ratio: float, hypothesis: Hypothesis, n: int = 2000) -> Callable[[Rng], bool]:
    """A look at every event, computed for all at once as `sequential_counts` does for one."""
    looks = np.arange(1, n + 1)
    sides = ("greater", "less") if hypothesis.alternative == "two_sided" else (hypothesis.alternative,)

    def among_events(rate_ratio: float) -> float:
        odds = rate_ratio * share / (1 - share)
        return odds / (1 + odds)

    def run(rng: Rng) -> bool:
        treated = np.cumsum(rng.random(n) < among_events(ratio))
        null, strength = among_events(hypothesis.ratio), tuned_strength(200)
        logs = [watched_log_e(treated, looks, null, strength, side).max() for side in sides]
        return bool(max(logs) >= math.log(len(sides) / ALPHA))

    return run


def _rate_ratio_always(rng: Rng) -> bool:
    # The interval holds the truth exactly where the truth, as a hypothesis, is not rejected.
    return not _events(0.5, 1.5, Hypothesis(ratio=1.5), 1000)(rng)


def _found_events(rng: Rng) -> bool:
    # A single one-sided look at 60 to 40, 5 % and 80 % power: (1.645/2 + 0.842·√0.24)²/0.1² = 152.5 events.
    return _events(0.5, 1.5, Hypothesis(alternative="greater"), 2 * 153)(rng)


def _quantile_always(rng: Rng) -> bool:
    """A look at every value: the interval holds the truth where the count at or below it is not rejected."""
    looks = np.arange(1, 10_001)
    below = np.cumsum(rng.random(10_000) < 0.99)
    logs = [
        watched_log_e(below, looks, 0.99, tuned_strength(3000), side).max() for side in ("greater", "less")
    ]
    return bool(max(logs) < math.log(2 / ALPHA))


def _quantile_guard(q: float, read: Callable[[np.ndarray], CumulativeCounts]) -> Callable[[Rng], bool]:
    """Both arms' quantiles exactly 10 % apart, looked at 20 times as `sequential_quantile_effect` does."""
    looks = np.unique(np.geomspace(20, 5_000, 20).astype(int))

    def run(rng: Rng) -> bool:
        c, t = rng.lognormal(size=5_000), 1.1 * rng.lognormal(size=5_000)
        return any(
            EvidenceAbove(read(c[:n]), read(t[:n]), q, tuned_strength(1500)).log_e(1.1, 0.0)
            >= -math.log(ALPHA)
            for n in looks
        )

    return run


def buckets(values: np.ndarray) -> CumulativeCounts:
    """As the histograms of `telemetry` count them."""
    counts = np.bincount(np.ceil(np.log2(values) * 32).astype(int) + 400, minlength=800)
    return CumulativeCounts.from_buckets([upper_bound(i - 400) for i in range(len(counts))], counts)


def _found_quantile(rng: Rng) -> bool:
    # A single one-sided look at medians 10 % apart: with density φ(0), n = 2·(1.645 + 0.842)²·(π/2)/log(1.1)²
    # an arm = 2139. Looked at until three times that, ten times.
    n, worse = 3 * 2139, 1.1
    c, t = rng.lognormal(size=n), worse * rng.lognormal(size=n)
    return any(
        EvidenceAbove(
            CumulativeCounts.from_values(c[:k]),
            CumulativeCounts.from_values(t[:k]),
            0.5,
            tuned_strength(2139),
        ).log_e(1.0, 0.0)
        >= -math.log(ALPHA)
        for k in np.geomspace(400, n, 10).astype(int)
    )


def _split_once(rng: Rng) -> bool:
    n = 4000
    shares = {"control": 0.6, "a": 0.3, "b": 0.1}
    counts = rng.multinomial(n, list(shares.values()))
    return (
        sample_ratio(dict(zip(shares, map(int, counts), strict=True)), shares, alpha=ALPHA).verdict
        == "mismatch"
    )


def _split_watched(rng: Rng) -> bool:
    """A look at every unit of three stages; their evidence is added."""
    log_e = 0.0
    for share in (0.01, 0.05, 0.5):
        treated = np.cumsum(rng.random(5000) < share)
        counts = np.stack([np.arange(1, 5001) - treated, treated], axis=-1)
        strength = tuned_strength(2000)
        path = spread(lambda width: dirichlet_log_e(counts, [1 - share, share], strength / width**2))  # noqa: B023 - called at once
        if (log_e + path >= -math.log(ALPHA)).any():
            return True
        log_e += float(path[-1])
    return False


def _split_broken(rng: Rng) -> bool:
    """One treated user in ten is lost."""
    n = 10_000
    treated = int(rng.binomial(n, 0.45 / 0.95))
    return (
        sequential_sample_ratio(
            [({"control": n - treated, "treatment": treated}, {"control": 1, "treatment": 1})], tuned_for=5000
        ).verdict
        == "mismatch"
    )


def _watch_ratio(rng: Rng, n: int) -> np.ndarray:
    return users(rng, n, 0.2)


def _mean_beyond_limit(c: Moments, t: Moments) -> Effect:
    return mean_effect(c, t, "y", hypothesis=_LIMIT)


def _click_rate(c: Moments, t: Moments) -> Effect:
    return ratio_effect(c, t, "clicks", "views")


def _clicks_adjusted(c: Moments, t: Moments) -> Effect:
    return cuped_effect(c, t, "clicks", ["old_clicks"]).effect


_FALSE, _COVERAGE, _POWER = "false positive rate", "coverage", "power"


def _pairs_watched(rng: Rng) -> bool:
    """200 looks at 2,000 requests, computed for all at once as `discordant_pairs` does for one."""
    again, candidate = answered_twice(rng, 2_000, fields=20)
    only_again = (again & ~candidate).cumsum(axis=0)[9::10]
    only_candidate = (candidate & ~again).cumsum(axis=0)[9::10]
    logs = watched_log_e(only_candidate, only_again + only_candidate, 0.5, tuned_strength(50), "greater")
    at = tuple(int(place) for place in np.unravel_index(int(np.argmax(logs)), logs.shape))
    counts = {"largest": (int(only_again[at]), int(only_candidate[at]))}
    return discordant_pairs(counts, family=20)["largest"].verdict == "more"


SCENARIOS: tuple[Scenario, ...] = (
    scenario("mean, watched", "skewed, 25 looks from 100 to 10,000 users", _FALSE, 0.05, 0.0, 401,
             _ever(("y",), (_skewed(), _skewed()), _mean), "at most", one_in=5),
    scenario("mean, watched", "skewed, a tenth in treatment, 25 looks", _FALSE, 0.05, 0.0, 402,
             _ever(("y",), (_skewed(), _skewed()), _mean, 0.1), "at most", one_in=5),
    scenario("mean, watched", "skewed, +20 %, all of 25 looks",
             _COVERAGE, 0.95, 0.0, 403, _covers_always, "at least", one_in=5),
    scenario("mean, watched", "skewed, 1 % in treatment, a look at each of 50,000 users", _FALSE, 0.05, 0.0, 440,
             _at_every_unit(lambda rng, n: rng.lognormal(size=n), 0.01, 50_000), "at most", one_in=5),
    scenario("mean, watched", "1 in 1,000, 1 % in treatment, a look at each of 50,000 users", _FALSE, 0.05, 0.0, 441,
             _at_every_unit(lambda rng, n: (rng.random(n) < 0.001).astype(float), 0.01, 50_000), "at most", one_in=5),
    scenario("mean, watched", "1 in 100, 5 % in treatment, a look at each of 20,000 users", _FALSE, 0.05, 0.0, 442,
             _at_every_unit(lambda rng, n: (rng.random(n) < 0.01).astype(float), 0.05, 20_000), "at most", one_in=2),
    scenario("mean, watched, 10 % worse", "gamma, exactly 10 % worse, 25 looks", _FALSE, 0.05, 0.0, 404,
             _ever(("y",), (_gamma(), _gamma(1.1)), _mean_beyond_limit), "at most", one_in=5),
    scenario("mean, watched", "found by twice the units of one look",
             _POWER, 0.8, 0.02, 405, _found_in_time, "at least"),
    scenario("ratio, watched", "clustered users, 25 looks", _FALSE, 0.05, 0.0, 406,
             _ever(USERS, (_watch_ratio, _watch_ratio), _click_rate), "at most", one_in=5),
    scenario("CUPED, watched", "clustered users, 25 looks", _FALSE, 0.05, 0.0, 407,
             _ever(USERS, (_watch_ratio, _watch_ratio), _clicks_adjusted), "at most", one_in=5),
    scenario("count, watched", "1 % in treatment, a look at each of 2,000 events", _FALSE, 0.05, 0.0, 411,
             _events(0.01, 1.0, Hypothesis()), "at most", one_in=5),
    scenario("count, watched, 10 % worse", "5 % in treatment, exactly 10 % worse, 2,000 looks", _FALSE, 0.05, 0.0, 412,
             _events(0.05, 1.1, _LIMIT), "at most", one_in=5),
    scenario("count, watched", "1.5 times the rate, all of 1,000 looks",
             _COVERAGE, 0.95, 0.0, 413, _rate_ratio_always, "at least", one_in=5),
    scenario("count, watched", "60 to 40, found by twice the events of one look",
             _POWER, 0.8, 0.0, 414, _found_events, "at least"),
    scenario("quantile, watched", "p99, all of 10,000 looks",
             _COVERAGE, 0.95, 0.0, 421, _quantile_always, "at least", one_in=10),
    scenario("quantile, watched, 10 % worse", "median, exactly 10 % worse, 20 looks", _FALSE, 0.05, 0.0, 422,
             _quantile_guard(0.5, CumulativeCounts.from_values), "at most", one_in=10),
    scenario("quantile, watched, 10 % worse", "p95 from buckets, exactly 10 % worse, 20 looks", _FALSE, 0.05, 0.0, 423,
             _quantile_guard(0.95, buckets), "at most", one_in=10),
    scenario("quantile, watched", "median, +10 %, found by three times the values of one look", _POWER, 0.8, 0.0, 424,
             _found_quantile, "at least", one_in=5),
    scenario("matched pairs, watched", "20 fields, nothing changed, 200 looks at 2,000 requests",
             _FALSE, 0.05, 0.0, 451, _pairs_watched, "at most", one_in=5),
    scenario("sample ratio (chi-square)", "60 to 30 to 10, 4,000 users", _FALSE, 0.05, 0.005, 431, _split_once),
    scenario("sample ratio, watched", "stages of 1, 5 and 50 %, 15,000 looks",
             _FALSE, 0.05, 0.0, 432, _split_watched, "at most", one_in=5),
    scenario("sample ratio, watched", "a tenth of treatment lost, 10,000 users, alpha 0.1 %",
             _POWER, 0.8, 0.0, 433, _split_broken, "at least"),
)  # fmt: skip
