"""How sure is a figure, and is the difference between two of them more than chance?

A percentile without its interval invites a decision that the next run reverses. `Estimate` is one figure with
its interval, `Effect` the difference between control and treatment with interval and p-value. Everything is
computed from sufficient statistics: `Moments`, counts, quantiles. Where the data cannot carry an answer there
is a refusal (`NotEstimable`) or a `caveat` with the reason; there is never a NaN.

Correlated data (requests of one second share a queue, events of one user a phone) are grouped in clusters or
units, and only those count as independent.
"""

from __future__ import annotations

from fairlead.statistics.counts import count_effect
from fairlead.statistics.cumulative_counts import CumulativeCounts
from fairlead.statistics.cuped import Cuped, cuped_effect, cuped_ratio_effect
from fairlead.statistics.diff_in_diff import ParallelTrends, difference_in_differences, parallel_trends
from fairlead.statistics.divergence import (
    Divergence,
    chi_square,
    jensen_shannon,
    population_stability_index,
    wasserstein,
)
from fairlead.statistics.effect import Effect
from fairlead.statistics.estimate import Estimate
from fairlead.statistics.hypothesis import Alternative, Equivalence, Hypothesis, equivalence, not_worse
from fairlead.statistics.matched_pairs import DiscordantPairs, discordant_pairs
from fairlead.statistics.means import mean_effect, mean_interval
from fairlead.statistics.moments import Moments
from fairlead.statistics.multiplicity import benjamini_hochberg, bonferroni, holm
from fairlead.statistics.power import (
    SampleSize,
    minimum_detectable_effect,
    power,
    proportion_deviation,
    quantile_deviation,
    sample_size,
)
from fairlead.statistics.proportion_effect import proportion_effect
from fairlead.statistics.proportions import proportion_interval
from fairlead.statistics.quantile_effect import clustered_quantile_interval, quantile_effect
from fairlead.statistics.quantiles import quantile_interval
from fairlead.statistics.ratios import ratio_effect, smooth_effect
from fairlead.statistics.sample_ratio import SampleRatio, sample_ratio, sequential_sample_ratio
from fairlead.statistics.sequential_counts import SequentialCounts, sequential_counts
from fairlead.statistics.sequential_means import SequentialEffect, sequential_effect
from fairlead.statistics.sequential_proportions import sequential_difference_bound
from fairlead.statistics.sequential_quantile_effect import sequential_quantile_effect
from fairlead.statistics.sequential_quantiles import quantile_ratio_bounds, sequential_quantile_interval
from fairlead.statistics.winsor import pooled_cap, winsorise

__all__ = [
    "Alternative",
    "CumulativeCounts",
    "Cuped",
    "DiscordantPairs",
    "Divergence",
    "Effect",
    "Equivalence",
    "Estimate",
    "Hypothesis",
    "Moments",
    "ParallelTrends",
    "SampleRatio",
    "SampleSize",
    "SequentialCounts",
    "SequentialEffect",
    "benjamini_hochberg",
    "bonferroni",
    "chi_square",
    "clustered_quantile_interval",
    "count_effect",
    "cuped_effect",
    "cuped_ratio_effect",
    "difference_in_differences",
    "discordant_pairs",
    "equivalence",
    "holm",
    "jensen_shannon",
    "mean_effect",
    "mean_interval",
    "minimum_detectable_effect",
    "not_worse",
    "parallel_trends",
    "pooled_cap",
    "population_stability_index",
    "power",
    "proportion_deviation",
    "proportion_effect",
    "proportion_interval",
    "quantile_deviation",
    "quantile_effect",
    "quantile_interval",
    "quantile_ratio_bounds",
    "ratio_effect",
    "sample_ratio",
    "sample_size",
    "sequential_counts",
    "sequential_difference_bound",
    "sequential_effect",
    "sequential_quantile_effect",
    "sequential_quantile_interval",
    "sequential_sample_ratio",
    "smooth_effect",
    "wasserstein",
    "winsorise",
]
