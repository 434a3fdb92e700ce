"""Which number stands in which column, agreed once between training and serving.

A model reads columns by position. Serving code that adds a feature, drops one or swaps two still sends
numbers of the right shape, and the model answers with confident nonsense that no exception betrays. So the
order of names is a value with a hash: training writes the hash beside the model, serving compares it before
the first request, and rows are built from names, never from positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypeAlias

from fairlead.errors import InvalidInput

__all__ = ["FeatureSchema", "Rows"]

Rows: TypeAlias = Sequence[Sequence[float]]
"""Feature rows, shape (n, k): plain Python numbers, so that the port needs no numpy. Call `.tolist()` on an
array.
"""

_LARGEST_FLOAT32 = 3.4028234663852886e38
_MOST_FEATURES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSchema:
    """The columns of a model, in order.

    >>> schema = FeatureSchema(names=("age_hours", "popularity"), version="1")
    >>> schema.rows([{"popularity": 3.0, "age_hours": 0.5}])
    [(0.5, 3.0)]
    """

    names: tuple[str, ...]
    """Feature names in column order; unique and not empty."""
    version: str
    """Name of this meaning of the columns. Raise it when a feature keeps its name but changes its unit."""
    dtype: Literal["float32"] = "float32"
    """What the model computes in; larger values than it can hold are refused."""
    hash: str = field(init=False)
    """SHA-256, hexadecimal, of the canonical JSON of names, version and dtype."""

    def __post_init__(self) -> None:
        if not isinstance(self.names, tuple) or not 1 <= len(self.names) <= _MOST_FEATURES:
            raise InvalidInput(
                f"names: give a tuple of 1 to {_MOST_FEATURES} feature names, not {self.names!r:.60}"
            )
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise InvalidInput(f"names: {name!r:.60} is not a feature name: use non-empty strings")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise InvalidInput(f"names: {', '.join(twice)} stands in more than one column: keep one")
        if not isinstance(self.version, str) or not self.version:
            raise InvalidInput(f"version: {self.version!r:.60} is empty or no string: use for example '1'")
        if self.dtype != "float32":
            raise InvalidInput(f"dtype: {self.dtype!r:.60} is not supported: use 'float32'")
        canonical = json.dumps(
            {"dtype": self.dtype, "names": self.names, "version": self.version},
            sort_keys=True,
            separators=(",", ":"),
        )
        object.__setattr__(self, "hash", hashlib.sha256(canonical.encode()).hexdigest())

    def rows(self, items: Iterable[Mapping[str, float]]) -> list[tuple[float, ...]]:
        """One validated row per mapping, in column order; names that the schema does not know are left out.

        Raises InvalidInput naming the first missing, non-numeric or non-finite feature.
        """
        rows = []
        for number, item in enumerate(items):
            try:
                rows.append(tuple([float(item[name]) for name in self.names]))
            except KeyError:
                missing = ", ".join(name for name in self.names if name not in item)
                raise InvalidInput(
                    f"row {number} lacks the features {missing}: the model needs all"
                ) from None
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidInput(f"row {number} holds a feature that is not a number: {error}") from error
        self.validate(rows)
        return rows

    def validate(self, rows: Rows) -> None:
        """Raises InvalidInput unless every row has one finite number per name. Costs about 0.5 µs a row."""
        width = len(self.names)
        try:
            for number, row in enumerate(rows):
                if len(row) != width:
                    raise InvalidInput(f"row {number} has {len(row)} features, the schema has {width}")
                # A sum is finite only if no term is NaN or infinite: three C loops instead of one in Python.
                if not (
                    isfinite(sum(row)) and min(row) >= -_LARGEST_FLOAT32 and max(row) <= _LARGEST_FLOAT32
                ):
                    self._refuse(number, row)
        except (TypeError, OverflowError) as error:
            raise InvalidInput(f"rows are not sequences of plain numbers: {error}") from error

    def _refuse(self, number: int, row: Sequence[float]) -> None:
        for name, value in zip(self.names, row, strict=True):
            if not (isfinite(value) and abs(value) <= _LARGEST_FLOAT32):
                raise InvalidInput(
                    f"row {number}: {name} is {value!r}: a feature is a finite number up to 3.4e38; "
                    "replace a missing value before scoring"
                )
