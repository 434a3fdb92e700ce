"""From a flag and a context to one variant, and the reason why.

A rule in the place of a result (the whole targeting, or a branch of an `if` there) ends in an `Evaluation`
that was made when the document was read: serving it allocates nothing, and a branch that names no variant
is refused at start-up instead of being met by a user. A result that only the request can compute is looked
up among the variants; when it names none, the caller's own default answers with `ERROR`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from fairlead.flags.attribute import EvaluationContext, arguments
from fairlead.flags.flag import OVERRIDES, Flag, FlagType, FlagValue, Place, closest, quoted
from fairlead.flags.rule import Rules, rule_of
from fairlead.flags.slots import Slots

__all__ = ["Evaluation", "EvaluationContext", "Reason"]


class Reason(StrEnum):
    """Why this variant, in OpenFeature's words."""

    STATIC = "STATIC"
    """The flag has no targeting, or an override forced the variant."""
    DEFAULT = "DEFAULT"
    """Targeting decided nothing; the default variant answers."""
    TARGETING_MATCH = "TARGETING_MATCH"
    """A rule named the variant."""
    SPLIT = "SPLIT"
    """The unit's bucket named the variant."""
    DISABLED = "DISABLED"
    """The flag is switched off or killed; the caller's own default answers."""
    ERROR = "ERROR"
    """Unknown flag, wrong type, or a rule that names no variant; the caller's own default answers."""


class Evaluation(msgspec.Struct, frozen=True):
    """The answer to one question."""

    value: FlagValue
    variant: str | None
    """Name of the variant served; None when the caller's own default was."""
    reason: Reason
    detail: str = ""
    """What went wrong or was missing, in one line; empty when nothing was."""


Decide = Callable[[EvaluationContext], Evaluation]

_NOT_OVERRIDDEN: Final = Evaluation(None, None, Reason.DEFAULT)


class CompiledFlag:
    """A flag ready to be asked; `decide` yields variant None where the caller's own default is to answer."""

    __slots__ = ("decide", "type")

    def __init__(self, flag: Flag, place: Place, rules: Rules, override: str | None = None) -> None:
        self.type: FlagType = flag.type
        # Compiled even when switched off: a broken rule must not wait for the day it is switched on.
        decide = _always(_serve(flag, flag.default_variant, Reason.STATIC))
        if flag.targeting is not None:
            default = _serve(flag, flag.default_variant, Reason.DEFAULT)
            decide = _Results(flag, rules, default).read(flag.targeting, place.at("targeting"))
        if flag.override_rule is not None:
            here = place.at("metadata").at(OVERRIDES)
            if draws(flag.override_rule):
                here.refuse("an override draws nobody; put the bucket into the targeting")
            first = _Results(flag, rules, _NOT_OVERRIDDEN).read(flag.override_rule, here)
            decide = _in_order(first, decide)
        if flag.killed:
            decide = _always(Evaluation(None, None, Reason.DISABLED, "killed: fairlead_killed is true"))
        elif override is not None:
            decide = _always(_serve(flag, override, Reason.STATIC))
        elif not flag.enabled:
            decide = _always(Evaluation(None, None, Reason.DISABLED))
        self.decide: Decide = decide


def draws(node: object) -> bool:
    """Whether a rule has a `bucket` anywhere in it."""
    if isinstance(node, dict):
        return "bucket" in node or any(map(draws, node.values()))
    return isinstance(node, list) and any(map(draws, node))


def _always(evaluation: Evaluation) -> Decide:
    return lambda _: evaluation


def _in_order(first: Decide, then: Decide) -> Decide:
    def decide(context: EvaluationContext) -> Evaluation:
        found = first(context)
        return then(context) if found is _NOT_OVERRIDDEN else found

    return decide


def _serve(flag: Flag, variant: str | None, reason: Reason, detail: str = "") -> Evaluation:
    if variant is None:  # flagd: a null default variant means the caller's own
        return Evaluation(None, None, Reason.DEFAULT, detail)
    return Evaluation(flag.variants[variant], variant, reason, detail)


class _Results:
    """Compiles rules that stand in the place of a result: what they yield names a variant, or is null."""

    def __init__(self, flag: Flag, rules: Rules, default: Evaluation) -> None:
        self._flag = flag
        self._rules = rules
        self._default = default
        """What null yields."""

    def read(self, node: object, place: Place) -> Decide:
        """The closure that answers; refuses at once what could name no variant."""
        if node is None:
            return _always(self._default)
        if isinstance(node, bool):  # flagd: true and false name the variants "true" and "false"
            node = "true" if node else "false"
        if isinstance(node, str):
            return _always(self._named(node, Reason.TARGETING_MATCH, place))
        if not isinstance(node, dict):
            place.refuse(f"{quoted(node)} names no variant; write the name of one, or null for the default")
        operator, argument = rule_of(node, place)
        if operator == "if":
            return self._branches(argument, place.at(operator))
        if operator == "bucket":
            return self._split(Slots(argument, place.at(operator)), place.at(operator))
        return self._computed(node, place)

    def _named(self, name: str, reason: Reason, place: Place) -> Evaluation:
        if name not in self._flag.variants:
            place.refuse(f"{quoted(name)} is not a variant{closest(name, self._flag.variants)}")
        return _serve(self._flag, name, reason)

    def _branches(self, argument: object, place: Place) -> Decide:
        given = arguments(argument, place, 2)
        branches = [
            (
                self._rules.test(given[index], place.at(index)),
                self.read(given[index + 1], place.at(index + 1)),
            )
            for index in range(0, len(given) - 1, 2)
        ]
        last = len(given) - 1
        otherwise = self.read(given[last] if len(given) % 2 else None, place.at(last))
        if len(branches) == 1:
            ((test, result),) = branches
            return lambda context: result(context) if test(context) else otherwise(context)

        def choose(context: EvaluationContext) -> Evaluation:
            for test, result in branches:
                if test(context):
                    return result(context)
            return otherwise(context)

        return choose

    def _split(self, slots: Slots, place: Place) -> Decide:
        here = place.at("slots")
        no_key = _serve(
            self._flag,
            self._flag.default_variant,
            Reason.DEFAULT,
            f"the context has no {slots.by}, so no bucket was drawn",
        )
        default = self._default
        read, slot_of, starts, ends = slots.read, slots.slot_of, slots.starts, slots.ends
        labels = [self._named(owner, Reason.SPLIT, here) for owner in slots.owners if isinstance(owner, str)]
        if len(labels) == len(slots.owners):

            def draw(context: EvaluationContext) -> Evaluation:
                slot = slot_of(read(context))
                if slot < 0:
                    return no_key
                found = bisect_right(starts, slot) - 1
                return labels[found] if found >= 0 and slot < ends[found] else default

            return draw
        served = [
            _always(self._named(owner, Reason.SPLIT, here))
            if isinstance(owner, str)
            else self._split(owner, here)
            for owner in slots.owners
        ]

        def draw_again(context: EvaluationContext) -> Evaluation:
            slot = slot_of(read(context))
            if slot < 0:
                return no_key
            found = slots.index(slot)
            return served[found](context) if found >= 0 else default

        return draw_again

    def _computed(self, node: object, place: Place) -> Decide:
        read = self._rules.value(node, place)
        matches = {name: _serve(self._flag, name, Reason.TARGETING_MATCH) for name in self._flag.variants}
        default = self._default

        def look_up(context: EvaluationContext) -> Evaluation:
            result = read(context)
            if result is None:
                return default
            if isinstance(result, bool):
                result = "true" if result else "false"
            found = matches.get(result) if isinstance(result, str) else None
            if found is not None:
                return found
            return Evaluation(
                None, None, Reason.ERROR, f"targeting yielded {quoted(result)}, which names no variant"
            )

        return look_up
