from __future__ import annotations

import math
import random

import pytest

from fairlead.charts import Band, timeline
from fairlead.errors import InvalidInput


def drawn_timeline(lines, **settings):
    return timeline(lines, title="Requests", unit="rate", y_name="Requests", **settings)


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right(read) -> None:
    points = read(drawn_timeline({"arm": [(0, 1.0), (1, 2.0), (2, 4.0)]})).points(1)

    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert points[0][1] - points[1][1] == pytest.approx((points[1][1] - points[2][1]) / 2, abs=0.2)


def test_zero_is_on_the_axis_so_that_twice_the_height_is_twice_the_value(read) -> None:
    drawn = read(drawn_timeline({"arm": [(0, 50.0), (1, 100.0)]}))
    floor = float(drawn.of("line", "axis")[0].attrib["y1"])
    (_, half), (_, whole) = drawn.points(1)

    assert floor - whole == pytest.approx(2 * (floor - half), abs=0.2)


def test_points_are_put_in_order_of_time(read) -> None:
    points = [(2, 3.0), (0, 1.0), (1, 2.0)]

    assert read(drawn_timeline({"arm": points})).points(1) == read(
        drawn_timeline({"arm": sorted(points)})
    ).points(1)


def test_a_missing_value_breaks_the_line_and_a_lone_value_is_a_dot(read) -> None:
    figure = drawn_timeline(
        {"arm": [(0, 1.0), (1, 1.0), (2, None), (3, 2.0), (4, math.nan), (5, 1.0), (6, 1.0)]}
    )

    assert [len(run) for run in read(figure).runs(1)] == [2, 1, 2]
    assert "2 missing, the line is broken there" in figure.description


def test_an_infinite_value_is_clipped_at_the_top_under_an_arrow(read) -> None:
    figure = drawn_timeline({"arm": [(0, 1.0), (1, math.inf), (2, 1.5)]})
    drawn = read(figure)

    assert drawn.points(1)[1][1] == min(float(one.attrib["y1"]) for one in drawn.of("line", "grid"))
    assert len(drawn.of("polygon", "f1")) == 1
    assert "1 infinite, under an arrow" in figure.description
    drawn.assert_sound()


def test_zeros_on_a_logarithmic_axis_are_counted(read) -> None:
    figure = drawn_timeline({"arm": [(0, 0.0), (1, 10.0), (2, -1.0)]}, y_scale="log")

    assert "2 zero or less, drawn at the lower edge" in figure.description
    read(figure).assert_sound()


def test_table_rows_equal_the_input_with_blanks_where_a_line_has_no_value() -> None:
    table = drawn_timeline({"a": [(0, 1.0), (1, None)], "b": [(1, 5.0), (2, math.inf)]}).table

    assert table.rows == ((0.0, 1.0, None), (1.0, None, 5.0), (2.0, None, math.inf))


def test_a_long_run_is_tabled_as_extremes_per_slice_of_time() -> None:
    rng = random.Random(4)
    points = [(float(second), rng.random()) for second in range(3000)]
    table = drawn_timeline({"arm": points}).table

    assert [column.name for column in table.columns] == ["Time from", "arm lowest", "arm highest"]
    assert min(row[1] for row in table.rows) == min(value for _, value in points)
    assert max(row[2] for row in table.rows) == max(value for _, value in points)


def test_phases_are_shaded_in_turn_and_named_above_the_plot(read) -> None:
    bands = [
        Band(name="normal", start=0, end=20),
        Band(name="viral", start=20, end=40),
        Band(name="feature service stalled", start=40, end=60),
    ]
    drawn = read(drawn_timeline({"arm": [(0, 1.0), (60, 2.0)]}, bands=bands))
    shaded = drawn.of("rect", "band")
    first, second = drawn.points(1)

    assert len(shaded) == 2
    assert float(shaded[0].attrib["x"]) == first[0]
    assert float(shaded[1].attrib["x"]) + float(shaded[1].attrib["width"]) == pytest.approx(
        second[0], abs=0.2
    )
    assert drawn.label("normal").bottom < second[1]
    drawn.assert_sound()


def test_forty_phases_and_eight_lines_stay_readable(read) -> None:
    bands = [Band(name=f"phase number {n}", start=n, end=n + 1) for n in range(40)]
    lines = {f"a rather long name of line {n}": [(t, 5.0) for t in range(40)] for n in range(8)}

    read(drawn_timeline(lines, bands=bands)).assert_sound()


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_a_band_without_a_true_span_is_refused(bounds) -> None:
    with pytest.raises(InvalidInput, match="band 'viral'"):
        Band(name="viral", start=bounds[0], end=bounds[1])


@pytest.mark.parametrize("lines", [{}, {"arm": []}, {"arm": [(0, None)]}, {"arm": [(math.nan, 1.0)]}])
def test_no_values_give_a_figure_that_says_no_data(lines, read) -> None:
    assert [box.content for box in read(drawn_timeline(lines)).labels] == ["no data"]


@pytest.mark.parametrize("y_scale", ["linear", "log"])
@pytest.mark.parametrize(
    "points",
    [
        [(0, 5.0)],
        [(7, 5.0), (7, 6.0)],
        [(t, 5.0) for t in range(10)],
        [(t, 0.0) for t in range(10)],
        [(0, 1e300), (1, -1e300)],
        [(0, 1.7e308), (1, -1.7e308)],
        [(0, 5e-324), (1, 1e-310)],
        [(1.75e9, 1.0), (1.75e9 + 80, 2.0)],
        [(0, 1.0), (1e300, 2.0)],
        [(0, 1.0), (1e-12, 2.0)],
        [(0, math.inf), (1, -math.inf)],
    ],
)
def test_odd_lines_are_drawn_inside_the_plot(points, y_scale, read) -> None:
    read(drawn_timeline({"arm": points}, y_scale=y_scale)).assert_sound()


def test_a_long_line_keeps_its_spike_and_its_gap_and_stays_small(read) -> None:
    points: list[tuple[float, float | None]] = [(t / 100, 10.0 + (t % 7)) for t in range(100_000)]
    points[77_777] = (777.77, 500.0)
    points[20_000:20_500] = [(t / 100, None) for t in range(20_000, 20_500)]
    figure = drawn_timeline({"arm": points})
    drawn = read(figure)
    top = drawn.label("500/s")

    assert min(y for _, y in drawn.points(1)) == pytest.approx((top.top + top.bottom) / 2, abs=2.0)
    assert len(drawn.runs(1)) == 2
    assert len(figure.svg.encode()) < 60_000


def test_eight_long_lines_full_of_gaps_stay_small() -> None:
    lines = {
        f"line {n}": [(t, None if t % 2 else (math.inf if t % 10 == 0 else t + n)) for t in range(20_000)]
        for n in range(8)
    }

    assert len(drawn_timeline(lines).svg.encode()) < 60_000
