"""What targeting may look at, and how a rule reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from fairlead.flags.flag import Place, quoted

__all__ = ["EvaluationContext"]

TARGETING_KEY: Final = "targetingKey"


class EvaluationContext(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking: what targeting may look at. Made once per request and used for all its flags."""

    targeting_key: str = ""
    """Stable id of the unit of randomisation; empty when unknown, and then no bucket is drawn."""
    attributes: Mapping[str, object] = {}
    """What `var` reads, by name; `var` "targetingKey" reads the key."""


Read = Callable[[EvaluationContext], object]


def arguments(argument: object, place: Place, low: int, high: int | None = None) -> list[object]:
    """The arguments of an operator; one may stand without its list."""
    given = argument if isinstance(argument, list) else [argument]
    if len(given) < low or (high is not None and len(given) > high):
        wanted = f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
        place.refuse(f"takes {wanted} arguments, not {len(given)}; correct the list")
    return given


def attribute(argument: object, place: Place) -> Read:
    """A closure that reads what the argument of `var` names."""
    given = arguments(argument, place, 1, 2)
    name = given[0]
    fallback = given[1] if len(given) == 2 else None
    if not isinstance(name, str) or not name or isinstance(fallback, dict | list):
        place.refuse(
            'takes the name of an attribute, and a constant for when it is missing; write {"var": "country"}'
        )
    if name.startswith("$flagd"):
        place.refuse(f"{quoted(name)} is not supported; use an attribute of the context")
    if name == TARGETING_KEY:
        return lambda context: context.targeting_key or fallback
    if "." not in name:
        return lambda context: context.attributes.get(name, fallback)
    steps = name.split(".")

    def nested(context: EvaluationContext) -> object:
        # The whole name first: attributes such as "app.version" are common and flat.
        found: object = context.attributes.get(name)
        if found is not None:
            return found
        found = context.attributes
        for step in steps:
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list | tuple) and step.isdecimal() and int(step[:9]) < len(found):
                found = found[int(step[:9])]
            else:
                return fallback
        return found

    return nested
