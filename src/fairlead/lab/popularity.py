"""Which key a request asks for: few keys take most of the traffic.

A cache in front of uniform keys hardly ever hits, and a herd on one hot key never forms; both are what a load
test of a cache must show. Popularity of rank r falls as r^−alpha (Zipf). In the statistics that Twitter
published of 54 production cache clusters, alpha lies between 0 and 2.7, median 1.2, quartiles 0.63 and 1.51
(51 clusters with a value).

Source: Yang, Yue, Rashmi, "A large scale analysis of hundreds of in-memory cache clusters at Twitter", OSDI
2020; figures computed from stat/2020Mar.md of its trace release, github.com/twitter/cache-trace.
"""

from __future__ import annotations

from fairlead.errors import MissingExtra
from fairlead.lab.limits import MOST_REQUESTS, number_within, whole_number_within

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing

__all__ = ["IntArray", "Zipf"]

IntArray = NDArray[np.int64]


class Zipf:
    """Keys 0 to `keys` − 1, key 0 the most popular; key k is asked for in proportion to (k + 1)^−alpha.

    keys: 1 to ten million (8 bytes each are held). alpha: 0 (all equal) to 3.

    >>> round(Zipf(3, 1.0).probability(0), 4)  # 1 / (1 + 1/2 + 1/3)
    0.5455
    """

    __slots__ = ("_cumulative", "alpha", "keys")

    def __init__(self, keys: int, alpha: float = 1.0) -> None:
        self.keys = whole_number_within("keys", keys, 1, MOST_REQUESTS)
        self.alpha = number_within("alpha", alpha, 0.0, 3.0)
        cumulative = np.cumsum(np.arange(1, self.keys + 1, dtype=np.float64) ** -self.alpha)
        cumulative /= cumulative[-1]
        cumulative[-1] = 1.0  # rounding below 1 would let a draw fall past the last key
        self._cumulative = cumulative

    def sample(self, n: int, rng: np.random.Generator) -> IntArray:
        """`n` independent keys: int64, shape (n,), by the inverse of the distribution function."""
        whole_number_within("n", n, 0, MOST_REQUESTS)
        return np.searchsorted(self._cumulative, rng.random(n), side="right").astype(np.int64, copy=False)

    def probability(self, key: int) -> float:
        """Share of the requests that ask for `key`, 0–1."""
        key = whole_number_within("key", key, 0, self.keys - 1)
        below = float(self._cumulative[key - 1]) if key else 0.0
        return float(self._cumulative[key]) - below
