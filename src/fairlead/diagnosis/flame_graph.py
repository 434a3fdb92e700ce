"""Call stacks by their share of the time, as one SVG without a script.

Wide is slow; below is whoever called. Neighbours with one name are one box, so the width of a box is the time of that
function called from there, and not the order in which things happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fairlead.charts.svg import coordinate, escape, shorten

__all__ = ["Box", "flame_graph"]

_WIDTH, _ROW = 1200.0, 18.0
_NARROWEST = 0.5  # pixels; narrower boxes are not drawn, and there can be tens of thousands of them
_HUES = ("#f3b76b", "#eb9f62", "#f0c987", "#e6ae5c")
_STYLE = (
    "svg{font:11px system-ui,sans-serif;background:#fff}text{fill:#1c1c1c;pointer-events:none}.t{fill:#333}"
    "@media (prefers-color-scheme:dark){svg{background:#16181c}.t{fill:#d8d8d8}}"
)


@dataclass(kw_only=True, slots=True)
class Box:
    """One function, called from its parent's."""

    name: str
    seconds: float
    """Its own time and that of what it called; 0 or more."""
    where: str = ""
    """File and line."""
    children: Sequence[Box] = field(default_factory=list)


def flame_graph(root: Box, *, title: str) -> str:
    """The drawing. Hovering a box tells its name, place, seconds and share."""
    total = root.seconds or 1.0
    placed: list[tuple[int, float, float, Box]] = []
    waiting = [(0, 0.0, root)]
    while waiting:
        depth, left, box = waiting.pop()
        width = _WIDTH * box.seconds / total
        if width < _NARROWEST:
            continue
        placed.append((depth, left, width, box))
        for child in box.children:
            waiting.append((depth + 1, left, child))
            left += _WIDTH * child.seconds / total
    depth = max((each[0] for each in placed), default=0)
    height = (depth + 1) * _ROW + 2 * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {coordinate(_WIDTH)} {coordinate(height)}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="t" x="4" y="13">{escape(title)}</text>',
    ]
    for level, left, width, box in placed:
        top = height - (level + 1) * _ROW
        told = f"{box.name} ({box.where}): {box.seconds:.3f} s, {box.seconds / total:.1%}"
        hue = _HUES[_number_of(box.name) % len(_HUES)]
        parts.append(
            f'<g><title>{escape(told)}</title><rect x="{coordinate(left)}" y="{coordinate(top)}" '
            f'width="{coordinate(max(0.1, width - 0.5))}" height="{coordinate(_ROW - 1)}" fill="{hue}"/>'
        )
        if width > 30:
            name = escape(shorten(box.name, width - 6))
            parts.append(f'<text x="{coordinate(left + 3)}" y="{coordinate(top + 12)}">{name}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>\n"])


def _number_of(name: str) -> int:
    # Not hash(): it differs from one process to the next, and so would the colours of two graphs.
    return sum(name.encode("utf-8", "replace"))
