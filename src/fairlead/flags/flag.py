"""The flag document: read strictly once, so that evaluation never has to doubt it.

A flag file is edited by hand, under pressure, and read by every process of a fleet. One that half parses is
worse than one that does not parse at all: a misspelt operator that is skipped sends everybody to one arm.
So everything that is not understood is refused here, in one line that names the file, the flag, the place
and the fix.

The format is flagd's (`state`, `variants`, `defaultVariant`, `targeting` in JsonLogic with rules shared by `$ref`,
`metadata`) with two operators of our own, `bucket` and `variant_of`, and with keys of our own in `metadata`, where
flagd's readers let them pass. Bounded: 1 MiB, 32 levels. Refused: duplicate keys, unknown keys and operators, variants
of mixed types, a default that is no variant, numbers that JSON cannot carry exactly (NaN, infinities, integers beyond
2**53).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NoReturn

import msgspec

from fairlead.errors import BrokenDocument

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Flag", "FlagDocument", "FlagType", "FlagValue", "parse_document"]

MAX_BYTES = 1_048_576
"""A larger file is refused unread: a flag file carries decisions, not data."""

MAX_DEPTH = 32
"""Levels of nesting, counted from the document's own braces."""

_MAX_EXACT = 2**53
_MOST_PUT_IN = 100_000

KILLED: Final = "fairlead_killed"
OVERRIDES: Final = "fairlead_overrides"
_OUR_METADATA: Final = (KILLED, OVERRIDES, "fairlead_rollout", "fairlead_epoch", "fairlead_latched")

FlagValue = bool | str | int | float | Mapping[str, object] | None
"""What a variant holds. None only as a caller's own default."""


class FlagType(StrEnum):
    """The one type that all variants of a flag share."""

    BOOLEAN = "boolean"
    STRING = "string"
    NUMBER = "number"
    OBJECT = "object"

    @classmethod
    def of(cls, value: object) -> FlagType | None:
        """The type of a value, or None for what no flag can hold."""
        if isinstance(value, bool):  # before int, of which bool is one
            return cls.BOOLEAN
        if isinstance(value, str):
            return cls.STRING
        if isinstance(value, int | float):
            return cls.NUMBER
        if isinstance(value, Mapping):
            return cls.OBJECT
        return None


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """One flag as written in the document, checked. `targeting` is checked when it is compiled."""

    name: str
    enabled: bool
    """Whether it answers: its state is ENABLED, and it is not killed."""
    killed: bool
    """Switched off by `fairlead_killed`, its own or the document's, which outranks everything else."""
    type: FlagType
    variants: Mapping[str, FlagValue]
    """By variant name; object values are read-only, so that no request can change another's."""
    default_variant: str | None
    """None: the caller's own default is served where targeting decides nothing."""
    targeting: object
    """JsonLogic, or None."""
    override_rule: object
    """The shared rule that `fairlead_overrides` names, asked before the targeting; or None."""
    metadata: Mapping[str, object]


class FlagDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A whole flag file, checked."""

    source: str
    """Where it came from, as errors name it."""
    flags: Mapping[str, Flag]
    killed: bool
    """Whether all its flags are killed."""
    metadata: Mapping[str, object]


def quoted(text: object) -> str:
    """`text` in quotes, short and on one line, whatever it holds."""
    shown = text if isinstance(text, str) else json.dumps(text, default=repr)
    return repr(shown if len(shown) <= 64 else shown[:61] + "...")


def one_line(text: str) -> str:
    """`text` itself when it is printable, as nearly every path is; quoted otherwise."""
    return text if text.isprintable() else repr(text)


def as_word(name: str) -> str:
    """A name as written, or quoted and cut when it could break the line or fill the screen."""
    return name if name.isprintable() and len(name) <= 64 else quoted(name)


def closest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? known: …" for an error about `name`."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:200], names, n=1)
    listed = ", ".join(map(as_word, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    hint = f"; did you mean {quoted(near[0])}?" if near else ";"
    return f"{hint} known: {listed or 'none'}"


class Place:
    """Where in a document an error is, so that every refusal reads alike."""

    __slots__ = ("_flag", "_path", "_source")

    def __init__(self, source: str, flag: str | None = None, path: str = "") -> None:
        self._source = one_line(source)
        self._flag = flag
        self._path = path

    def at(self, step: str | int) -> Place:
        if self._path == "flags" and self._flag is None and isinstance(step, str):
            return Place(self._source, step)
        if isinstance(step, int):
            return Place(self._source, self._flag, f"{self._path}[{step}]")
        shown = as_word(step)
        return Place(self._source, self._flag, f"{self._path}.{shown}" if self._path else shown)

    def refuse(self, what: str, *, cause: BaseException | None = None) -> NoReturn:
        where = [] if self._flag is None else [f"flag {quoted(self._flag)}"]
        where += [self._path] if self._path else []
        raise BrokenDocument(f"{self._source}: {', '.join(where)}{': ' if where else ''}{what}") from cause


class _Twice(dict[str, object]):
    """An object in which a key stood twice; found and refused by the walk, which knows where it is."""

    key: str = ""


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    seen: set[str] = set()
    twice = _Twice(read)
    for key, _ in pairs:
        if key in seen:
            twice.key = key
        seen.add(key)
    return twice


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def load_json(data: bytes, place: Place) -> object:
    """The JSON in `data`, bounded, without duplicate keys, and with text and numbers that every reader has alike."""
    read = _load(data, place)
    _walk(read, place, 1)
    return read


def _load(data: bytes, place: Place) -> object:
    if len(data) > MAX_BYTES:
        place.refuse(f"larger than {MAX_BYTES} bytes; split it, or move data out of the variants")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        place.refuse(f"byte {error.start} is not UTF-8; save the file as UTF-8", cause=error)
    except RecursionError as error:
        place.refuse(f"nested deeper than {MAX_DEPTH} levels; flatten it", cause=error)
    except json.JSONDecodeError as error:
        place.refuse(
            f"line {error.lineno}, column {error.colno}: {error.msg}; correct the JSON there", cause=error
        )
    except ValueError as error:  # NaN, or an integer of thousands of digits
        place.refuse(f"{quoted(str(error))}; write a finite number", cause=error)


def _walk(value: object, place: Place, depth: int) -> None:
    """Refuses what JSON allows and we do not, at its place."""
    if depth > MAX_DEPTH:
        place.refuse(f"nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, dict):
        if isinstance(value, _Twice):
            place.refuse(f"key {quoted(value.key)} stands twice; keep one")
        for key, item in value.items():
            inner = place.at(key)
            _walk(key, inner, depth)
            _walk(item, inner, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _walk(item, place.at(index), depth + 1)
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            place.refuse("holds half a surrogate pair; write the character itself", cause=error)
    elif isinstance(value, float) and not math.isfinite(value):
        place.refuse("number out of range; write a finite number")
    elif isinstance(value, int) and abs(value) > _MAX_EXACT:
        place.refuse(
            f"integer beyond 2**53 is not exact in every reader; write {str(value)[:24]} as a string"
        )


def _object(value: object, place: Place, allowed: tuple[str, ...] | None = None) -> dict[str, object]:
    if not isinstance(value, dict):
        place.refuse(f"{quoted(value)} is not an object; write {{...}}")
    if allowed is not None:
        for key in value:
            if key not in allowed:
                place.refuse(f"unknown key {quoted(key)}{closest(key, allowed)}")
    return value


def _frozen(value: object) -> object:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


def _metadata(value: object, place: Place) -> Mapping[str, object]:
    read = _object(value, place)
    for key, item in read.items():
        if not isinstance(item, str | int | float):
            place.at(key).refuse("metadata is a string, number or boolean; write it as a string")
        # A kill switch that is misspelt must not look thrown.
        if key.startswith("fairlead_") and key not in _OUR_METADATA:
            place.at(key).refuse(f"unknown key {quoted(key)}{closest(key, _OUR_METADATA)}")
    if not isinstance(read.get(KILLED, False), bool):
        place.at(KILLED).refuse(f"{quoted(read[KILLED])}; write true or false")
    return MappingProxyType(read)


def _variants(value: object, place: Place) -> tuple[Mapping[str, FlagValue], FlagType]:
    read = _object(value, place)
    if not read:
        place.refuse("no variants; name at least one")
    found: dict[FlagType, str] = {}
    variants: dict[str, FlagValue] = {}
    for name, item in read.items():
        kind = FlagType.of(item)
        if kind is None:
            place.at(name).refuse(
                f"{quoted(item)} is no value for a variant; use a boolean, string, number or object"
            )
        if not name:
            place.refuse("a variant has an empty name; name it")
        found.setdefault(kind, name)
        variants[name] = _frozen(item)  # type: ignore[assignment]  # checked by FlagType.of just above
    if len(found) > 1:
        mixed = " and ".join(f"{quoted(name)} a {kind}" for kind, name in found.items())
        place.refuse(f"variants of mixed types ({mixed}); give all the same type")
    return MappingProxyType(variants), next(iter(found))


class SharedRules:
    """The document's `$evaluators`, put in the place of each `$ref` before anything is compiled.

    A rule that refers to itself would never end, and ten that refer to each other twice are a thousand: both are
    refused, the second by counting the nodes that were put in.
    """

    def __init__(self, rules: Mapping[str, object]) -> None:
        self._rules = rules
        self._put_in = 0

    def resolved(self, node: object, place: Place, within: tuple[str, ...] = (), depth: int = 1) -> object:
        """The node without a `$ref` in it. Refuses unknown names, circles, and more than can be meant."""
        self._put_in += bool(within)
        if self._put_in > _MOST_PUT_IN:
            place.refuse(
                f"its $refs put in more than {_MOST_PUT_IN} nodes; write fewer rules, or shorter ones"
            )
        if depth > MAX_DEPTH:
            place.refuse(f"nested deeper than {MAX_DEPTH} levels with its $refs put in; flatten it")
        if isinstance(node, list):
            return [
                self.resolved(item, place.at(index), within, depth + 1) for index, item in enumerate(node)
            ]
        if not isinstance(node, dict):
            return node
        if "$ref" not in node:
            return {key: self.resolved(item, place.at(key), within, depth + 1) for key, item in node.items()}
        name = node["$ref"]
        here = place.at("$ref")
        if len(node) > 1 or not isinstance(name, str):
            here.refuse('stands alone and names one of $evaluators; write {"$ref": "name"}')
        if name not in self._rules:
            here.refuse(f"{quoted(name)} is none of $evaluators{closest(name, self._rules)}")
        if name in within:
            here.refuse(
                f"{quoted(name)} refers to itself, by way of {' and '.join(within)}; break the circle"
            )
        return self.resolved(self._rules[name], place, (*within, name), depth + 1)

    def override(self, metadata: Mapping[str, object], place: Place) -> object:
        """The rule that `fairlead_overrides` names, None without one."""
        name = metadata.get(OVERRIDES)
        if name is None:
            return None
        here = place.at(OVERRIDES)
        if not isinstance(name, str) or name not in self._rules:
            here.refuse(f"{quoted(name)} is none of $evaluators{closest(str(name), self._rules)}")
        return self.resolved({"$ref": name}, here)


def _flag(name: str, value: object, place: Place, shared: SharedRules, killed: bool) -> Flag:
    read = _object(value, place, ("state", "variants", "defaultVariant", "targeting", "metadata"))
    state = read.get("state")
    if state not in ("ENABLED", "DISABLED"):
        shown = "missing" if "state" not in read else f"{quoted(state)}"
        place.at("state").refuse(f'{shown}; write "ENABLED" or "DISABLED"')
    if "variants" not in read:
        place.at("variants").refuse("missing; name at least one variant")
    variants, kind = _variants(read["variants"], place.at("variants"))
    default = read.get("defaultVariant")
    if default is not None and (not isinstance(default, str) or default not in variants):
        place.at("defaultVariant").refuse(
            f"{quoted(default)} is not a variant{closest(str(default), variants)}"
        )
    targeting = read.get("targeting")
    if targeting is not None:
        targeting = _object(shared.resolved(targeting, place.at("targeting")), place.at("targeting"))
    metadata = _metadata(read.get("metadata", {}), place.at("metadata"))
    killed = killed or metadata.get(KILLED) is True
    return Flag(
        name=name,
        enabled=state == "ENABLED" and not killed,
        killed=killed,
        type=kind,
        variants=variants,
        default_variant=default,
        targeting=targeting or None,
        override_rule=shared.override(metadata, place.at("metadata")),
        metadata=metadata,
    )


def parse_document(data: bytes, *, source: str) -> FlagDocument:
    """The document in `data`. Raises BrokenDocument, one line naming source, flag, place and fix."""
    place = Place(source)
    read = _object(load_json(data, place), place, ("$schema", "$evaluators", "flags", "metadata"))
    shared = SharedRules(_object(read.get("$evaluators", {}), place.at("$evaluators")))
    if "flags" not in read:
        place.refuse('no "flags"; write {"flags": {"name": {...}}}')
    metadata = _metadata(read.get("metadata", {}), place.at("metadata"))
    if OVERRIDES in metadata:
        place.at("metadata").at(OVERRIDES).refuse("belongs to a flag; write it in the metadata of each")
    killed = metadata.get(KILLED) is True
    flags: dict[str, Flag] = {}
    for name, value in _object(read["flags"], place.at("flags")).items():
        if not name:
            place.at("flags").refuse("a flag has an empty name; name it")
        flags[name] = _flag(name, value, place.at("flags").at(name), shared, killed)
    return FlagDocument(
        source=source,
        flags=MappingProxyType(flags),
        killed=killed,
        metadata=metadata,
    )
