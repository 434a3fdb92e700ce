from __future__ import annotations

import pytest

from fairlead.errors import InvalidInput
from fairlead.inference import FeatureSchema, HeuristicScorer

SCHEMA = FeatureSchema(names=("a", "b", "c"), version="1")


def test_a_score_is_the_weighted_sum_of_the_named_features() -> None:
    assert HeuristicScorer(SCHEMA, {"a": 2.0, "c": -1.0}).score([(1.0, 9.0, 3.0), (0.0, 9.0, 0.0)]) == (
        -1.0,
        0.0,
    )


def test_the_order_of_the_weights_changes_neither_scores_nor_version() -> None:
    rows = [(0.1, 0.2, 0.3)]
    one = HeuristicScorer(SCHEMA, {"a": 1e8, "b": 1e-8, "c": -1e8})
    other = HeuristicScorer(SCHEMA, {"c": -1e8, "b": 1e-8, "a": 1e8})
    assert one.score(rows) == other.score(rows)
    assert one.version == other.version


def test_other_weights_are_another_version() -> None:
    assert HeuristicScorer(SCHEMA, {"a": 1.0}).version != HeuristicScorer(SCHEMA, {"a": 2.0}).version


@pytest.mark.parametrize(
    "weights",
    [{}, {"d": 1.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": True}, {"a": "1"}, {"a": 10**12}],
)
def test_weights_that_name_no_number_of_the_schema_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=r"^weights: "):
        HeuristicScorer(SCHEMA, weights)
