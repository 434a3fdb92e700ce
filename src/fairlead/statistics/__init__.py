"""How sure is a figure?

A percentile without its interval invites a decision that the next run reverses. Each function here returns
an `Estimate`: the value, the interval, how much data stood behind it, by which method, and what a reader
must know (`caveat`). Where the data cannot carry an interval there is none, with the reason; there is never
a NaN.

Correlated data (requests of one second share a queue) are grouped in clusters, and only clusters count as
independent.
"""

from __future__ import annotations

from fairlead.statistics.estimate import Estimate
from fairlead.statistics.moments import Moments
from fairlead.statistics.proportions import proportion_interval
from fairlead.statistics.quantiles import quantile_interval

__all__ = ["Estimate", "Moments", "proportion_interval", "quantile_interval"]
