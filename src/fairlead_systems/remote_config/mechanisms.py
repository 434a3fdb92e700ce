"""The switches of the treatment. Each turns one mechanism off, in an arm of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fairlead.trial import Mechanism

__all__ = ["MECHANISMS", "Mechanisms"]

MECHANISMS = (
    Mechanism(
        name="cached_response",
        summary="entries and JSON kept in memory, one load per key at a time; without it each request reads the table",
    ),
    Mechanism(
        name="stale_while_revalidate",
        summary="an answer up to 1 s past its lifetime while one refresh runs; without it callers wait for the load",
    ),
    Mechanism(
        name="negative_entries",
        summary="a user of whom the table says nothing is not asked about again for a lifetime",
    ),
    Mechanism(
        name="last_known_good",
        summary="when the table cannot be read, the layers as last read, from memory or file, marked degraded",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanisms:
    """Which mechanisms are on."""

    cached_response: bool = True
    stale_while_revalidate: bool = True
    negative_entries: bool = True
    last_known_good: bool = True


if tuple(field.name for field in fields(Mechanisms)) != tuple(mechanism.name for mechanism in MECHANISMS):
    raise AssertionError("MECHANISMS and Mechanisms must list the same names in the same order")
