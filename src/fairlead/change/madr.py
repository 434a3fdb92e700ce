"""The choice among the options as a decision record in MADR 4, for teams that keep theirs so."""

from __future__ import annotations

import json
import re

from fairlead.change.scorecard import Scorecard, scorecard
from fairlead.change.sections import ChangeFile, OptionTable

__all__ = ["madr"]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|])")


def madr(file: ChangeFile) -> str:
    """Markdown: context, drivers, options, outcome, consequences, confirmation, and the scorecard.

    Source: the template of Markdown Architectural Decision Records 4.0.
    """
    change = file.change
    chosen = file.chosen()
    card = scorecard(file.options, file.weights) if any(option.scores for option in file.options) else None
    lines = [
        "---",
        f"status: {'accepted' if chosen else 'proposed'}",
        f"decision-makers: {json.dumps(' '.join(change.owner.split()), ensure_ascii=False)}",  # a YAML string, too
        "---",
        "",
        f"# {_text(change.title or change.name)}",
        "",
        "## Context and Problem Statement",
        "",
        _text(" ".join(filter(None, (change.problem, change.users, change.why_now)))),
        "",
    ]
    drivers = [*change.constraints, *(f"{each.name}: {each.cares_about}" for each in change.stakeholders)]
    lines += _bullets("## Decision Drivers", [change.goal, *drivers])
    lines += _bullets("## Considered Options", [option.name for option in file.options])
    if chosen:
        lines += [
            "## Decision Outcome",
            "",
            f'Chosen option: "{_text(chosen.name)}", because {_text(chosen.because)}',
            "",
        ]
        good = [f"of the hypothesis: {change.hypothesis}"] if change.hypothesis else []
        lines += ["### Consequences", "", *(f"- Good, because {_text(each)}" for each in good)]
        if chosen.accepting:
            softened = f"; mitigated by {_text(chosen.mitigation)}" if chosen.mitigation else ""
            lines += [f"- Bad, because we accept {_text(chosen.accepting)}{softened}"]
        lines += [""]
        confirmations = [
            f"{a.statement} Falsified by: {a.falsified_by}" for a in file.assumptions if a.falsified_by
        ]
        lines += _bullets("### Confirmation", confirmations)
    lines += ["## Pros and Cons of the Options", ""]
    for option in file.options:
        lines += _option(option, chosen)
    if card:
        lines += _card(card, file)
    return "\n".join(lines).rstrip() + "\n"


def _option(option: OptionTable, chosen: OptionTable | None) -> list[str]:
    lines = [f"### {_text(option.name)}", ""]
    if option.summary:
        lines += [_text(option.summary), ""]
    if option is not chosen and option.because:
        lines += [f"- Bad, because {_text(option.because)}"]
    for criterion, score in option.scores.items():
        word = "Good" if score > 3 else "Bad" if score < 3 else "Neutral"
        lines += [f"- {word}, because {criterion.replace('_', ' ')} is {score:g} of 5"]
    return [*lines, ""]


def _card(card: Scorecard, file: ChangeFile) -> list[str]:
    names = list(card.totals)
    scores = {option.name: option.scores for option in file.options}
    lines = [
        "## More Information",
        "",
        f"| criterion | weight | {' | '.join(map(_text, names))} |",
        f"|---|--:|{'--:|' * len(names)}",
    ]
    for criterion, weight in zip(card.criteria, card.weights, strict=True):
        cells = " | ".join(f"{scores[name][criterion]:g}" for name in names)
        lines += [f"| {criterion.replace('_', ' ')} | {weight:.0%} | {cells} |"]
    lines += [f"| **total** | | {' | '.join(f'{card.totals[name]:.2f}' for name in names)} |", ""]
    for flip in card.flips:
        lines += [
            f"- If {flip.criterion.replace('_', ' ')} weighed {flip.at:.0%} in place of {flip.now:.0%}, "
            f"{_text(flip.winner)} would win."
        ]
    return [*lines, ""]


def _bullets(title: str, items: list[str]) -> list[str]:
    kept = [f"- {_text(item)}" for item in items if item]
    return [title, "", *kept, ""] if kept else []


def _text(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
