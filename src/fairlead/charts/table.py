"""The numbers behind a picture.

A chart without its numbers cannot be checked, and cannot be read by everybody. Cells keep the values as they
came, in base units; only `to_html` rounds them, in one display unit for all columns of a kind, named in the
heading.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.charts.svg import escape
from fairlead.charts.units import MISSING, Unit, bare_number, display_unit
from fairlead.errors import InvalidInput

__all__ = ["Cell", "Column", "Table"]

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what its cells measure; `unit` None is a column of text."""

    name: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; the first column names its row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise InvalidInput(
                    f"row {number} has {len(row)} cells, the table has {len(self.columns)} columns"
                )

    def to_html(self) -> str:
        """A `<table>` with scoped headings; every text in it is escaped."""
        written = [self._written(index) for index in range(len(self.columns))]
        heads = "".join(
            f'<th scope="col"{_aligned(column)}>{escape(heading)}</th>'
            for column, (heading, _) in zip(self.columns, written, strict=True)
        )
        body: list[str] = []
        for number in range(len(self.rows)):
            cells = [cells[number] for _, cells in written]
            first, rest = cells[:1], cells[1:]
            body.append(
                "<tr>"
                + "".join(f'<th scope="row"{_aligned(self.columns[0])}>{escape(cell)}</th>' for cell in first)
                + "".join(
                    f"<td{_aligned(column)}>{escape(cell)}</td>"
                    for column, cell in zip(self.columns[1:], rest, strict=True)
                )
                + "</tr>"
            )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _written(self, index: int) -> tuple[str, list[str]]:
        """The heading and the cells of one column, as text."""
        column = self.columns[index]
        cells = [row[index] for row in self.rows]
        if column.unit is None:
            return column.name, [MISSING if cell is None else str(cell) for cell in cells]
        unit = column.unit
        shown = display_unit([cell for cell in self._kin(index) if not isinstance(cell, str)], unit)
        heading = f"{column.name} ({shown.symbol})" if shown.symbol else column.name
        return heading, [cell if isinstance(cell, str) else bare_number(cell, unit, shown) for cell in cells]

    def _kin(self, index: int) -> list[Cell]:
        """The cells that share a display unit: p50 and p99 of a row are read against each other."""
        unit = self.columns[index].unit
        kin = (
            [other for other, column in enumerate(self.columns) if other and column.unit == unit]
            if index
            else [0]
        )
        return [row[other] for row in self.rows for other in kin]


def _aligned(column: Column) -> str:
    return "" if column.unit is None else ' class="number"'
