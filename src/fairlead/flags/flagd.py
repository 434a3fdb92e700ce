"""From a flag document of flagd's to one of ours, with everybody where they are.

flagd's `fractional` says how much each variant gets and not who gets it: that depends on the version that reads it, and
it changed twice. v1 (flagd up to 0.14) takes the absolute value of a signed murmur3 as a percentage, v2 (from 0.15)
scales the unsigned hash to the sum of the weights, v3 (openfeature-flagd-core 2.0) hashes canonical CBOR in place of
text. A document cannot tell which one it was written for, so whoever imports it says it, and the import pins it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec

from fairlead.flags.attribute import TARGETING_KEY
from fairlead.flags.comparison import COMPARISONS
from fairlead.flags.flag import MAX_DEPTH, Flag, Place, as_word, closest, load_json, quoted
from fairlead.flags.flag_set import FlagSet
from fairlead.flags.layout import ABSOLUTE, MOST_SLOTS

__all__ = ["FRACTIONAL_VERSIONS", "Imported", "import_flagd", "needs_fairlead"]

FRACTIONAL_VERSIONS: Final = ("v1", "v2", "v3")
_FINEST = 10_000
_MOST_PUT_IN = 1_000
_TOP_KEYS = ("$schema", "$evaluators", "flags", "metadata")
_FLAG_KEYS = ("state", "variants", "defaultVariant", "targeting", "metadata")


class Imported(msgspec.Struct, frozen=True):
    """A document of ours, and what is not as it was."""

    document: bytes
    """As JSON; a FlagSet reads it."""
    notices: tuple[str, ...]
    """One line each, naming the flag."""


def import_flagd(data: bytes, *, source: str = "<bytes>", fractional: str | None = None) -> Imported:
    """The document with each `fractional` as a `bucket` that draws as flagd did.

    fractional: the version that has drawn so far, v1, v2 or v3; needed where the document has a `fractional`.
    Raises BrokenDocument, naming flag, place and fix, for what we could not serve alike.
    """
    place = Place(source)
    if fractional is not None and fractional not in FRACTIONAL_VERSIONS:
        place.refuse(
            f"{quoted(fractional)} is no version of fractional{closest(fractional, FRACTIONAL_VERSIONS)}"
        )
    raw = load_json(data, place)
    if not isinstance(raw, dict) or not isinstance(raw.get("flags"), dict | list):
        place.refuse('no "flags"; name a flag document of flagd in JSON')
    notices = [f"the document's {as_word(key)} is left out" for key in raw if key not in _TOP_KEYS]
    document = {key: raw[key] for key in _TOP_KEYS if key in raw}
    shared = raw.get("$evaluators", {})
    shared = shared if isinstance(shared, dict) else {}
    converted = _Converter("", shared, fractional, notices)
    if shared:
        # What asks for the flag's own name is put in where it is used.
        document["$evaluators"] = {
            name: converted.rule(rule, place.at("$evaluators").at(name))
            for name, rule in shared.items()
            if not converted.is_of_a_flag(rule)
        }
    flags: dict[str, object] = {}
    for name, flag in _named_flags(raw["flags"], place.at("flags")):
        here = place.at("flags").at(name)
        if name in flags:
            here.refuse("stands twice; keep one")
        try:
            flags[name] = _converted(flag, here, _Converter(name, shared, fractional, notices))
        except RecursionError as error:
            here.refuse("nested too deep with its $refs put in; flatten it", cause=error)
    document["flags"] = flags
    written = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    FlagSet.parse(written, source=source)
    return Imported(written, tuple(dict.fromkeys(notices)))


def _converted(flag: object, place: Place, converter: _Converter) -> dict[str, object]:
    if not isinstance(flag, dict):
        place.refuse(f"{quoted(flag)} is not an object; write {{...}}")
    for key in flag:
        if key not in _FLAG_KEYS:
            converter.say(f"{as_word(key)} is left out")
    kept = {key: flag[key] for key in _FLAG_KEYS if key in flag}
    if kept.get("targeting"):
        kept["targeting"] = converter.rule(kept["targeting"], place.at("targeting"), result=True)
    return kept


def _named_flags(flags: dict[str, object] | list[object], place: Place) -> list[tuple[str, object]]:
    """Flags by name; flagd's own files may list them with a `key` in each."""
    if isinstance(flags, dict):
        return list(flags.items())
    found: list[tuple[str, object]] = []
    for index, flag in enumerate(flags):
        if not isinstance(flag, dict) or not isinstance(flag.get("key"), str):
            place.at(index).refuse('has no "key"; name the flag')
        found.append((flag["key"], {key: value for key, value in flag.items() if key != "key"}))
    return found


def needs_fairlead(flag: Flag) -> tuple[str, ...]:
    """What flagd's own readers would not serve alike: operators they lack, and metadata they do not act on."""
    used = {"bucket", "variant_of"} & _operators([flag.targeting, flag.override_rule])
    marks = {key for key in ("fairlead_killed", "fairlead_overrides") if flag.metadata.get(key)}
    return (*sorted(used), *sorted(marks))


def _operators(node: object) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_operators, node)) if node else set()
    return {*node, *_operators(list(node.values()))} if isinstance(node, dict) else set()


class _Converter:
    """Rewrites the rules of one flag."""

    def __init__(
        self, flag: str, shared: Mapping[str, object], version: str | None, notices: list[str]
    ) -> None:
        self._flag = flag
        self._shared = shared
        self._version = version
        self._notices = notices
        self._within: list[str] = []
        self._put_in = 0

    def is_of_a_flag(self, node: object) -> bool:
        """Whether a rule means something else in each flag that refers to it."""
        pending, seen = [node], set[str]()
        while pending:
            one = pending.pop()
            if isinstance(one, list):
                pending += one
            elif isinstance(one, dict):
                if "fractional" in one:
                    return True
                name = one.get("$ref")
                if isinstance(name, str) and name in self._shared and name not in seen:
                    seen.add(name)
                    pending.append(self._shared[name])
                pending += one.values()
            elif one == "$flagd.flagKey":
                return True
        return False

    def rule(self, node: object, place: Place, *, result: bool = False) -> object:
        """The rule as ours; `result`: it stands where a variant is named."""
        if isinstance(node, list):
            return [self.rule(item, place.at(index)) for index, item in enumerate(node)]
        if not isinstance(node, dict) or len(node) != 1:
            return node
        ((name, argument),) = node.items()
        here = place.at(name)
        given = argument if isinstance(argument, list) else [argument]
        if name == "$ref" and isinstance(argument, str) and self.is_of_a_flag(node):
            return self._inlined(argument, here, result)
        if name == "fractional":
            return self._fractional(given, here, result)
        if name == "if":
            last = len(given) - 1
            return {
                "if": [
                    self.rule(item, here.at(index), result=result and (index % 2 == 1 or index == last))
                    for index, item in enumerate(given)
                ]
            }
        if name == "var" and given[:1] == ["$flagd.flagKey"]:
            return self._flag
        if name == "!==":
            return {"!": {"===": self.rule(given, here)}}
        if name == "!!" and len(given) == 1:
            return {"!": {"!": self.rule(given[0], here)}}
        if name in ("<", "<=", ">", ">=") and name in COMPARISONS and '"var"' in json.dumps(given):
            self.say(
                f"{name}: a missing attribute satisfies no comparison here; in flagd it may count as 0 (decision 0051)"
            )
        return {name: self.rule(argument, here)}

    def say(self, what: str) -> None:
        """Adds a notice about the flag."""
        self._notices.append(f"{as_word(self._flag)}: {what}" if self._flag else f"$evaluators: {what}")

    def _inlined(self, name: str, place: Place, result: bool) -> object:
        self._put_in += 1
        if name in self._within or len(self._within) > MAX_DEPTH or self._put_in > _MOST_PUT_IN:
            place.refuse(f"{quoted(name)} refers to itself, or to too much; break the circle")
        self._within.append(name)
        found = self.rule(self._shared[name], place, result=result)
        self._within.pop()
        return found

    def _fractional(self, given: list[object], place: Place, result: bool) -> object:
        if self._version is None:
            place.refuse(
                "who gets which share depends on the version of flagd that has drawn; say which: v1 (flagd up to "
                "0.14), v2 (flagd from 0.15), v3 (openfeature-flagd-core 2.0)"
            )
        by, salt, shorthand = self._unit(given[0] if given else None, place)
        shares = given if shorthand else given[1:]
        weighted = [self._share(share, place.at(index), result) for index, share in enumerate(shares)]
        total = sum(weight for _, weight in weighted)
        if not 0 < total <= MOST_SLOTS:
            place.refuse(f"the weights are {total} in all, not 1 to {MOST_SLOTS}; correct them")
        if by != TARGETING_KEY:
            self.say(
                f"without {as_word(by)} the default is served; flagd's readers disagree, some draw by the targeting key"
            )
        edges, algorithm = _edges([weight for _, weight in weighted], total, self._version, shorthand)
        slots = [
            [label, start, end]
            for (label, _), start, end in zip(weighted, [0, *edges], edges, strict=False)
            if label is not None and start < end
        ]
        if not slots:
            return None
        return {"bucket": {"by": by, "salt": salt, "algo": algorithm, "slots": slots}}

    def _unit(self, first: object, place: Place) -> tuple[str, str, bool]:
        """Who is drawn, what stands before the key, and whether the operator has left both to flagd."""
        if isinstance(first, list):
            return TARGETING_KEY, self._flag, True
        parts = first["cat"] if isinstance(first, dict) and set(first) == {"cat"} else [first]
        parts = parts if isinstance(parts, list) else [parts]
        salt = ""
        for part in parts[:-1]:
            constant = self._flag if part == {"var": "$flagd.flagKey"} else part
            if not isinstance(constant, str):
                self._no_unit(place)
            salt += constant
        last = parts[-1] if parts else None
        name = last["var"] if isinstance(last, dict) and set(last) == {"var"} else None
        if isinstance(name, list) and len(name) == 1:
            (name,) = name
        if not isinstance(name, str) or not name or name.startswith("$flagd"):
            self._no_unit(place)
        return name, salt, False

    @staticmethod
    def _no_unit(place: Place) -> NoReturn:
        place.at(0).refuse(
            'draws by more than text and one attribute; write {"var": "email"} or {"cat": ["seed", {"var": "email"}]}'
        )

    def _share(self, share: object, place: Place, result: bool) -> tuple[str | None, int]:
        if not isinstance(share, list) or len(share) not in (1, 2):
            place.refuse(f'{quoted(share)} is no share; write ["variant", weight]')
        label = share[0]
        weight = share[1] if len(share) == 2 and share[1] is not None else 1
        if isinstance(label, bool) and result:
            label = "true" if label else "false"
        if label is not None and (not isinstance(label, str) or not label):
            place.at(0).refuse(f"{quoted(label)} is computed or no text; write one fractional for each case")
        if type(weight) is not int or weight < 0:
            place.at(1).refuse(f"{quoted(weight)} is no whole weight; flagd's readers disagree about others")
        return label, weight


def _edges(weights: list[int], total: int, version: str, shorthand: bool) -> tuple[list[int], str]:
    """Where each share ends, in slots, and the name of the layout."""
    if version == "v1":
        edges, ends = [], 0.0
        for weight in weights:
            ends += weight * 100 / total
            # The first value of the hash that flagd's arithmetic puts beyond the share.
            edges.append(bisect_left(range(2**31 + 1), True, key=lambda value: not _before(value, ends)))
        return edges, ABSOLUTE
    # As fine as our own slots, so that a share can grow by 0.01 %; a multiple divides the hash in the same places.
    factor = max(1, _FINEST // total)
    reached, edges = 0, []
    for weight in weights:
        reached += weight * factor
        edges.append(reached)
    hashed = "murmur3" if version == "v2" else "murmur3-cbor-pair" if shorthand else "murmur3-cbor"
    return edges, f"{hashed}/{total * factor}@flagd-{version}"


def _before(value: int, percent: float) -> bool:
    return value / (2**31 - 1) * 100 < percent
