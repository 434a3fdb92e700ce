"""Scenarios of every estimator for a fixed sample: no effect, a true effect, and data as services have them.

Skewed: lognormal with σ = 1, skewness 6.2. Heavy: Pareto with a tail index of 3. Rare: one in a thousand. Clustered:
users with a geometric number of requests and a level of their own. Each truth is known in closed form, or from
the construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fairlead.statistics import (
    Effect,
    Hypothesis,
    Moments,
    benjamini_hochberg,
    chi_square,
    clustered_quantile_interval,
    count_effect,
    cuped_effect,
    cuped_ratio_effect,
    difference_in_differences,
    discordant_pairs,
    equivalence,
    holm,
    jensen_shannon,
    mean_effect,
    not_worse,
    parallel_trends,
    pooled_cap,
    population_stability_index,
    proportion_deviation,
    proportion_effect,
    quantile_effect,
    quantile_interval,
    ratio_effect,
    sample_size,
    wasserstein,
    winsorise,
)
from tests.calibration.row import Scenario

Rng = np.random.Generator
ALPHA = 0.05


def _column(values: np.ndarray) -> Moments:
    return Moments.from_rows(("y",), np.asarray(values, dtype=np.float64).reshape(-1, 1))


def _covers(effect: Effect, truth: float) -> bool:
    return (effect.low is None or effect.low <= truth) and (effect.high is None or truth <= effect.high)


def _covers_relative(effect: Effect, truth: float) -> bool:
    low, high = effect.relative_low, effect.relative_high
    return (low is None or low <= truth) and (high is None or truth <= high)


# Means


def _means(n: tuple[int, int], factor: float = 1.0) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        return mean_effect(_column(rng.lognormal(size=n[0])), _column(factor * rng.lognormal(size=n[1])), "y")

    return run


def _unequal(rng: Rng) -> Effect:
    return mean_effect(_column(rng.normal(0, 3, 30)), _column(rng.normal(0, 1, 3000)), "y")


_MEAN = math.exp(0.5)


def _mean_power(rng: Rng) -> bool:
    n = sample_size(standard_deviation=1.0, effect=0.2).control
    return mean_effect(_column(rng.normal(0, 1, n)), _column(rng.normal(0.2, 1, n)), "y").p_value < ALPHA


def _non_inferior(rng: Rng) -> bool:
    margin = not_worse(by=0.1, better="lower", relative=True)
    arms = _column(rng.gamma(2, 1, 1000)), _column(rng.gamma(2, 1.1, 1000))  # exactly at the margin
    return mean_effect(*arms, "y", hypothesis=margin).p_value < ALPHA


def _equivalent(rng: Rng) -> bool:
    c, t = _column(rng.gamma(2, 1, 2000)), _column(rng.gamma(2, 1, 2000) + 0.2)
    return equivalence(lambda h: mean_effect(c, t, "y", hypothesis=h), margin=0.2).p_value < ALPHA


def _winsorised(rng: Rng) -> bool:
    c, t = rng.pareto(1.5, 2000), rng.pareto(1.5, 2000)
    cap = pooled_cap(c, t, q=0.99)
    return mean_effect(_column(winsorise(c, cap)), _column(winsorise(t, cap)), "y").p_value < ALPHA


# Matched pairs


def answered_twice(rng: Rng, n: int, fields: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Whether control's second answer and the candidate's differ from the first, by request and field: (n, fields)."""
    # Some requests are noisier than others, in all their fields; a first answer that is odd differs from both others.
    odd = np.clip(rng.beta(1, 3, (n, 1)) * np.linspace(0, 1.2, fields), 0, 1)
    first, again, candidate = rng.random((3, n, fields)) < odd
    return again != first, candidate != first


def pairs_of(again: np.ndarray, candidate: np.ndarray) -> dict[str, tuple[int, int]]:
    only = (again & ~candidate).sum(axis=0), (candidate & ~again).sum(axis=0)
    return {str(field): (int(a), int(c)) for field, (a, c) in enumerate(zip(*only, strict=True))}


def _any_more(answers: tuple[np.ndarray, np.ndarray]) -> bool:
    return any(found.verdict == "more" for found in discordant_pairs(pairs_of(*answers)).values())


def _few_pairs(rng: Rng) -> bool:
    counts = {str(field): tuple(map(int, rng.poisson(1.0, 2))) for field in range(3)}
    return any(found.verdict == "more" for found in discordant_pairs(counts).values())


def _broken_field(rng: Rng) -> bool:
    first, again, candidate = rng.random((3, 1000, 50)) < 0.05
    candidate[:, 7] |= rng.random(1000) < 0.06
    return discordant_pairs(pairs_of(again != first, candidate != first))["7"].verdict == "more"


# Proportions and counts


def _proportions(
    p: tuple[float, float], n: tuple[int, int], hypothesis: Hypothesis | None = None
) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        x = [int(rng.binomial(size, share)) for size, share in zip(n, p, strict=True)]
        return proportion_effect(x[0], n[0], x[1], n[1], hypothesis=hypothesis or Hypothesis())

    return run


def _proportion_power(rng: Rng) -> bool:
    n = sample_size(
        standard_deviation=proportion_deviation(0.05),
        treatment_deviation=proportion_deviation(0.06),
        effect=0.01,
    ).control
    return _proportions((0.05, 0.06), (n, n))(rng).p_value < ALPHA


def _counts(rates: tuple[float, float]) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        return count_effect(int(rng.poisson(rates[0])), 1.0, int(rng.poisson(rates[1])), 1.0)

    return run


# Users with many requests


def users(rng: Rng, n: int, rate: float, factor: float = 1.0) -> np.ndarray:
    """Rows of (clicks, views, clicks before, views before); a user's own rate is the same in both periods."""
    own = np.minimum(1.0, factor * rng.beta(2, 2 / rate - 2, n))
    views, before = rng.geometric(0.1, n), rng.geometric(0.1, n)
    return np.column_stack([rng.binomial(views, own), views, rng.binomial(before, own / factor), before])


USERS = ("clicks", "views", "old_clicks", "old_views")


def _ratio(factor: float = 1.0) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        arms = (Moments.from_rows(USERS, users(rng, 800, 0.2, f)) for f in (1.0, factor))
        return ratio_effect(*arms, "clicks", "views")

    return run


def _cuped_ratio(rng: Rng) -> bool:
    arms = (Moments.from_rows(USERS, users(rng, 800, 0.2)) for _ in range(2))
    found = cuped_ratio_effect(*arms, "clicks", "views", [("old_clicks", "old_views")])
    return found.effect.p_value < ALPHA


def _watchers(rng: Rng, n: int, effect: float) -> Moments:
    level = rng.lognormal(0, 0.8, n)
    new = rng.random(n) < 0.2  # users without history
    before = np.where(new, 0.0, level * rng.lognormal(0, 0.4, n))
    return Moments.from_rows(
        ("y", "x", "new"), np.column_stack([level * rng.lognormal(0, 0.4, n) + effect, before, new])
    )


def _cuped(effect: float) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        return cuped_effect(_watchers(rng, 600, 0.0), _watchers(rng, 1200, effect), "y", ["x", "new"]).effect

    return run


# Quantiles


def _quantiles(q: float, n: int, factor: float) -> Callable[[Rng], Effect]:
    def run(rng: Rng) -> Effect:
        arms = (
            quantile_interval(rng.lognormal(size=n), q),
            quantile_interval(factor * rng.lognormal(size=n), q),
        )
        return quantile_effect(*arms)

    return run


def _requests(rng: Rng, users: int) -> tuple[np.ndarray, np.ndarray]:
    events = rng.geometric(0.2, users)
    user = np.repeat(np.arange(users), events)
    level = rng.normal(0, 1, users)[user]
    return user, np.exp(0.7 * level + math.sqrt(1 - 0.49) * rng.standard_normal(len(user)))


def _clustered_quantile(rng: Rng) -> Effect:
    def one() -> object:
        user, values = _requests(rng, 600)
        ordered = np.sort(values)

        def read(p: float) -> float:
            return float(ordered[min(len(ordered), max(1, math.ceil(len(ordered) * p))) - 1])

        below = np.bincount(user, weights=values <= read(0.95), minlength=600)
        units = Moments.from_rows(
            ("events", "below"), np.column_stack([np.bincount(user, minlength=600), below])
        )
        return clustered_quantile_interval(read, 0.95, units, events="events", at_or_below="below")

    return quantile_effect(one(), one())  # type: ignore[arg-type]  # object: the closure is shared by two arms


# Several at once


def _family(rng: Rng) -> list[float]:
    shared = rng.standard_normal((2, 200, 1))  # ten metrics that move together
    rows = 0.5 * shared + rng.standard_normal((2, 200, 10))
    arms = [Moments.from_rows([f"m{k}" for k in range(10)], arm) for arm in rows]
    return [mean_effect(*arms, f"m{k}").p_value for k in range(10)]


def _discoveries(rng: Rng) -> float:
    rows = rng.standard_normal((2, 200, 20))
    rows[1, :, :10] += 0.35
    arms = [Moments.from_rows([f"m{k}" for k in range(20)], arm) for arm in rows]
    found = [p < 0.1 for p in benjamini_hochberg([mean_effect(*arms, f"m{k}").p_value for k in range(20)])]
    return sum(found[10:]) / max(1, sum(found))


# Groups that were not randomised


def _cities(rng: Rng, n: int, effect: float) -> Moments:
    level = rng.lognormal(3, 1, (n, 1))
    weeks = level + np.array([0.0, 1.0, 2.0, 3.0 + effect]) + rng.normal(0, 1, (n, 4)).cumsum(axis=1)
    return Moments.from_rows(("w1", "w2", "w3", "w4"), weeks)


def _did(rng: Rng) -> bool:
    found = difference_in_differences(
        _cities(rng, 30, 0.0), _cities(rng, 20, 1.5), before=["w1", "w2", "w3"], after=["w4"]
    )
    return _covers(found, 1.5)


def _trends(rng: Rng) -> bool:
    return (
        parallel_trends(_cities(rng, 30, 0.0), _cities(rng, 20, 0.0), before=["w1", "w2", "w3"]).p_value
        < ALPHA
    )


def _trends_of_few(rng: Rng) -> bool:
    arms = (Moments.from_rows(("w1", "w2", "w3"), rng.normal(0, sd, (n, 3))) for n, sd in ((5, 1), (8, 2)))
    return parallel_trends(*arms, before=["w1", "w2", "w3"]).p_value < ALPHA


# Distributions


def _moved(statistic: Callable[..., object], **kwargs: object) -> Callable[[Rng], float]:
    shares = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.03, 0.02])

    def run(rng: Rng) -> float:
        found = statistic(rng.multinomial(3000, shares), rng.multinomial(5000, shares), alpha=ALPHA, **kwargs)
        return float(found.moved)  # type: ignore[attr-defined]  # every one of them returns a Divergence

    return run


def _earth(rng: Rng) -> float:
    return _moved(wasserstein, edges=range(10), rng=rng)(rng)


def _false(run: Callable[[Rng], Effect]) -> Callable[[Rng], float]:
    return lambda rng: run(rng).p_value < ALPHA


def scenario(
    estimator: str,
    data: str,
    quantity: str,
    nominal: float,
    tolerance: float,
    seed: int,
    run: Callable[[Rng], float],
    side: str = "both",
    one_in: int = 1,
) -> Scenario:
    return Scenario(
        estimator=estimator,
        data=data,
        quantity=quantity,
        nominal=nominal,
        tolerance=tolerance,
        seed=seed,
        run=run,
        side=side,
        one_in=one_in,
    )  # type: ignore[arg-type]  # the table's words


_FALSE, _COVERAGE, _POWER = "false positive rate", "coverage", "power"

SCENARIOS: tuple[Scenario, ...] = (
    scenario("mean (Welch)", "skewed, 500 and 500 users", _FALSE, 0.05, 0.005, 101, _false(_means((500, 500)))),
    scenario("mean (Welch)", "skewed, 200 and 4,000 users", _FALSE, 0.05, 0.03, 102, _false(_means((200, 4000)))),
    scenario("mean (Welch)", "variances 9:1, 30 and 3,000 users", _FALSE, 0.05, 0.005, 103, _false(_unequal)),
    scenario("mean (Welch)", "skewed, +10 %, 1,000 users an arm", _COVERAGE, 0.95, 0.01, 104,
              lambda rng: _covers(_means((1000, 1000), 1.1)(rng), 0.1 * _MEAN)),
    scenario("relative mean (Fieller)", "skewed, +10 %, 1,000 users an arm", _COVERAGE, 0.95, 0.01, 105,
              lambda rng: _covers_relative(_means((1000, 1000), 1.1)(rng), 0.1)),
    scenario("mean (Welch)", "normal, as many users as sample_size says", _POWER, 0.8, 0.01, 106, _mean_power),
    scenario("mean, not worse by 10 %", "gamma, exactly 10 % worse", _FALSE, 0.05, 0.005, 107, _non_inferior),
    scenario("mean, equivalence", "gamma, exactly at the margin", _FALSE, 0.05, 0.005, 108, _equivalent),
    scenario("winsorised mean", "Pareto 1.5 (no variance), capped at the pooled 99 %",
              _FALSE, 0.05, 0.005, 109, _winsorised),
    scenario("proportion (score)", "1 in 1,000, 5,000 and 5,000 users", _FALSE, 0.05, 0.015, 111,
              _false(_proportions((0.001, 0.001), (5000, 5000)))),
    scenario("proportion (score)", "1 %, 500 and 20,000 users",
              _FALSE, 0.05, 0.015, 112, _false(_proportions((0.01, 0.01), (500, 20000)))),
    scenario("proportion (score)", "2 % to 3 %, 1,000 and 2,000 users", _COVERAGE, 0.95, 0.01, 113,
              lambda rng: _covers(_proportions((0.02, 0.03), (1000, 2000))(rng), 0.01)),
    scenario("relative proportion (score)", "2 % to 3 %, 1,000 and 2,000 users", _COVERAGE, 0.95, 0.01, 114,
              lambda rng: _covers_relative(_proportions((0.02, 0.03), (1000, 2000))(rng), 0.5)),
    scenario("proportion, not worse by 0.2 pp", "0.5 %, exactly at the margin", _FALSE, 0.05, 0.01, 115,
              _false(_proportions((0.005, 0.007), (8000, 8000), not_worse(by=0.002, better="lower")))),
    scenario("proportion (score)", "5 % to 6 %, as many users as sample_size says",
              _POWER, 0.8, 0.01, 116, _proportion_power),
    scenario("count (exact)", "3 and 3 events expected", _FALSE, 0.05, 0.0, 121, _false(_counts((3, 3))), "at most"),
    scenario("count (exact)", "100 and 100 events expected",
              _FALSE, 0.05, 0.0, 122, _false(_counts((100, 100))), "at most"),
    scenario("relative count (exact)", "10 and 20 events expected", _COVERAGE, 0.95, 0.0, 123,
              lambda rng: _covers_relative(_counts((10, 20))(rng), 1.0), "at least"),
    scenario("count difference (MOVER)", "10 and 20 events expected", _COVERAGE, 0.95, 0.005, 124,
              lambda rng: _covers(_counts((10, 20))(rng), 10.0), "at least"),
    scenario("ratio (delta)", "clustered, 800 users an arm", _FALSE, 0.05, 0.007, 131, _false(_ratio())),
    scenario("relative ratio (delta, Fieller)", "clustered, +10 %, 800 users an arm", _COVERAGE, 0.95, 0.01, 132,
              lambda rng: _covers_relative(_ratio(1.1)(rng), 0.1)),
    scenario("CUPED, two covariates", "skewed, a fifth without history, 600 and 1,200 users",
              _FALSE, 0.05, 0.007, 141, _false(_cuped(0.0))),
    scenario("CUPED, two covariates", "skewed, a fifth without history, effect 0.2", _COVERAGE, 0.95, 0.01, 142,
              lambda rng: _covers(_cuped(0.2)(rng), 0.2)),
    scenario("CUPED of a ratio", "clustered, 800 users an arm", _FALSE, 0.05, 0.007, 143, _cuped_ratio),
    scenario("quantile (MOVER)", "p99 of 5,000 skewed requests an arm",
              _FALSE, 0.05, 0.015, 151, _false(_quantiles(0.99, 5000, 1.0))),
    scenario("quantile (MOVER)", "p50 of 1,000 skewed requests an arm, +10 %", _COVERAGE, 0.95, 0.015, 152,
              lambda rng: _covers(_quantiles(0.5, 1000, 1.1)(rng), 0.1)),
    scenario("relative quantile (MOVER)", "p95 of 2,000 skewed requests an arm, +10 %", _COVERAGE, 0.95, 0.015, 153,
              lambda rng: _covers_relative(_quantiles(0.95, 2000, 1.1)(rng), 0.1)),
    scenario("quantile, clustered (delta)", "p95, 600 users an arm, 5 requests each",
              _FALSE, 0.05, 0.015, 154, _false(_clustered_quantile)),
    scenario("matched pairs", "50 fields, 500 requests, noise that differs by request and field, nothing changed",
              _FALSE, 0.05, 0.0, 155, lambda rng: _any_more(answered_twice(rng, 500)), "at most"),
    scenario("matched pairs", "3 fields with two discordant requests in the mean, nothing changed",
              _FALSE, 0.05, 0.0, 156, _few_pairs, "at most"),
    scenario("matched pairs", "one of 50 fields breaks in 6 % of 1,000 requests, beside 10 % noise",
              "power", 0.8, 0.0, 157, _broken_field, "at least"),
    scenario("Holm", "ten correlated metrics, nothing moved",
              _FALSE, 0.05, 0.005, 161, lambda rng: min(holm(_family(rng))) < ALPHA, "at most"),
    scenario("Benjamini–Hochberg", "twenty metrics, half moved, level 10 %",
              "false discovery rate", 0.05, 0.005, 162, _discoveries),
    scenario("difference in differences", "20 and 30 cities, random walks, effect 1.5",
              _COVERAGE, 0.95, 0.007, 171, _did),
    scenario("parallel trends", "20 and 30 cities, three periods", _FALSE, 0.05, 0.005, 172, _trends),
    scenario("parallel trends", "5 and 8 cities, variances 1:4, three periods", _FALSE, 0.05, 0.01, 173,
             _trends_of_few, "at most"),
    scenario("PSI", "3,000 and 5,000 units in nine bins",
              _FALSE, 0.05, 0.007, 181, _moved(population_stability_index)),
    scenario("Jensen–Shannon", "3,000 and 5,000 units in nine bins",
              _FALSE, 0.05, 0.007, 182, _moved(jensen_shannon)),
    scenario("chi-square", "3,000 and 5,000 units in nine bins", _FALSE, 0.05, 0.005, 183, _moved(chi_square)),
    scenario("Wasserstein", "3,000 and 5,000 units in nine bins", _FALSE, 0.05, 0.007, 184, _earth),
)  # fmt: skip
