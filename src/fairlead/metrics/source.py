"""Where figures come from: the port that every source of a metric implements.

A guardrail reads events of the last ten minutes, an experiment a table of ten million users, a dossier last month's
Parquet. They must not each compute "the error rate" in their own way. So a source takes metrics as they are
defined, and answers with sufficient statistics per group: nothing larger leaves it, and `fairlead.statistics` does the
rest alike for all.

A metric's columns, one row per unit, are what its estimator asks for:

    mean, proportion            one column; with a `where`, or where a unit has many events: a ratio of two
    ratio                       numerator and denominator
    formula                     one for each name
    total                       the sum over a unit's events
    count, rate                 events of a unit
    quantile                    no moments: an `Estimate` per group
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fairlead.errors import InvalidInput
from fairlead.metrics.metric import Metric

if TYPE_CHECKING:  # naming a metric costs no numpy
    from fairlead.statistics import Estimate, Moments

__all__ = ["Family", "Group", "Source", "Window"]

Group = tuple[str, ...]
"""The values of the grouping columns, as text: ``("treatment",)``; "" where it is missing; empty without grouping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A span of time, from `start` on and before `end`; seconds since 1970, UTC."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise InvalidInput(
                f"window from {self.start!r} to {self.end!r}: the end must come after the start"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What a source found for a family of metrics: sufficient statistics, and what a figure needs to be believed."""

    columns: Mapping[str, tuple[str, ...]]
    """By metric: the columns of its moments; two are numerator and denominator of a ratio. Covariates follow."""
    moments: Mapping[str, Mapping[Group, Moments]]
    """By metric and group; a quantile has none."""
    quantiles: Mapping[str, Mapping[Group, Estimate]]
    """By quantile metric and group."""
    units: Mapping[Group, int]
    """Units of analysis by group, before any `where`."""
    query_sha256: str
    """Hash of the queries, in the order they were run."""
    window: Window | None = None
    """The span that was asked for; None: everything there is."""
    caveats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By metric: what a reader must know; "" for the family."""

    def ratio(self, metric: str) -> tuple[str, str] | None:
        """Numerator and denominator where the metric is a ratio of its columns; None where it is a mean."""
        columns = self.columns.get(metric, ())
        outcome = tuple(column for column in columns if not column.startswith(COVARIATE))
        return (outcome[0], outcome[1]) if len(outcome) == 2 else None


COVARIATE = "before "
"""What the column of a covariate is called: ``before watch``. No field of an event begins so."""


class Source(Protocol):
    """Answers what metrics ask. Methods block; call them in a thread."""

    def measure(
        self,
        metrics: Sequence[Metric],
        *,
        by: Sequence[str] = (),
        covariates: Mapping[str, Sequence[str]] | None = None,
        window: Window | None = None,
    ) -> Family:
        """The family's statistics, by the values of columns such as the variant.

        covariates: by metric, columns of the table measured before exposure. All metrics read one event or table and
        have one `unit_field`. Raises InvalidInput for what the source cannot compute, and its own errors.
        """
        ...
