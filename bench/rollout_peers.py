"""What others watch a canary with, each reduced to the one number that its limit is compared with, minute by minute.

    threshold     treatment's figure of the last minutes beyond a limit at N checks of the stage
                    Argo Rollouts' documented `success-rate`: every 5 minutes over 5 minutes, `failureLimit: 3`, so the
                    fourth failed measurement aborts
                    Flagger's documented canary: every minute over a minute, `threshold: 10`, failed checks are added up
    ranks         Mann–Whitney on the two series of minutes, as Kayenta's judge compares them
    repeated z    two proportions of all units so far, tested each minute as if for the first time

Each returns, for every run and minute, the largest number by which the rule has been satisfied by then. The rule fires
when that passes its limit, so one sorted column of runs without a regression tunes any of them to any false-alarm rate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fairlead.statistics.clusters import FloatArray

__all__ = [
    "ARGO",
    "FLAGGER",
    "FewChecks",
    "fired",
    "kayenta_high",
    "limit_for",
    "nth_worst",
    "rank_scores",
    "repeated_z",
]

FewChecks = tuple[int, int]
"""Minutes between checks (and in each), and how many failed checks roll back."""
ARGO: FewChecks = (5, 4)
FLAGGER: FewChecks = (1, 10)


def nth_worst(figures: FloatArray, failures: int) -> FloatArray:
    """The `failures`-th largest figure so far: beyond a limit if and only if so many checks have been.

    figures: shape (runs, checks). −inf until there have been so many.

    >>> nth_worst(np.array([[3.0, 1.0, 2.0, 5.0]]), 2).tolist()
    [[-inf, 1.0, 2.0, 3.0]]
    """
    runs, checks = figures.shape
    found = np.full((runs, checks), -np.inf)
    worst = np.full((runs, failures), -np.inf)
    for check in range(checks):
        lowest = worst.argmin(axis=1)
        rows = np.arange(runs)
        worst[rows, lowest] = np.maximum(worst[rows, lowest], figures[:, check])
        found[:, check] = worst.min(axis=1)
    return found


def rank_scores(control: FloatArray, treatment: FloatArray, first: int = 5) -> FloatArray:
    """Standard scores of Mann and Whitney's U of the first minutes of both series, above 0 where treatment is higher.

    control, treatment: shape (runs, minutes). Ties count one half; their smaller variance is left out, which a limit
    tuned on the same series makes up for. −inf before minute `first`.

    >>> control, treatment = np.array([[19.0, 22, 16, 29, 24]]), np.array([[20.0, 11, 17, 12, 26]])
    >>> round(float(rank_scores(control, treatment)[0, -1]), 4)   # U is 7 of 25: (7 − 12.5) / √(25 · 11 / 12)
    -1.1489
    """
    runs, minutes = control.shape
    size = np.arange(1, minutes + 1, dtype=np.float64)
    scores = np.empty((runs, minutes))
    for run in range(runs):
        above = treatment[run][:, None] - control[run][None, :]
        wins = (above > 0) + 0.5 * (above == 0)
        u = wins.cumsum(axis=0).cumsum(axis=1).diagonal()
        scores[run] = (u - size * size / 2) / np.sqrt(size * size * (2 * size + 1) / 12)
    scores[:, : first - 1] = -np.inf
    return scores


def kayenta_high(
    control: FloatArray, treatment: FloatArray, *, confidence: float = 0.98, tolerance: float = 0.25
) -> bool:
    """Whether Kayenta's judge calls treatment `High`, with its own settings as defaults.

    The interval of the shift between the series (Hodges and Lehmann's estimate, ranks of all differences by the normal
    approximation, as R's `wilcox.test` takes them) has to lie above a quarter of the estimate. Its judge decides per
    metric; scores over many metrics are not reproduced.

    >>> kayenta_high(np.arange(50.0), np.arange(50.0) + 30), kayenta_high(np.arange(50.0), np.arange(50.0) + 5)
    (True, False)
    """
    differences = np.sort((treatment[:, None] - control[None, :]).ravel())
    m, n = len(treatment), len(control)
    spread = math.sqrt(m * n * (m + n + 1) / 12)
    rank = math.floor(m * n / 2 - float(special.ndtri(0.5 + confidence / 2)) * spread - 0.5)
    if rank < 0:
        return False
    return bool(differences[rank] > tolerance * abs(float(np.median(differences))))


def repeated_z(
    bad_control: FloatArray, n_control: FloatArray, bad_treatment: FloatArray, n_treatment: FloatArray
) -> FloatArray:
    """Scores of the pooled test of two proportions, above 0 where treatment's is higher; 0 while nothing varies.

    >>> round(float(repeated_z(np.array(30.0), np.array(100.0), np.array(45.0), np.array(100.0))), 4)
    2.1909
    """
    n = n_control + n_treatment
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (bad_control + bad_treatment) / n
        error = np.sqrt(pooled * (1 - pooled) * (1 / n_control + 1 / n_treatment))
        z = (bad_treatment / n_treatment - bad_control / n_control) / error
    return np.asarray(np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0), dtype=np.float64)


def limit_for(scores: FloatArray, alpha: float) -> float:
    """The limit that a share of alpha of these runs passes at any minute; scores of runs without a regression.

    >>> limit_for(np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [4.0, 4.0]]), 0.25)
    3.0
    """
    highest = np.sort(scores.max(axis=1))
    return float(highest[max(0, len(highest) - 1 - math.floor(alpha * len(highest)))])


def fired(scores: FloatArray, limit: float) -> NDArray[np.int64]:
    """The first minute (from 1) at which each run passes the limit; 0 for a run that never does.

    >>> fired(np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), 1.5).tolist()
    [2, 0]
    """
    passed = scores > limit
    return np.where(passed.any(axis=1), passed.argmax(axis=1) + 1, 0).astype(np.int64)
