"""Why did this user get this? Every rule that was asked, what it read, and what it said.

The answer itself is that of the flag set; the steps are walked again beside it, by the same operators, one rule at a
time. For a person at a desk, not for a request.
"""

from __future__ import annotations

import json

import msgspec

from fairlead.flags.attribute import EvaluationContext, arguments
from fairlead.flags.comparison import truthy
from fairlead.flags.evaluate import Evaluation
from fairlead.flags.flag import KILLED, OVERRIDES, Flag, FlagValue, Place
from fairlead.flags.flag_set import FlagSet
from fairlead.flags.rule import Rules
from fairlead.flags.slots import Slots

__all__ = ["Explanation", "Step", "explain"]

_LONGEST = 200


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that was asked."""

    depth: int
    """How deep in the targeting it stands, from 0."""
    rule: str
    """As the document has it, short."""
    said: str
    """What it read and what came of it, for a person."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and how it came about."""

    flag: str
    evaluation: Evaluation
    steps: tuple[Step, ...]


def explain(flags: FlagSet, name: str, context: EvaluationContext, default: FlagValue = None) -> Explanation:
    """The evaluation of a flag with the rules that led to it, in the order in which they were asked. Never raises.

    Exposures are not reported.
    """
    quiet = flags.without_exposures()
    evaluation = quiet.evaluate(name, context, default)
    return Explanation(flag=name, evaluation=evaluation, steps=_Walk(quiet, context).of(name))


class _Walk:
    """The steps of one evaluation, collected on the way."""

    def __init__(self, flags: FlagSet, context: EvaluationContext) -> None:
        self._flags = flags
        self._context = context
        self._rules = Rules(lambda name: lambda asked: flags.evaluate(name, asked).variant)
        self._steps: list[Step] = []

    def of(self, name: str) -> tuple[Step, ...]:
        try:
            self._flag(name)
        except Exception as error:  # the context is the caller's: its objects may do anything when read
            self._add(0, "…", f"{type(error).__name__} while it was read")
        return tuple(self._steps)

    def _flag(self, name: str) -> None:
        flag = self._flags.document.flags.get(name)
        if flag is None:
            self._add(0, name, "there is no such flag: the caller's default")
        elif flag.killed:
            whose = "the document's" if self._flags.document.killed else "the flag's"
            self._add(0, KILLED, f"{whose} kill switch is thrown: the caller's default")
        elif name in self._flags.overrides:
            self._add(0, "override", f"this process forces {self._flags.overrides[name]!r}")
        elif not flag.enabled:
            self._add(0, '"state": "DISABLED"', "switched off: the caller's default")
        else:
            self._targeting(flag)

    def _add(self, depth: int, rule: object, said: str) -> None:
        self._steps.append(Step(depth=depth, rule=rule if isinstance(rule, str) else _short(rule), said=said))

    def _targeting(self, flag: Flag) -> None:
        if flag.override_rule is not None:
            shared = flag.metadata[OVERRIDES]
            self._add(0, f"{OVERRIDES} {shared}", "asked before the targeting")
            if self._result(flag.override_rule, 1, "nobody is overridden: on to the targeting"):
                return
        if flag.targeting is None:
            self._add(0, "defaultVariant", "there is no targeting")
        else:
            self._result(flag.targeting, 0, "the default variant")

    def _result(self, node: object, depth: int, null: str) -> bool:
        """The steps of a rule in the place of a result; whether it yields anything but null."""
        if not isinstance(node, dict):
            self._add(depth, json.dumps(node), null if node is None else f"names {node!r}")
            return node is not None
        ((name, argument),) = node.items()
        if name == "if":
            given = arguments(argument, _PLACE, 2)
            for index in range(0, len(given) - 1, 2):
                if self._test(given[index], depth):
                    return self._result(given[index + 1], depth + 1, null)
            self._add(depth, "else", "no condition held")
            return self._result(given[-1] if len(given) % 2 else None, depth + 1, null)
        if name == "bucket":
            self._draw(Slots(argument, _PLACE), node, depth)
            return True
        self._test(node, depth)
        return self._value(node) is not None

    def _draw(self, slots: Slots, node: object, depth: int) -> None:
        self._add(depth, node, self._drawn(slots))
        slot = slots.slot(self._context)
        found = slots.index(slot) if slot >= 0 else -1
        owner = slots.owners[found] if found >= 0 else None
        if isinstance(owner, Slots):
            self._draw(owner, f"bucket by {owner.by} with salt {owner.draw[1]!r}", depth + 1)

    def _test(self, node: object, depth: int) -> bool:
        """The steps of a condition, outermost first; whether it holds."""
        value = self._value(node)
        holds = truthy(value)
        here = len(self._steps)
        reads = ""
        if isinstance(node, dict):
            ((name, argument),) = node.items()
            given = argument if isinstance(argument, list) else [argument]
            if name in ("and", "or", "!"):
                for item in given:
                    held = self._test(item, depth + 1)
                    if held is (name == "or"):
                        break  # what comes after it was not asked
            elif name == "bucket":
                reads = self._drawn(Slots(argument, _PLACE))
            elif name == "variant_of":
                reads = self._asked(given[0])
            elif name not in ("if", "var"):
                reads = ", ".join(self._read(item) for item in given)
        shown = "holds" if holds else "does not hold"
        if reads:
            shown = f"{shown}: {reads}"
        elif not isinstance(value, bool):
            shown = f"{shown}: {_short(value)}"
        self._steps.insert(here, Step(depth=depth, rule=_short(node), said=shown))
        return holds

    def _read(self, node: object) -> str:
        if isinstance(node, dict) and "variant_of" in node:
            argument = node["variant_of"]
            return self._asked(argument[0] if isinstance(argument, list) else argument)
        return _short(self._value(node))

    def _asked(self, name: str) -> str:
        """What another flag serves, and why."""
        found = self._flags.evaluate(name, self._context)
        served = "the caller's default" if found.variant is None else repr(found.variant)
        return f"flag {name!r} serves {served} ({found.reason})"

    def _drawn(self, slots: Slots) -> str:
        """Whose slot was drawn, and who owns it."""
        slot = slots.slot(self._context)
        if slot < 0:
            return f"the context has no {slots.by}, so no bucket was drawn"
        key, found = _short(slots.read(self._context)), slots.index(slot)
        drawn = f"{slots.by} {key} has slot {slot} of {slots.count}"
        if found < 0:
            return f"{drawn}, which nobody owns"
        owner = slots.owners[found]
        whose = repr(owner) if isinstance(owner, str) else "another draw"
        return f"{drawn}, in [{slots.starts[found]}, {slots.ends[found]}) of {whose}"

    def _value(self, node: object) -> object:
        try:
            return self._rules.value(node, _PLACE)(self._context)
        except Exception as error:  # the context's objects may do anything when compared, as in an evaluation
            return f"<{type(error).__name__}>"


def _short(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # a key that JSON has not, an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


_PLACE = Place("the document")
"""Of a document that was read already: nothing in it is refused any more."""
