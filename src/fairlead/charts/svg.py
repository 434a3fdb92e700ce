"""Writing SVG by hand, safely.

Names reach a chart from flag files, services and people. Every piece of text passes `escape`, which also
removes what XML cannot hold and what would reorder the reader's line; every coordinate passes `coordinate`,
which never writes NaN.

Nobody knows the width of a text before a browser has drawn it. `text_width` estimates with the advances of a
wide face, so that labels laid out with it do not touch in a narrower one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

__all__ = [
    "FONT_SIZE",
    "Point",
    "coordinate",
    "escape",
    "line",
    "path",
    "printable",
    "shorten",
    "text",
    "text_width",
]

Point = tuple[float, float]

FONT_SIZE = 12.0

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_SPACES = re.compile(r"\s+")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_NARROW = frozenset("iljI.,:;'|!()[] /")
_BROAD = frozenset("mwMW@%&—…")


def printable(content: str, longest: int = 400) -> str:
    """One line of at most `longest` characters, without control and direction characters."""
    if len(content) > longest:
        content = content[: longest - 1] + "…"
    return _UNPRINTABLE.sub("\ufffd", _SPACES.sub(" ", content).strip())


def escape(content: str, longest: int = 400) -> str:
    """`printable` text, safe between tags and in a double-quoted attribute of XML and HTML."""
    return printable(content, longest).translate(_ESCAPES)


def coordinate(value: float) -> str:
    """A pixel position with one decimal, the least that looks smooth; a value that is no position becomes
    0."""
    if not math.isfinite(value):
        return "0"
    written = f"{value:.1f}"
    if written.endswith(".0"):
        written = written[:-2]
    return "0" if written == "-0" else written


def text(
    x: float,
    y: float,
    content: str,
    kind: str,
    *,
    anchor: str = "start",
    size: float = FONT_SIZE,
    whole: str = "",
) -> str:
    """A text element; `whole` is the full wording of a shortened label, shown on hover."""
    tip = f"<title>{escape(whole)}</title>" if whole and printable(whole) != printable(content) else ""
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text class="{kind}" x="{coordinate(x)}" y="{coordinate(y)}" font-size="{size:g}"{aligned}>'
        f"{tip}{escape(content)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    ends = zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
    return f'<line class="{kind}" ' + " ".join(f'{name}="{coordinate(at)}"' for name, at in ends) + "/>"


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{coordinate(x)}" y="{coordinate(y)}" '
        f'width="{coordinate(max(0.0, width))}" height="{coordinate(max(0.0, height))}"/>'
    )


def path(runs: Sequence[Sequence[Point]], kind: str) -> str:
    """One path of several unconnected runs; a run of one point shows as a dot through its round cap."""
    pieces: list[str] = []
    for run in runs:
        places = [f"{coordinate(x)} {coordinate(y)}" for x, y in run]
        if len(places) == 1:
            pieces.append(f"M{places[0]}h0")
        elif places:
            pieces.append("M" + " ".join(places))
    return f'<path class="{kind}" d="{"".join(pieces)}"/>' if pieces else ""


def polygon(points: Sequence[Point], kind: str) -> str:
    corners = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
    return f'<polygon class="{kind}" points="{corners}"/>'


def marker(shape: int, x: float, y: float, kind: str, radius: float = 3.6) -> str:
    """A mark centred on (x, y); shapes differ so that series can be told apart without colour."""
    r = radius
    match shape % 4:
        case 0:
            return f'<circle class="{kind}" cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(r)}"/>'
        case 1:
            return polygon([(x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y)], kind)
        case 2:
            return polygon([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], kind)
        case _:
            return polygon([(x, y - 1.2 * r), (x + 1.2 * r, y + 0.9 * r), (x - 1.2 * r, y + 0.9 * r)], kind)


def arrow(x: float, y: float, direction: str, kind: str) -> str:
    """A triangle with its tip at (x, y), for a value beyond the edge of the plot."""
    along = {"up": (0.0, 1.0), "down": (0.0, -1.0), "left": (1.0, 0.0), "right": (-1.0, 0.0)}[direction]
    foot = (x + 7 * along[0], y + 7 * along[1])
    across = (4 * along[1], 4 * along[0])
    return polygon(
        [(x, y), (foot[0] + across[0], foot[1] + across[1]), (foot[0] - across[0], foot[1] - across[1])], kind
    )


def text_width(content: str, size: float = FONT_SIZE) -> float:
    """Estimated width in pixels, on the generous side."""
    return size * sum(map(_advance, content))


def _advance(character: str) -> float:
    if character in _NARROW:
        return 0.36
    if character in _BROAD:
        return 0.98
    if unicodedata.combining(character):
        return 0.0
    if ord(character) > 0x2E7F or unicodedata.east_asian_width(character) in "WF":
        return 1.1
    return 0.72 if character.isupper() else 0.63


def shorten(content: str, width: float, size: float = FONT_SIZE) -> str:
    """The text, or its beginning and end around an ellipsis, within `width`; "" when not even that fits.

    Both ends are kept: names of arms and phases tend to differ in their last word.
    """
    content = printable(content)
    if text_width(content, size) <= width:
        return content
    for kept in range(min(len(content) - 1, int(width / size / 0.3) + 1), 1, -1):
        tail = kept // 2
        shortened = content[: kept - tail].rstrip() + "…" + content[-tail:].lstrip()
        if text_width(shortened, size) <= width:
            return shortened
    return ""
