"""Whether a choice among the options was one: several of them, each with a reason, weighed by what is named."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from fairlead.change.finding import Raw
from fairlead.change.scorecard import Scorecard, scorecard
from fairlead.change.sections import ALWAYS, CRITERIA, ChangeFile
from fairlead.errors import InvalidInput

__all__ = ["choice"]


def choice(file: ChangeFile) -> Iterator[Raw]:
    """Findings about `[[options]]` and `[weights]`."""
    options = file.options
    if len(options) < 2:
        yield (
            "option", "error", "options",
            f"{len(options)} option{'' if len(options) == 1 else 's'}: give 2 to 4, doing nothing or adopting what "
            "exists among them",
        )  # fmt: skip
    elif len(options) > 4:
        yield (
            "option",
            "warning",
            "options",
            f"{len(options)} options: more than 4 are rarely weighed, only listed",
        )
    if len({option.name for option in options}) < len(options):
        yield "option", "error", "options", "two options have one name"
        return
    chosen = [option for option in options if option.chosen]
    if options and len(chosen) != 1:
        yield (
            "option", "error", "options",
            f"{len(chosen) or 'no'} options are chosen: mark exactly one with chosen = true",
        )  # fmt: skip
    for index, option in enumerate(options):
        at = f"options[{index}]"
        if not option.because:
            what = "chosen" if option.chosen else "rejected"
            yield "option", "error", f"{at}.because", f"{option.name} is {what} without a reason: add because"
        if option.chosen and not option.accepting:
            yield (
                "option",
                "error",
                f"{at}.accepting",
                f"{option.name}: every choice costs something: add accepting",
            )
        if option.chosen and option.accepting and not option.mitigation:
            yield "option", "warning", f"{at}.mitigation", f"{option.name}: say what softens what you accept"
    yield from _criteria(file)
    if not any(option.scores for option in options):
        if options:
            yield "missing", "warning", "options", f"no scores: weigh the options by {', '.join(ALWAYS)}"
        return
    try:
        card = scorecard(options, file.weights)
    except InvalidInput as error:
        yield "option", "error", "options", str(error)
    else:
        yield from _scored(card, file)


def _criteria(file: ChangeFile) -> Iterator[Raw]:
    """A misspelt criterion would be a new one, and its weight nobody's."""
    for name in dict.fromkeys(name for option in file.options for name in option.scores):
        if name not in CRITERIA:
            close = difflib.get_close_matches(name, CRITERIA, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(CRITERIA)}"
            yield "option", "error", "options", f"scores: {name} is no criterion; {hint}"
    for name in file.weights:
        if not any(name in option.scores for option in file.options):
            yield "option", "error", f"weights.{name}", f"a weight for {name}, by which no option is scored"


def _scored(card: Scorecard, file: ChangeFile) -> Iterator[Raw]:
    chosen = file.chosen()
    if chosen is not None and card.totals[chosen.name] < card.totals[card.winner] - 1e-9:
        index = file.options.index(chosen)
        yield (
            "option", "warning", f"options[{index}]",
            f"{chosen.name} is chosen with {card.totals[chosen.name]:.2f}, "
            f"{card.winner} has {card.totals[card.winner]:.2f}: "
            "either a criterion is missing from the scores, or because must say why the scores do not decide",
        )  # fmt: skip
    if missing := [name for name in ALWAYS if name not in card.criteria]:
        yield "missing", "warning", "options", f"no option is scored by {', '.join(missing)}"
