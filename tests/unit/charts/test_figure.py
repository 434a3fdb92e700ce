from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fairlead import charts
from fairlead.charts import STYLESHEET, Band, Column, Interval, Table, bars, cdf, dot_interval, timeline
from fairlead.charts.style import DARK, LIGHT, MOST_SERIES
from fairlead.errors import InvalidInput

HOSTILE = "</title><script>alert('x')</script>&\x00\x1b\u202e\ud800\n\t\"style='x'"


def every_chart(name: str = "control", title: str = "Title"):
    return [
        cdf({name: [0.1, 0.2, 0.3]}, title=title, description=title, x_name=title),
        timeline(
            {name: [(0, 1.0), (1, 2.0)]},
            title=title,
            unit="seconds",
            y_name=title,
            bands=[Band(name=name, start=0, end=1)],
        ),
        dot_interval({name: {name: Interval(1.0, 0.5, 2.0)}}, title=title, unit="ratio", x_name=title),
        bars({name: 1.0}, title=title, unit="count", x_name=title),
        cdf({}, title=title),
    ]


class Document(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("figure", every_chart(HOSTILE, HOSTILE))
def test_hostile_names_stay_text(figure, read) -> None:
    page = Document(figure.to_html())

    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert not re.search("[\x00\x1b\u202e\ud800]", figure.to_html())
    figure.to_html().encode()
    read(figure).assert_sound()


@pytest.mark.parametrize("number", range(5))
def test_the_same_input_gives_the_same_bytes(number: int) -> None:
    assert every_chart()[number].to_html() == every_chart()[number].to_html()


@pytest.mark.parametrize("figure", every_chart())
def test_the_picture_is_named_and_described_for_those_who_listen(figure, read) -> None:
    root = read(figure).root
    named = root.attrib["aria-labelledby"].split()
    ids = {one.get("id"): one.text for one in root.iter() if one.get("id")}

    assert root.get("role") == "img"
    assert ids[named[0]] == figure.title
    assert figure.description in ids[named[1]]


def test_ids_of_different_figures_differ() -> None:
    ids = [found for figure in every_chart() for found in re.findall(r' id="([^"]+)"', figure.svg)]

    assert len(ids) == len(set(ids)) == 10


def test_an_id_can_be_chosen_and_a_bad_one_is_refused() -> None:
    assert 'id="latency-title"' in cdf({"arm": [1.0]}, title="Latency", figure_id="latency").svg
    with pytest.raises(InvalidInput, match="figure_id"):
        cdf({"arm": [1.0]}, title="Latency", figure_id='x" onload="')


def test_a_figure_carries_caption_picture_and_numbers() -> None:
    figure = cdf({"control": [0.1, 0.2]}, title="Latency", description="From the intended send time.")
    page = figure.to_html()

    assert page.index("<figcaption>") < page.index("<svg") < page.index("<details>") < page.index("<table>")
    assert "<b>Latency</b><span>From the intended send time.</span>" in page


def test_a_table_has_scoped_headings_with_units_and_escaped_cells() -> None:
    table = Table((Column("Arm"), Column("p99", "seconds")), (("<b>", 0.0123), ("other", None)))

    assert table.to_html() == (
        '<table><thead><tr><th scope="col">Arm</th><th scope="col" class="number">p99 (ms)</th></tr></thead>'
        "<tbody>"
        '<tr><th scope="row">&lt;b&gt;</th><td class="number">12.3</td></tr>'
        '<tr><th scope="row">other</th><td class="number">–</td></tr></tbody></table>'
    )


def test_columns_of_a_kind_share_one_unit_and_the_first_keeps_its_own() -> None:
    columns = (
        Column("Time", "seconds"),
        Column("p50", "seconds"),
        Column("p99", "seconds"),
        Column("n", "count"),
    )
    page = Table(columns, ((40.0, 0.08, 1.44, 12345), (50.0, 0.07, 0.9, 9))).to_html()

    assert re.findall(r"<th scope=\"col\"[^>]*>([^<]*)", page) == ["Time (s)", "p50 (ms)", "p99 (ms)", "n"]
    assert re.findall(r"<td[^>]*>([^<]*)", page) == ["80", "1,440", "12,345", "70", "900", "9"]


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="row 2 has 1 cells, the table has 2 columns"):
        Table((Column("a"), Column("b")), ((1, 2), (1,)))


def test_a_file_of_its_own_brings_the_stylesheet_along(read) -> None:
    figure = cdf({"control": [0.1, 0.2]}, title="Latency")

    assert STYLESHEET in figure.to_svg()
    assert 'viewBox="-12 -12 744 424" width="744" height="424"' in figure.to_svg()
    assert "<style" not in figure.svg
    assert "http" not in figure.to_svg().replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_lies_behind_them(theme) -> None:
    for behind in (theme["surface"], theme["band"]):
        for number in range(1, MOST_SERIES + 1):
            assert contrast(theme[f"series-{number}"], behind) >= 4.5
        assert contrast(theme["ink"], behind) >= 7
        assert contrast(theme["muted"], behind) >= 4.5
        assert contrast(theme["axis"], behind) >= 3


@pytest.mark.parametrize("figure", every_chart())
def test_every_class_in_a_picture_has_a_rule(figure, read) -> None:
    used = {kind for one in read(figure).root.iter() for kind in one.get("class", "").split()}

    assert {kind for kind in used if f".{kind}" not in STYLESHEET} == set()


def test_the_stylesheet_loads_nothing() -> None:
    assert not re.search(r"url\(|@import|@font-face", STYLESHEET)
    assert STYLESHEET.count("{") == STYLESHEET.count("}")


def test_the_public_names_are_these() -> None:
    assert charts.__all__ == [
        "STYLESHEET",
        "Band",
        "Column",
        "Figure",
        "Interval",
        "Table",
        "Unit",
        "bars",
        "cdf",
        "dot_interval",
        "format_value",
        "page",
        "timeline",
        "unit_of",
    ]
    assert all(hasattr(charts, name) for name in charts.__all__)
