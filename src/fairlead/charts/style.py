"""The look of every chart: one stylesheet, two themes, no inline style.

A report is served under a policy that refuses `style` attributes, so colour and dash come from classes in one
shared sheet whose hash the policy can name. Hues follow Okabe and Ito (2008), darkened or lightened per theme
until a label in its series' colour reads at 4.5:1; dash and marker repeat what the hue says, for readers and
printers without colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["DARK", "LIGHT", "MOST_SERIES", "STYLESHEET"]

MOST_SERIES: Final = 8
"""Series one chart may hold: the colours that most readers can tell apart, and the lines they can follow."""

LIGHT: Final[Mapping[str, str]] = {
    "surface": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#596069",
    "axis": "#7d858e",
    "grid": "#e4e7eb",
    "band": "#f4f5f7",
    "series-1": "#0072b2",
    "series-2": "#b54708",
    "series-3": "#00754f",
    "series-4": "#9b3f74",
    "series-5": "#7a5c00",
    "series-6": "#2c2f36",
    "series-7": "#1f6f8b",
    "series-8": "#8a2f2f",
}
DARK: Final[Mapping[str, str]] = {
    "surface": "#14171b",
    "ink": "#e8eaed",
    "muted": "#a3abb5",
    "axis": "#737c87",
    "grid": "#2a2f36",
    "band": "#1c2026",
    "series-1": "#56b4e9",
    "series-2": "#f0923c",
    "series-3": "#33c296",
    "series-4": "#dc8fbb",
    "series-5": "#f0e442",
    "series-6": "#d5d8dc",
    "series-7": "#8fd3e8",
    "series-8": "#f29b9b",
}
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2.5", "12 3", "4 2 1 2")


def _properties(theme: Mapping[str, str]) -> str:
    return ":root{" + "".join(f"--chart-{name}:{colour};" for name, colour in theme.items()) + "}"


def _series() -> str:
    rules: list[str] = []
    for number, dash in enumerate(_DASHES, start=1):
        colour = f"var(--chart-series-{number})"
        rules.append(
            f".chart .s{number}{{stroke:{colour}}}"
            f".chart .f{number}{{fill:{colour}}}"
            + (f".chart .line.s{number}{{stroke-dasharray:{dash}}}" if dash else "")
        )
    return "\n".join(rules)


STYLESHEET: Final = f"""\
{_properties(LIGHT)}
@media screen and (prefers-color-scheme:dark){{{_properties(DARK)}}}
figure.chart{{margin:1.5rem 0;background:var(--chart-surface);color:var(--chart-ink);break-inside:avoid}}
figure.chart>svg{{display:block;width:100%;max-width:720px;height:auto}}
figure.chart figcaption{{max-width:720px;margin:0 0 .75rem;font-size:.875rem;line-height:1.45}}
figure.chart figcaption b{{display:block;font-size:1rem}}
figure.chart figcaption span{{color:var(--chart-muted)}}
figure.chart details{{margin-top:.25rem;font-size:.8125rem;overflow-x:auto}}
figure.chart summary{{color:var(--chart-muted);cursor:pointer}}
figure.chart table{{border-collapse:collapse;margin-top:.5rem;font-variant-numeric:tabular-nums}}
figure.chart th,figure.chart td{{padding:.2rem .75rem .2rem 0;text-align:left;\
font-weight:400;white-space:nowrap}}
figure.chart thead th{{border-bottom:1px solid var(--chart-axis);font-weight:600;vertical-align:bottom;\
white-space:normal}}
figure.chart tbody tr+tr>*{{border-top:1px solid var(--chart-grid)}}
figure.chart .number{{text-align:right}}
.chart text{{fill:var(--chart-ink);font-family:system-ui,"Segoe UI","Helvetica Neue",Arial,sans-serif;\
font-variant-numeric:tabular-nums}}
.chart text.muted{{fill:var(--chart-muted)}}
.chart .surface{{fill:var(--chart-surface)}}
.chart .band{{fill:var(--chart-band)}}
.chart .grid{{stroke:var(--chart-grid);stroke-width:1}}
.chart .axis{{stroke:var(--chart-axis);stroke-width:1}}
.chart .leader{{stroke:var(--chart-axis);stroke-width:.75;fill:none}}
.chart .line{{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}}
.chart .interval{{stroke-width:1.75;stroke-linecap:butt}}
.chart .casing{{stroke:var(--chart-surface);stroke-width:3.5;stroke-linecap:square}}
.chart .whisker{{stroke:var(--chart-ink);stroke-width:1.25}}
.chart .halo{{stroke:var(--chart-surface);stroke-width:1.25}}
{_series()}
.chart text.label{{font-weight:600;paint-order:stroke;stroke:var(--chart-surface);stroke-width:3px;\
stroke-linejoin:round}}
@media print{{figure.chart details:not([open])::details-content{{\
content-visibility:visible;block-size:auto}}\
figure.chart details{{overflow:visible}}}}
"""
