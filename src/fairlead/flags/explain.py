"""Why did this user get this? Every rule that was asked, what it read, and what it said.

The answer itself is that of the flag set; the steps are walked again beside it, by the same operators, one rule at a
time. For a person at a desk, not for a request.
"""

from __future__ import annotations

import json

import msgspec

from fairlead.flags.evaluate import Evaluation
from fairlead.flags.flag import FlagValue, Place
from fairlead.flags.flag_set import FlagSet
from fairlead.flags.rule import EvaluationContext, Slots, arguments, compile_value, truthy

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
    steps: list[Step] = []
    flag = quiet.document.flags.get(name)
    if flag is None:
        steps.append(Step(depth=0, rule=name, said="there is no such flag: the caller's default"))
    elif name in quiet.overrides:
        steps.append(Step(depth=0, rule="override", said=f"this process forces {quiet.overrides[name]!r}"))
    elif not flag.enabled:
        steps.append(Step(depth=0, rule='"state": "DISABLED"', said="switched off: the caller's default"))
    elif flag.targeting is None:
        steps.append(Step(depth=0, rule="defaultVariant", said="there is no targeting"))
    else:
        _walk(flag.targeting, context, 0, steps)
    return Explanation(flag=name, evaluation=evaluation, steps=tuple(steps))


def _walk(node: object, context: EvaluationContext, depth: int, steps: list[Step]) -> None:
    """The steps of a rule in the place of a result."""
    if not isinstance(node, dict):
        said = "the default variant" if node is None else f"names {node!r}"
        steps.append(Step(depth=depth, rule=_short(node), said=said))
        return
    ((name, argument),) = node.items()
    if name == "if":
        given = arguments(argument, _PLACE, 2)
        for index in range(0, len(given) - 1, 2):
            if _test(given[index], context, depth, steps):
                _walk(given[index + 1], context, depth + 1, steps)
                return
        last = given[-1] if len(given) % 2 else None
        steps.append(Step(depth=depth, rule="else", said="no condition held"))
        _walk(last, context, depth + 1, steps)
    elif name == "bucket":
        steps.append(Step(depth=depth, rule=_short(node), said=_draw(argument, context)))
    else:
        _test(node, context, depth, steps)


def _test(node: object, context: EvaluationContext, depth: int, steps: list[Step]) -> bool:
    """The steps of a condition, outermost first; whether it holds."""
    value = _value(node, context)
    holds = truthy(value)
    here = len(steps)
    reads = ""
    if isinstance(node, dict):
        ((name, argument),) = node.items()
        given = argument if isinstance(argument, list) else [argument]
        if name in ("and", "or", "!"):
            for item in given:
                held = _test(item, context, depth + 1, steps)
                if held is (name == "or"):
                    break  # what comes after it was not asked
        elif name == "bucket":
            reads = _draw(argument, context)
        elif name not in ("if", "var"):
            reads = ", ".join(_short(_value(item, context)) for item in given)
    shown = "holds" if holds else "does not hold"
    said = (
        f"{shown}: {reads}"
        if reads
        else f"{shown}: {_short(value)}"
        if not isinstance(value, bool)
        else shown
    )
    steps.insert(here, Step(depth=depth, rule=_short(node), said=said))
    return holds


def _draw(argument: object, context: EvaluationContext) -> str:
    """Whose slot was drawn, and who owns it."""
    slots = Slots(argument, _PLACE)
    key = slots.key(context)
    if not key:
        return f"the context has no {slots.by}, so no bucket was drawn"
    slot, found = slots.slot(key), slots.index(key)
    if found < 0:
        return f"{slots.by} {key[:80]!r} has slot {slot}, which nobody owns"
    return (
        f"{slots.by} {key[:80]!r} has slot {slot}, in [{slots.starts[found]}, {slots.ends[found]}) of "
        f"{slots.labels[found]!r}"
    )


def _value(node: object, context: EvaluationContext) -> object:
    try:
        return compile_value(node, _PLACE)(context)
    except Exception as error:  # the context's objects may do anything when compared, as in an evaluation
        return f"<{type(error).__name__}>"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


_PLACE = Place("the document")
"""Of a document that was read already: nothing in it is refused any more."""
