from __future__ import annotations

import math

import pytest

from fairlead.charts import Interval, bars, dot_interval
from fairlead.errors import InvalidInput

PHASES = {
    "normal": {"control": Interval(0.38, 0.33, 0.45, 900), "treatment": Interval(0.21, 0.2, 0.23, 910)},
    "viral": {"control": Interval(0.9, 0.7, 1.2, 1800), "treatment": Interval(0.25, 0.24, 0.27, 1790)},
}


def dots(groups, **settings):
    return dot_interval(groups, title="p99", unit="seconds", x_name="p99 latency", **settings)


def contributions(values):
    return bars(values, title="Ablation", unit="seconds", x_name="p99 lost")


@pytest.mark.parametrize("x_scale", ["linear", "log"])
def test_a_greater_estimate_stands_further_right_inside_its_interval(x_scale, read) -> None:
    drawn = read(dots(PHASES, x_scale=x_scale))
    normal, viral = (float(one.attrib["cx"]) for one in drawn.of("circle", "f1"))
    spans = [one for one in drawn.of("line", "interval s1") if one.attrib["y1"] == one.attrib["y2"]]

    assert normal < viral
    assert float(spans[0].attrib["x1"]) < normal < float(spans[0].attrib["x2"])
    assert float(spans[1].attrib["x1"]) < viral < float(spans[1].attrib["x2"])
    drawn.assert_sound()


def test_each_figure_stands_beside_its_dot_and_each_arm_is_named_once(read) -> None:
    written = [box.content for box in read(dots(PHASES)).labels]

    assert {"380 ms · control", "210 ms · treatment", "900 ms", "250 ms"} <= set(written)


def test_table_rows_equal_the_estimates() -> None:
    assert dots(PHASES).table.rows == (
        ("normal", "control", 0.38, 0.33, 0.45, 900),
        ("normal", "treatment", 0.21, 0.2, 0.23, 910),
        ("viral", "control", 0.9, 0.7, 1.2, 1800),
        ("viral", "treatment", 0.25, 0.24, 0.27, 1790),
    )


def test_a_group_may_lack_an_arm_or_its_data(read) -> None:
    drawn = read(dots({"normal": {"control": Interval(1.0)}, "viral": {"treatment": Interval(None)}}))

    assert len(drawn.of("circle", "f1")) == 1
    assert drawn.label("treatment: no data")
    drawn.assert_sound()


def test_an_unbounded_interval_ends_in_an_arrow(read) -> None:
    figure = dots({"normal": {"control": Interval(1.0, 0.5, math.inf)}})

    assert len(read(figure).of("polygon", "f1")) == 1
    assert "1 infinite, under an arrow at the edge" in figure.description


def test_zeros_on_a_logarithmic_axis_are_counted(read) -> None:
    figure = dots({"normal": {"control": Interval(0.1, 0.0, 0.2)}}, x_scale="log")

    assert "1 zero or less, drawn at the left edge" in figure.description
    read(figure).assert_sound()


@pytest.mark.parametrize("bounds", [(1.0, 2.0, 3.0), (1.0, 0.0, 0.5), (1.0, 3.0, None)])
def test_an_interval_that_misses_its_estimate_is_refused(bounds) -> None:
    with pytest.raises(InvalidInput, match="low <= value <= high"):
        Interval(*bounds)


def test_bars_grow_from_zero_to_both_sides_in_proportion(read) -> None:
    drawn = read(contributions({"cache": 0.10, "batch": 0.05, "retry": -0.05}))
    cache, batch, retry = drawn.of("rect", "f1")
    zero = float(cache.attrib["x"])

    assert float(cache.attrib["width"]) == pytest.approx(2 * float(batch.attrib["width"]), abs=0.2)
    assert float(batch.attrib["x"]) == zero
    assert float(retry.attrib["x"]) + float(retry.attrib["width"]) == pytest.approx(zero, abs=0.2)
    drawn.assert_sound()


def test_bar_rows_equal_the_input_in_its_order() -> None:
    rows = contributions({"b": Interval(0.1, 0.0, 0.2, 9), "a": -1.0, "none": None}).table.rows

    assert rows == (("b", 0.1, 0.0, 0.2, 9), ("a", -1.0, None, None, None), ("none", None, None, None, None))


@pytest.mark.parametrize(
    "values",
    [
        {"one": 0.0},
        {"one": -3.0},
        {"one": math.inf, "two": -math.inf, "three": 1.0},
        {"one": 1e300, "two": -1e-300},
        {"one": math.nan, "two": 2.0},
        {f"mechanism {n}": n * 1000.0 for n in range(80)},
        {"a name that is much too long for the column in which it has to stand": 1.0},
        {"": 1.0},
    ],
)
def test_odd_bars_are_drawn_inside_the_plot(values, read) -> None:
    figure = contributions(values)

    read(figure).assert_sound()
    assert len(figure.svg.encode()) < 60_000


def test_the_most_estimates_a_chart_may_hold_stay_small(read) -> None:
    arms = {f"arm {n}": Interval(1.0 + n, 0.5 + n, 2.0 + n) for n in range(8)}
    figure = dots({f"phase {n}": arms for n in range(10)})

    assert len(figure.svg.encode()) < 60_000
    read(figure).assert_sound()


@pytest.mark.parametrize("draw", [dots, contributions])
def test_nothing_to_draw_gives_a_figure_that_says_no_data(draw, read) -> None:
    assert [box.content for box in read(draw({})).labels] == ["no data"]


def test_too_many_estimates_are_refused() -> None:
    with pytest.raises(InvalidInput, match="81 estimates in one chart, at most 80"):
        contributions({str(n): 1.0 for n in range(81)})
