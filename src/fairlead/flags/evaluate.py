"""From a flag and a context to one variant, and the reason why.

A rule in the place of a result (the whole targeting, or a branch of an `if` there) ends in an `Evaluation`
that was made when the document was read: serving it allocates nothing, and a branch that names no variant
is refused at start-up instead of being met by a user. A result that only the request can compute is looked
up among the variants; when it names none, the caller's own default answers with `ERROR`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from fairlead.flags.flag import Flag, FlagType, FlagValue, Place, closest, quoted
from fairlead.flags.rule import EvaluationContext, Slots, arguments, compile_test, compile_value, rule_of

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
    """The flag is switched off; the caller's own default answers."""
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


class CompiledFlag:
    """A flag ready to be asked; `decide` yields variant None where the caller's own default is to answer."""

    __slots__ = ("_flag", "decide", "type")

    def __init__(self, flag: Flag, place: Place, override: str | None = None) -> None:
        self._flag = flag
        self.type: FlagType = flag.type
        # Compiled even when switched off: a broken rule must not wait for the day it is switched on.
        decide = self._always(self._serve(flag.default_variant, Reason.STATIC))
        if flag.targeting is not None:
            decide = self._result(flag.targeting, place.at("targeting"))
        if override is not None:
            decide = self._always(self._serve(override, Reason.STATIC))
        elif not flag.enabled:
            decide = self._always(Evaluation(None, None, Reason.DISABLED))
        self.decide: Decide = decide

    def _serve(self, variant: str | None, reason: Reason, detail: str = "") -> Evaluation:
        if variant is None:  # flagd: a null default variant means the caller's own
            return Evaluation(None, None, Reason.DEFAULT, detail)
        return Evaluation(self._flag.variants[variant], variant, reason, detail)

    @staticmethod
    def _always(evaluation: Evaluation) -> Decide:
        return lambda _: evaluation

    def _default(self, detail: str = "") -> Evaluation:
        return self._serve(self._flag.default_variant, Reason.DEFAULT, detail)

    def _named(self, name: str, place: Place) -> str:
        if name not in self._flag.variants:
            place.refuse(f"{quoted(name)} is not a variant{closest(name, self._flag.variants)}")
        return name

    def _result(self, node: object, place: Place) -> Decide:
        if node is None:
            return self._always(self._default())
        if isinstance(node, bool):  # flagd: true and false name the variants "true" and "false"
            node = "true" if node else "false"
        if isinstance(node, str):
            return self._always(self._serve(self._named(node, place), Reason.TARGETING_MATCH))
        if not isinstance(node, dict):
            place.refuse(f"{quoted(node)} names no variant; write the name of one, or null for the default")
        operator, argument = rule_of(node, place)
        if operator == "if":
            return self._branches(argument, place.at(operator))
        if operator == "bucket":
            return self._split(argument, place.at(operator))
        return self._computed(node, place)

    def _branches(self, argument: object, place: Place) -> Decide:
        given = arguments(argument, place, 2)
        branches = [
            (compile_test(given[index], place.at(index)), self._result(given[index + 1], place.at(index + 1)))
            for index in range(0, len(given) - 1, 2)
        ]
        last = len(given) - 1
        otherwise = self._result(given[last] if len(given) % 2 else None, place.at(last))
        if len(branches) == 1:
            ((test, result),) = branches
            return lambda context: result(context) if test(context) else otherwise(context)

        def choose(context: EvaluationContext) -> Evaluation:
            for test, result in branches:
                if test(context):
                    return result(context)
            return otherwise(context)

        return choose

    def _split(self, argument: object, place: Place) -> Decide:
        slots = Slots(argument, place)
        served = [self._serve(self._named(label, place.at("slots")), Reason.SPLIT) for label in slots.labels]
        served.append(self._default())  # Slots.index says -1 for a slot that nobody owns
        no_key = self._default(f"the context has no {slots.by}, so no bucket was drawn")
        read_key, find = slots.key, slots.index

        def draw(context: EvaluationContext) -> Evaluation:
            key = read_key(context)
            return served[find(key)] if key else no_key

        return draw

    def _computed(self, node: object, place: Place) -> Decide:
        read = compile_value(node, place)
        matches = {name: self._serve(name, Reason.TARGETING_MATCH) for name in self._flag.variants}
        default = self._default()

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
