"""SVG from numbers, with a table each, light and dark, without a script.

Four charts (`cdf`, `timeline`, `dot_interval`, `bars`) turn plain mappings of numbers into a `Figure`: an `<svg>`
element, what it shows in words, and the `Table` behind it. `STYLESHEET` is written once per page and holds every
colour; `page` puts both into one file. `format_value` (with `unit_of`, for a metric's unit) is how a figure is
written everywhere else, the terminal included. The same input gives the same bytes.
"""

from __future__ import annotations

from fairlead.charts.cdf import cdf
from fairlead.charts.figure import Figure
from fairlead.charts.intervals import Interval, bars, dot_interval
from fairlead.charts.page import page
from fairlead.charts.style import STYLESHEET
from fairlead.charts.table import Column, Table
from fairlead.charts.timeline import Band, timeline
from fairlead.charts.units import Unit, format_value, unit_of

__all__ = [
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
