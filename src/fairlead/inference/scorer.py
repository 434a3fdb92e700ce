"""The port: whatever turns feature rows into scores.

A scorer is synchronous and knows nothing of event loops, queues or deadlines; the `Scheduler` in front of it
does. Equal rows give equal scores, and a row's score does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fairlead.inference.feature_schema import FeatureSchema, Rows

__all__ = ["Scorer"]


class Scorer(Protocol):
    """What a driver implements. `score` may be called from several threads at a time."""

    @property
    def version(self) -> str:
        """Names the model in events and stats, so that a shift in scores can be laid at its door."""
        ...

    @property
    def schema(self) -> FeatureSchema:
        """The columns that `score` expects."""
        ...

    def score(self, rows: Rows) -> Sequence[float]:
        """One finite score per row, in order; higher ranks first. Blocks until done.

        rows: shape (n, k), n >= 1, already validated against `schema`.
        """
        ...
