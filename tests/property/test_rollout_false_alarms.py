"""A rollout of a change that changes nothing is rolled back no more often than alpha says, however often one looks."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from scipy import stats

from bench.rollout_false_alarms import Watched, disagreements, false_alarms
from bench.rollout_population import PLAN, WORLDS

ROLLOUTS = 600


@pytest.fixture(scope="module")
def watched() -> list[Watched]:
    """Every world, 480 looks a rollout."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        worlds = range(len(WORLDS))
        return list(pool.map(false_alarms, worlds, [ROLLOUTS] * len(worlds), [(11,)] * len(worlds)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", range(len(WORLDS)), ids=["alike", "sticky", "day"])
def test_false_rollbacks_stay_below_alpha(world: int, watched: list[Watched]) -> None:
    found = watched[world]
    # More than this many of 600 is seen once in a thousand such tests where the chance is alpha.
    assert found.rollouts == ROLLOUTS
    assert found.rolled_back <= stats.binom.ppf(0.999, ROLLOUTS, PLAN.alpha)


def test_sticky_users_would_be_rolled_back_if_requests_were_counted(watched: list[Watched]) -> None:
    """What shows that this world is one in which mistakes are made."""
    assert watched[1].by_requests > stats.binom.ppf(0.999, ROLLOUTS, PLAN.alpha)


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=["alike", "sticky", "day"])
def test_what_is_watched_is_what_the_product_counts_and_judges(world: int) -> None:
    differing, compared = disagreements(world, 1, (5,))
    assert compared >= 80  # each look of a stage in which treatment has no unit yet compares less
    assert differing == 0
