from __future__ import annotations

import pytest

from fairlead.errors import InvalidInput
from fairlead.inference import FeatureSchema

SCHEMA = FeatureSchema(names=("age", "size"), version="1")


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    assert SCHEMA.hash == "2c091f76fb324eca2cd132fefdc6eb3bd01b32130ae02d98877d7aab431de53d"


@pytest.mark.parametrize(
    "other",
    [
        FeatureSchema(names=("size", "age"), version="1"),
        FeatureSchema(names=("age", "size"), version="2"),
        FeatureSchema(names=("age",), version="1"),
    ],
)
def test_order_names_and_version_each_change_the_hash(other: FeatureSchema) -> None:
    assert other.hash != SCHEMA.hash


def test_rows_follow_the_names_and_not_the_mappings_order() -> None:
    assert SCHEMA.rows([{"size": 2, "age": True, "other": 9}]) == [(1.0, 2.0)]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"age": 1.0}, "row 0 lacks the features size"),
        ({"age": 1.0, "size": None}, "row 0 holds a feature that is not a number"),
        ({"age": 1.0, "size": 10**400}, "row 0 holds a feature that is not a number"),
        ({"age": 1.0, "size": float("nan")}, "row 0: size is nan"),
        ({"age": float("-inf"), "size": 1.0}, "row 0: age is -inf"),
        ({"age": 1.0, "size": 1e39}, r"row 0: size is 1e\+39"),
        ({"age": -1e39, "size": 1.0}, r"row 0: age is -1e\+39"),
    ],
)
def test_a_row_that_would_mislead_the_model_is_refused_by_name(item: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        SCHEMA.rows([item])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1.0, 2.0), (1.0,)], "row 1 has 1 features, the schema has 2"),
        ([(float("inf"), float("-inf"))], "row 0: age is inf"),
        ([("a", "b")], "not sequences of plain numbers"),
        ([1.0], "not sequences of plain numbers"),
        ([(1, 10**400)], "not sequences of plain numbers"),
        (7, "not sequences of plain numbers"),
    ],
)
def test_rows_of_another_shape_are_refused(rows: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        SCHEMA.validate(rows)  # type: ignore[arg-type]


def test_the_largest_float32_still_passes() -> None:
    SCHEMA.validate([(3.4028234663852886e38, -3.4028234663852886e38)])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"names": (), "version": "1"}, "names"),
        ({"names": "ab", "version": "1"}, "names"),
        ({"names": ("a", "a"), "version": "1"}, "names"),
        ({"names": ("a", ""), "version": "1"}, "names"),
        ({"names": ("a", 3), "version": "1"}, "names"),
        ({"names": ("a",), "version": ""}, "version"),
        ({"names": ("a",), "version": 1}, "version"),
        ({"names": ("a",), "version": "1", "dtype": "float16"}, "dtype"),
    ],
)
def test_a_schema_that_names_no_columns_is_refused(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        FeatureSchema(**settings)  # type: ignore[arg-type]
