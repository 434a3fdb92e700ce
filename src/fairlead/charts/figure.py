"""A picture, what it shows in words, and its numbers, kept together.

The three travel as one value so that no report can show the line and lose the table. Ids are derived from the
content: the same input gives the same bytes, and two different figures on one page do not answer to each
other's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.charts.style import STYLESHEET
from fairlead.charts.svg import escape, printable
from fairlead.charts.table import Table
from fairlead.errors import InvalidInput

__all__ = ["Figure"]

_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_SIZE = re.compile(r'viewBox="[^"]*" width="(?P<width>[\d.]+)" height="(?P<height>[\d.]+)"')
_MARGIN = 12
_LONGEST_DESCRIPTION = 2000


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart as an `<svg>` element, with its table."""

    svg: str
    """Uses the classes of `STYLESHEET`; holds no script, no style and no reference to anything outside."""
    table: Table
    title: str
    description: str
    """The caption: what the author says of it, and what could not be drawn (clipped, left out, missing)."""

    def to_html(self) -> str:
        """A `<figure>` for a page that includes `STYLESHEET` once: caption, picture, and the numbers folded
        below."""
        told = f"<span>{escape(self.description, _LONGEST_DESCRIPTION)}</span>" if self.description else ""
        return (
            f'<figure class="chart"><figcaption><b>{escape(self.title)}</b>{told}</figcaption>{self.svg}'
            f"<details><summary>Numbers</summary>{self.table.to_html()}</details></figure>\n"
        )

    def to_svg(self) -> str:
        """A file of its own, for a README or a slide: stylesheet and background inside, a margin around."""
        head, _, rest = self.svg.partition("</desc>")
        surface = f'<rect class="surface" x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%"/>'
        return f"{_SIZE.sub(_with_margin, head, count=1)}</desc><style>{STYLESHEET}</style>{surface}{rest}\n"


def _size(left: float, width: float, height: float) -> str:
    return f'viewBox="{left:g} {left:g} {width:g} {height:g}" width="{width:g}" height="{height:g}"'


def _with_margin(size: re.Match[str]) -> str:
    return _size(-_MARGIN, float(size["width"]) + 2 * _MARGIN, float(size["height"]) + 2 * _MARGIN)


def compose(
    body: Sequence[str],
    *,
    width: float,
    height: float,
    title: str,
    description: str,
    table: Table,
    figure_id: str | None,
    summary: str = "",
) -> Figure:
    """Wraps drawn elements into a Figure; `figure_id` None derives one from the content.

    `summary` says what the eye sees, for those who listen: it goes into the picture, not into the caption.
    """
    shown = printable(description, _LONGEST_DESCRIPTION)
    told = printable(f"{shown} {summary}", 2 * _LONGEST_DESCRIPTION)
    spoken = escape(told, 2 * _LONGEST_DESCRIPTION)
    content = "\n".join(piece for piece in body if piece)
    if figure_id is None:
        seed = f"{title}\0{told}\0{content}".encode(errors="replace")
        figure_id = f"chart-{hashlib.blake2b(seed, digest_size=6).hexdigest()}"
    elif not _ID.fullmatch(figure_id):
        raise InvalidInput(
            f"figure_id {figure_id!r:.40}: use a letter, then letters, digits, - or _, at most 64"
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {_size(0, width, height)} '
        f'role="img" '
        f'aria-labelledby="{figure_id}-title {figure_id}-description">'
        f'<title id="{figure_id}-title">{escape(title)}</title>'
        f'<desc id="{figure_id}-description">{spoken}</desc>\n{content}\n</svg>'
    )
    return Figure(svg=svg, table=table, title=title, description=shown)
