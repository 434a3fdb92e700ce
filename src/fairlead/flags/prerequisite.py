"""Which flags ask which others, by `variant_of`, and that it ends.

A flag may need another one to serve a variant first. Two that need each other would never answer, and ten that ask each
other twice are a thousand questions in one request: circles are refused when the document is read, and so is a flag
that asks for more than can be meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fairlead.flags.flag import Flag, Place, closest, quoted

__all__ = ["MOST_ASKED", "check_prerequisites", "prerequisites"]

MOST_ASKED = 64
"""Flags that one evaluation may have to ask, counted along every way."""


def prerequisites(flag: Flag) -> Iterator[str]:
    """The flags that a flag's rules ask, as often as they stand there."""
    pending: list[object] = [flag.override_rule, flag.targeting]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            name = node.get("variant_of")
            if isinstance(name, list) and len(name) == 1:
                (name,) = name
            if isinstance(name, str) and len(node) == 1:
                yield name
            else:
                pending.extend(node.values())


def check_prerequisites(flags: Mapping[str, Flag], place: Place) -> None:
    """Refuses a flag that asks one there is not, itself by any way, or too many."""
    asked = {name: list(prerequisites(flag)) for name, flag in flags.items()}
    counts: dict[str, int] = {}
    for start in flags:
        # Depth first by hand: a chain of flags may be longer than Python's stack is deep.
        path = [(start, iter(asked[start]))]
        while path:
            name, rest = path[-1]
            here = place.at(name).at("targeting")
            needed = next(rest, None) if name not in counts else None
            if needed is None:
                path.pop()
                if name not in counts:
                    counts[name] = sum(1 + counts[each] for each in asked[name])
                    if counts[name] > MOST_ASKED:
                        here.refuse(
                            f"asks {counts[name]} flags by way of variant_of, more than {MOST_ASKED}; ask fewer"
                        )
            elif needed not in flags:
                here.refuse(f"variant_of {quoted(needed)}: no such flag{closest(needed, flags)}")
            elif any(needed == above for above, _ in path):
                way = [above for above, _ in path]
                circle = " needs ".join(map(quoted, [*way[way.index(needed) :], needed]))
                here.refuse(f"{circle}; break the circle")
            else:
                path.append((needed, iter(asked[needed])))
