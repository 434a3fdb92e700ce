"""The answer when the model cannot give one: a weighted sum that a person can read.

It needs no file, no thread and no warm-up, and it cannot time out. A ranking by it is worse than the model's
and far better than an error page, so every answer it gives is marked as degraded by the scheduler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from fairlead.errors import InvalidInput
from fairlead.inference.feature_schema import FeatureSchema, Rows

__all__ = ["HeuristicScorer"]


class HeuristicScorer:
    """Scores a row by a fixed weighted sum of named features.

    weights: feature name to weight, finite; names outside the schema raise InvalidInput.
    version: defaults to "heuristic-" and the first 8 digits of the hash of schema and weights.

    >>> schema = FeatureSchema(names=("age_hours", "popularity"), version="1")
    >>> HeuristicScorer(schema, {"popularity": 2.0, "age_hours": -0.5}).score([(2.0, 3.0)])
    (5.0,)
    """

    def __init__(self, schema: FeatureSchema, weights: Mapping[str, float], *, version: str = "") -> None:
        unknown = sorted(set(weights) - set(schema.names))
        if unknown or not weights:
            raise InvalidInput(
                f"weights: {', '.join(unknown) or 'none given'}; known are {', '.join(schema.names)}"
            )
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= 1e9:
                raise InvalidInput(f"weights: {name} is {weight!r}: use a number from -1e9 to 1e9")
        self.schema = schema
        # Column order, not the mapping's: float addition is not associative, and equal weights must score
        # equally.
        self._terms = tuple(
            (i, float(weights[n])) for i, n in enumerate(schema.names) if weights.get(n, 0) != 0
        )
        named = json.dumps([schema.hash, self._terms], separators=(",", ":"))
        self.version = version or f"heuristic-{hashlib.sha256(named.encode()).hexdigest()[:8]}"

    def score(self, rows: Rows) -> tuple[float, ...]:
        """One finite score per row. Pure: touches no shared state and never blocks."""
        terms = self._terms
        return tuple([sum([row[column] * weight for column, weight in terms]) for row in rows])
