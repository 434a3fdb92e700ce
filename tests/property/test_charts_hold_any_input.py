from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.charts import Band, Figure, Interval, bars, cdf, dot_interval, format_value, timeline
from fairlead.charts.placement import fitting_ticks, spread
from fairlead.charts.scale import LinearScale, LogScale
from fairlead.charts.svg import shorten, text_width
from fairlead.charts.thinning import thin

ANY_NUMBER = st.none() | st.floats() | st.integers(-(10**20), 10**20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=40)


def assert_readable(figure: Figure) -> None:
    root = ElementTree.fromstring(figure.svg)  # noqa: S314 - the text is our own
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for one in root.iter():
        for name, value in one.attrib.items():
            if name in {"x", "x1", "x2", "cx"}:
                assert 0 <= float(value) <= width
            if name in {"y", "y1", "y2", "cy"}:
                assert 0 <= float(value) <= height
            if name in {"d", "points"}:
                assert re.fullmatch(r"[M\d h.,-]+", value)
    assert len(figure.svg.encode()) < 60_000
    figure.to_html().encode()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.lists(ANY_NUMBER, max_size=40), max_size=8))
def test_any_samples_give_a_readable_cdf(series) -> None:
    assert_readable(cdf(series, title="Latency"))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.lists(st.tuples(ANY_NUMBER, ANY_NUMBER), max_size=30), max_size=8),
    st.lists(st.tuples(NAMES, FINITE, FINITE), max_size=6),
    st.sampled_from(["linear", "log"]),
)
def test_any_lines_and_phases_give_a_readable_timeline(lines, spans, y_scale) -> None:
    bands = [Band(name=name, start=min(a, b), end=max(a, b)) for name, a, b in spans]

    assert_readable(timeline(lines, title="t", unit="seconds", y_name="y", bands=bands, y_scale=y_scale))


@st.composite
def estimates(draw: st.DrawFn) -> Interval:
    bounds = sorted(draw(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3)))
    return draw(
        st.sampled_from([Interval(bounds[1], bounds[0], bounds[2]), Interval(bounds[1]), Interval(None)])
    )


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        NAMES, st.dictionaries(st.sampled_from(["control", "treatment", "x"]), estimates()), max_size=6
    ),
    st.sampled_from(["linear", "log"]),
)
def test_any_estimates_give_readable_dots_and_bars(groups, x_scale) -> None:
    assert_readable(dot_interval(groups, title="t", unit="ratio", x_name="x", x_scale=x_scale))
    each = {f"{group} {arm}": one for group, arms in groups.items() for arm, one in arms.items()}
    assert_readable(bars(each, title="t", unit="bytes", x_name="x"))


@given(FINITE, FINITE, st.sampled_from([LinearScale, LogScale]), st.booleans())
def test_ticks_lie_inside_the_axis_and_their_labels_apart(low, high, kind, vertical) -> None:
    scale = kind(min(low, high), max(low, high), 60.0, 700.0, "seconds")
    ticks = fitting_ticks(scale, vertical=vertical, size=11)
    places = [scale(tick.value) for tick in ticks]

    assert all(60.0 <= place <= 700.0 for place in places)
    for (before, left), (after, right) in pairwise(zip(ticks, places, strict=True)):
        wide = 11 if vertical else (text_width(before.label, 11) + text_width(after.label, 11)) / 2
        assert right - left >= wide


@given(FINITE, FINITE, FINITE)
def test_a_scale_keeps_the_order_of_values(low, high, value) -> None:
    scale = LinearScale(min(low, high), max(low, high), 0.0, 100.0)

    assert 0.0 <= scale(value) <= 100.0
    assert scale(min(low, value)) <= scale(max(low, value))


@given(st.lists(st.tuples(st.floats(-100, 800), st.floats(1, 60)), min_size=1, max_size=12))
def test_spread_labels_keep_their_order_and_do_not_overlap(wanted) -> None:
    centres, sizes = [at for at, _ in wanted], [size for _, size in wanted]
    placed = spread(centres, sizes, 0.0, 720.0)
    boxes = sorted((at - size / 2, at + size / 2) for at, size in zip(placed, sizes, strict=True))

    assert all(right <= left + 1e-6 for (_, right), (left, _) in pairwise(boxes))
    assert boxes[0][0] >= -1e-6
    assert boxes[-1][1] <= 720.0 + 1e-6


@given(st.lists(st.floats(allow_infinity=True), min_size=1, max_size=400), st.integers(20, 100))
def test_thinning_keeps_the_extremes_and_some_gap(values, most) -> None:
    points = [(float(at), value) for at, value in enumerate(values)]
    kept = thin(points, most)
    before = [value for value in values if not math.isnan(value)]
    after = [value for _, value in kept if not math.isnan(value)]

    assert len(kept) <= most
    assert (not before and not after) or (min(before), max(before)) == (min(after), max(after))
    assert any(math.isnan(value) for _, value in kept) == (len(before) < len(values))
    assert [at for at, _ in kept] == sorted(at for at, _ in kept)


@given(st.text(max_size=80), st.floats(0, 300))
def test_a_shortened_name_fits(name, width) -> None:
    assert text_width(shorten(name, width)) <= width


@given(st.floats(min_value=1e-9, max_value=1e8), st.sampled_from(["seconds", "rate", "bytes", "number"]))
def test_a_written_value_reads_back_within_half_a_percent(value, unit) -> None:
    factors = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "/s": 1.0, "": 1.0}
    factors |= {name: 1024.0**power for power, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))}
    number, symbol = re.fullmatch(r"([\d.,e−]+) ?(\D*)", format_value(value, unit)).groups()

    assert math.isclose(
        float(number.replace(",", "").replace("−", "-")) * factors[symbol], value, rel_tol=0.0051
    )
