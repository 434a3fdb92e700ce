"""Which keys are refused, and why that is kinder than a cache that never hits.

A key is any hashable value. But an object that hashes by its identity equals only itself: a new one arrives
with each request, so the cache fills with entries nobody can ask for again. The check runs where a load
starts or a value is set, never on a hit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from fairlead.errors import InvalidInput

__all__ = ["check_key", "check_tags", "shown", "unhashable"]

_NO_TAGS: frozenset[str] = frozenset()
_MOST_TAGS = 100
_LONGEST_TAG = 200
_PLAIN = frozenset({str, bytes, int, bool, type(None)})


def check_key(key: Hashable) -> None:
    """Raises InvalidInput for a key that a later, equal request could not find again."""
    if type(key) in _PLAIN:
        return
    try:
        hash(key)
    except TypeError as error:
        raise unhashable(key) from error
    _check_part(key, key)


def check_tags(tags: Iterable[str]) -> frozenset[str]:
    """`tags` as a set. Raises InvalidInput for a lone string, more than 100, or one that is empty or longer
    than 200 characters."""
    if not tags:
        return _NO_TAGS
    if isinstance(tags, str):
        raise InvalidInput(f"tags: {shown(tags)} is one string; pass a tuple of tags, ({shown(tags)},)")
    found = frozenset(tags)
    if len(found) > _MOST_TAGS:
        raise InvalidInput(f"tags: {len(found)} on one entry; at most {_MOST_TAGS}")
    for tag in found:
        if not isinstance(tag, str) or not 0 < len(tag) <= _LONGEST_TAG:
            raise InvalidInput(f"tags: {shown(tag)} is not a string of 1 to {_LONGEST_TAG} characters")
    return found


def unhashable(key: object) -> InvalidInput:
    return InvalidInput(
        f"cache key {shown(key)} cannot be hashed: "
        "use str, bytes, numbers, or tuples and frozen dataclasses of them"
    )


def _check_part(part: object, key: object) -> None:
    kind = type(part)
    if kind in _PLAIN:
        return
    if isinstance(part, tuple | frozenset):
        for inner in part:
            _check_part(inner, key)
    elif part != part:
        raise InvalidInput(
            f"cache key {shown(key)} holds {part!r}, which does not equal itself: it would never hit"
        )
    elif kind.__hash__ is object.__hash__ and not isinstance(part, type):
        raise InvalidInput(
            f"cache key {shown(key)} holds a {kind.__qualname__}, which hashes by identity: "
            "an equal request would never find it; use the fields that identify it"
        )


def shown(key: object) -> str:
    """`key` as a message prints it, cut to 80 characters."""
    try:
        text = repr(key)
    except Exception:  # a load must be given up, and its callers told, whatever its key does
        text = f"<{type(key).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."
