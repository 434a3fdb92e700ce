"""Reads a drawn figure back as geometry."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from fairlead.charts import Figure
from fairlead.charts.svg import text_width

SVG = "{http://www.w3.org/2000/svg}"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Box:
    content: str
    kind: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class Drawing:
    def __init__(self, figure: Figure) -> None:
        self.root = ElementTree.fromstring(figure.svg)  # noqa: S314 - the text is our own
        self.width, self.height = map(float, self.root.attrib["viewBox"].split()[2:])

    def of(self, tag: str, kind: str = "") -> list[ElementTree.Element]:
        wanted = set(kind.split())
        return [one for one in self.root.iter(SVG + tag) if wanted <= set(one.get("class", "").split())]

    def points(self, series: int) -> list[tuple[float, float]]:
        """Every point of the line of the `series`-th series, from 1."""
        return [point for run in self.runs(series) for point in run]

    def runs(self, series: int) -> list[list[tuple[float, float]]]:
        found: list[list[tuple[float, float]]] = []
        for one in self.of("path", f"line s{series}"):
            for run in one.attrib["d"].replace("h0", "").split("M")[1:]:
                numbers = [float(number) for number in NUMBER.findall(run)]
                found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
        return found

    @property
    def labels(self) -> list[Box]:
        boxes: list[Box] = []
        for one in self.of("text"):
            tip = one.find(SVG + "title")
            content = (one.text or "") + ((tip.tail or "") if tip is not None else "")
            size = float(one.attrib["font-size"])
            wide = text_width(content, size)
            x, y = float(one.attrib["x"]), float(one.attrib["y"])
            left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[one.get("text-anchor", "start")]
            boxes.append(
                Box(content, one.get("class", ""), left, y - 0.8 * size, left + wide, y + 0.2 * size)
            )
        return boxes

    def label(self, content: str) -> Box:
        return next(box for box in self.labels if box.content.startswith(content))

    def assert_sound(self) -> None:
        """Nothing unreadable: no overlapping or clipped labels, no position outside the picture."""
        for first, second in itertools.combinations(self.labels, 2):
            assert not first.overlaps(second), (first, second)
        for box in self.labels:
            assert box.left >= -1, box
            assert box.right <= self.width + 1, box
            assert box.bottom <= self.height + 1, box
        for one in self.root.iter():
            for name, value in one.attrib.items():
                assert name != "style"
                if name in {"x", "x1", "x2", "cx"}:
                    assert 0 <= float(value) <= self.width, (one.tag, one.attrib)
                if name in {"y", "y1", "y2", "cy"}:
                    assert 0 <= float(value) <= self.height, (one.tag, one.attrib)
                if name in {"d", "points"}:
                    assert re.fullmatch(r"[M\d h.,-]+", value), value[:80]


@pytest.fixture
def read() -> Callable[[Figure], Drawing]:
    """Parses a figure's SVG as XML."""
    return Drawing
