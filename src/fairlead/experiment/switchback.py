"""Experiments where units share something: couriers, an auction, a cache. Time is divided in place of users.

If half of the users get a better dispatch, they take couriers from the other half, and the comparison shows twice the
effect or none. So a whole region switches between control and treatment from slot to slot, and the slot is the unit:
requests within one are anything but independent. The start of each slot still feels the one before and does not count.

Slots go in pairs, one of each variant in a random order, so that a morning has as much of one as of the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fairlead.calls.bounds import check_number
from fairlead.errors import InvalidInput, MissingExtra, TooFewUnits
from fairlead.experiment.plan import ExperimentPlan
from fairlead.experiment.unit_table import units_of_table
from fairlead.experiment.units import Units
from fairlead.metrics.warehouse_columns import fields_of, seconds_of, text_of
from fairlead.metrics.warehouse_sums import run

try:
    import ibis
    import ibis.expr.types as ir
    import pyarrow as pa
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["Switchback", "units_of_switchback"]

_MOST_SLOTS = 1_000_000
_LAST_SLOT = 2.0**53
"""Beyond it floats skip numbers: no slot, but a time in another unit."""
_UNIT = "slot"
"""Column of the units, as their definitions name it."""
_SLOT, _AT, _PLACE = "fairlead slot", "fairlead at", "fairlead place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Switchback:
    """Which variant a place has when. The same in every process that has the same three values.

    >>> design = Switchback(salt="dispatch", slot_seconds=3600.0, washout_seconds=300.0)
    >>> [design.variant_at(hour * 3600.0, "vienna") for hour in range(4)]
    ['control', 'treatment', 'control', 'treatment']
    """

    salt: str
    """Makes the order of this experiment its own."""
    slot_seconds: float
    """How long a place keeps a variant. Long beside what carries over, short beside the experiment."""
    washout_seconds: float = 0.0
    """From the start of a slot; what happens in it does not count."""

    def __post_init__(self) -> None:
        check_number("slot_seconds", self.slot_seconds, above=0.0)
        check_number("washout_seconds", self.washout_seconds, low=0.0)
        if self.washout_seconds >= self.slot_seconds:
            raise InvalidInput(
                f"washout of {self.washout_seconds:g} s leaves nothing of a slot of {self.slot_seconds:g} s"
            )

    def slot_at(self, at_utc_seconds: float) -> int:
        """The number of the slot, from 1970 on."""
        return int(at_utc_seconds // self.slot_seconds)

    def variant_of(self, slot: int, place: str = "") -> str:
        """The variant of a slot, `control` or `treatment`: one of each in every pair, in a random order."""
        pair, second = divmod(slot, 2)
        drawn = hashlib.sha256(f"{self.salt}/{place}/{pair}".encode()).digest()[0] & 1
        return "treatment" if drawn ^ second else "control"

    def variant_at(self, at_utc_seconds: float, place: str = "") -> str:
        """The variant of a place at a moment."""
        return self.variant_of(self.slot_at(at_utc_seconds), place)


def units_of_switchback(
    table: ir.Table, plan: ExperimentPlan, design: Switchback, *, time: str, place: str | None = None
) -> Units:
    """The slots of a table of events as units, each with the variant that its place had.

    time: a time stamp or seconds since 1970. place: the column that names what switches together; None: everything
    does. The plan's control is `control`. Events in the washout, or without a time, are left out and counted.
    The pairs are not used in the analysis: intervals are, if anything, too wide. Raises InvalidInput, TooFewUnits.
    """
    for column in filter(None, (time, place)):
        if column not in table.columns:
            raise InvalidInput(f"no column {column[:80]!r}; there are {', '.join(table.columns[:12])}")
    asked = {*plan.group_columns, *(name for metric in plan.metrics for name in fields_of(metric))}
    if _UNIT in asked.union(*plan.covariates.values()):
        raise InvalidInput(f"column {_UNIT!r}: so a switchback calls its units; rename the column")
    log: list[str] = []
    at = seconds_of(table[time], time)
    named = table.mutate(**{_AT: at, _PLACE: text_of(table[place]) if place else ibis.literal("")})
    total = int(run(named.aggregate(n=named.count()), log)[0]["n"])
    slot = named[_AT] / design.slot_seconds
    slot = ibis.ifelse(slot.abs() < _LAST_SLOT, slot, ibis.null("float64")).floor()
    named = named.mutate(**{_SLOT: slot.cast("int64")})
    named = named.filter(named[_SLOT].notnull())
    inside = (named[_AT] - named[_SLOT].cast("float64") * design.slot_seconds) >= design.washout_seconds
    kept = named.filter(inside)
    slots = run(kept.group_by([_SLOT, _PLACE]).aggregate(n=kept.count()), log)
    if len(slots) < 2 or len(slots) > _MOST_SLOTS:
        raise TooFewUnits(f"{len(slots):,} slots with events; a switchback has from two to {_MOST_SLOTS:,}")
    variants = ibis.memtable(
        pa.table(
            {
                "fairlead slot of": [row[_SLOT] for row in slots],
                "fairlead place of": [row[_PLACE] for row in slots],
                "fairlead variant": [design.variant_of(int(row[_SLOT]), str(row[_PLACE])) for row in slots],
            }
        )
    )
    joined = kept.inner_join(
        variants,
        [kept[_SLOT] == variants["fairlead slot of"], kept[_PLACE] == variants["fairlead place of"]],
    )
    joined = joined.mutate(**{_UNIT: joined[_PLACE] + ibis.literal(" ") + joined[_SLOT].cast("string")})
    units = units_of_table(joined, plan, variant="fairlead variant", unit=_UNIT, time=_AT)
    counted = sum(int(row["n"]) for row in slots)
    units.excluded = {**units.excluded, "events in a washout, or without a time": total - counted}
    return units
