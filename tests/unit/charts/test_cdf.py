from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from fairlead.charts import cdf
from fairlead.errors import InvalidInput


def latencies(n: int, median: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.lognormvariate(math.log(median), 0.5) for _ in range(n)]


def test_the_slower_arm_lies_to_the_right_at_every_height(read) -> None:
    fast = latencies(500, 0.02, 1)
    drawn = read(cdf({"control": [10 * value for value in fast], "treatment": fast}, title="Latency"))

    for (slow_x, slow_y), (fast_x, fast_y) in zip(drawn.points(1), drawn.points(2), strict=True):
        assert slow_y == fast_y
        assert slow_x > fast_x
    drawn.assert_sound()


def test_a_line_rises_from_left_to_right_and_never_falls(read) -> None:
    points = read(cdf({"arm": latencies(3_000, 0.05, 2)}, title="Latency")).points(1)

    assert points == sorted(points, key=lambda point: (point[0], -point[1]))


def test_each_further_nine_takes_the_same_height(read) -> None:
    drawn = read(cdf({"arm": latencies(20_000, 0.05, 3)}, title="Latency"))
    at = [drawn.label(share).bottom for share in ("0 %", "90 %", "99 %", "99.9 %", "99.99 %")]

    steps = [lower - upper for lower, upper in pairwise(at)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.2)


def test_the_table_holds_the_quantiles_that_the_sample_can_carry() -> None:
    table = cdf({"arm": [float(n) for n in range(100, 0, -1)]}, title="Latency").table
    row = dict(zip((column.name for column in table.columns), table.rows[0], strict=True))

    assert row["n"] == 100
    assert (row["min"], row["p50"], row["p95"], row["p99"], row["max"]) == (1.0, 50.0, 95.0, 99.0, 100.0)
    assert row["p99.9"] is None


def test_zeros_infinities_and_missing_values_are_counted_and_told(read) -> None:
    figure = cdf({"arm": [0.0, 0.0, 0.1, 0.2, math.inf, None, math.nan]}, title="Latency")
    row = dict(zip((column.name for column in figure.table.columns), figure.table.rows[0], strict=True))

    assert (row["n"], row["zero or less"], row["infinite"]) == (5, 2, 1)
    assert "2 zero or less, drawn at the left edge" in figure.description
    assert "1 infinite, beyond the right edge" in figure.description
    assert "2 missing, left out" in figure.description
    read(figure).assert_sound()


def test_a_line_of_infinite_values_leaves_at_the_right_below_the_top(read) -> None:
    drawn = read(
        cdf({"lost": [0.1] * 50 + [math.inf] * 50, "whole": [0.1] * 50 + [0.15] * 50}, title="Latency")
    )
    lost, whole = drawn.points(1), drawn.points(2)

    assert lost[-1][0] > max(x for x, _ in whole)
    assert lost[-1][1] > whole[-1][1]
    assert len(drawn.of("polygon", "f1")) == 1


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"empty": []},
        {"gaps": [None, math.nan]},
    ],
)
def test_no_values_give_a_figure_that_says_no_data(series, read) -> None:
    figure = cdf(series, title="Latency")
    drawn = read(figure)

    assert [box.content for box in drawn.labels] == ["no data"]
    assert "No data." in figure.description
    assert len(figure.table.rows) == len(series)
    drawn.assert_sound()


@pytest.mark.parametrize(
    "values",
    [
        [0.05],
        [0.05] * 100,
        [0.0] * 10,
        [-1.0, -2.0],
        [math.inf] * 3,
        [5e-324, 1.7e308],
        [1e-300, 1e300],
        [0.0100001, 0.0100002],
        [10**400, 1],
    ],
)
def test_odd_samples_are_drawn_inside_the_plot(values, read) -> None:
    read(cdf({"arm": values, "other": [0.01, 0.1, 1.0]}, title="Latency")).assert_sound()
    read(cdf({"arm": values}, title="Latency")).assert_sound()


def test_an_empty_arm_beside_a_full_one_is_told(read) -> None:
    figure = cdf({"control": [], "treatment": [0.1, 0.2]}, title="Latency")

    assert "control: no data" in figure.description
    assert read(figure).points(1) == []
    assert read(figure).points(2)


def test_eight_arms_with_long_names_do_not_collide(read) -> None:
    series = {f"treatment without mechanism number {n}": latencies(200, 0.02, n) for n in range(8)}

    read(cdf(series, title="Ablation")).assert_sound()


def test_a_ninth_arm_is_refused() -> None:
    with pytest.raises(InvalidInput, match="9 series in one chart, at most 8"):
        cdf({str(n): [1.0] for n in range(9)}, title="Latency")


def test_the_picture_stays_small_and_keeps_its_maximum_however_long_the_sample(read) -> None:
    values = latencies(60_000, 0.02, 5)
    values[30_000] = 90.0
    figure = cdf({f"arm {n}": values for n in range(8)}, title="Latency")
    x = {box.content: (box.left + box.right) / 2 for box in read(figure).labels}

    assert len(figure.svg.encode()) < 60_000
    assert abs(read(figure).points(1)[-1][0] - x["100 s"]) < 12
