"""Options beside each other: weighted totals, and which weight would turn the choice.

A scorecard can be made to say anything by its weights, so the weights are the first thing a reviewer doubts. The
sensitivity check answers before they ask: for each criterion, how far its weight would have to move, the others keeping
their proportions, until another option wins. If none turns it, the choice does not hang on the weights.

    total(option) = Σ weight · score, weights adding up to 1, scores from 1 (bad) to 5 (good)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.change.sections import OptionTable
from fairlead.errors import InvalidInput

__all__ = ["Flip", "Scorecard", "scorecard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """A weight at which another option wins."""

    criterion: str
    now: float
    """Its weight as it is, 0–1."""
    at: float
    """Its weight at which the winner changes, 0–1."""
    winner: str
    """Who wins beyond it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorecard:
    """The outcome of weighing the options."""

    criteria: tuple[str, ...]
    weights: tuple[float, ...]
    """Adding up to 1, in the order of the criteria."""
    totals: dict[str, float]
    """By option, 1–5, best first."""
    flips: tuple[Flip, ...]
    """The nearest weight up and down, of each criterion that can turn the choice."""

    @property
    def winner(self) -> str:
        """The option with the largest total; the first of the file among equals."""
        return next(iter(self.totals))


def scorecard(options: Sequence[OptionTable], weights: Mapping[str, float]) -> Scorecard:
    """Weighs the options by every criterion that any of them has a score for.

    Raises InvalidInput where an option lacks a score that another one has, a score is outside 1 to 5, or weights are
    negative or all zero.
    """
    criteria = tuple(dict.fromkeys(name for option in options for name in option.scores))
    if not options or not criteria:
        raise InvalidInput("scorecard: no option has scores; give each criterion 1 (bad) to 5 (good)")
    for option in options:
        for name in criteria:
            score = option.scores.get(name)
            if score is None:
                raise InvalidInput(f"option {option.name}: no score for {name}, which others have")
            if not 1 <= score <= 5:
                raise InvalidInput(
                    f"option {option.name}: {name} is {score:g}; scores run from 1 (bad) to 5 (good)"
                )
    raw = {name: float(weights.get(name, 1.0)) for name in criteria}
    if any(not 0 <= weight < 1e6 for weight in raw.values()) or sum(raw.values()) == 0:
        raise InvalidInput("weights: give numbers of 0 or more, not all of them 0")
    whole = sum(raw.values())
    shares = {name: weight / whole for name, weight in raw.items()}
    totals = {option.name: sum(shares[name] * option.scores[name] for name in criteria) for option in options}
    ranked = dict(sorted(totals.items(), key=lambda item: -round(item[1], 9)))
    winner = next(iter(ranked))
    flips: list[Flip] = []
    for name in criteria:
        flips += _flips(name, options, shares, winner)
    return Scorecard(criteria=criteria, weights=tuple(shares.values()), totals=ranked, flips=tuple(flips))


def _flips(
    criterion: str, options: Sequence[OptionTable], shares: Mapping[str, float], winner: str
) -> list[Flip]:
    """The nearest crossing below and above the present weight, others keeping their proportions.

    With weight t on the criterion, an option's total is the line t · score + (1 − t) · rest.
    """
    now = shares[criterion]
    others = 1 - now
    if others <= 0:
        return []
    lines = {
        option.name: (
            option.scores[criterion],
            sum(share * option.scores[name] for name, share in shares.items() if name != criterion) / others,
        )
        for option in options
    }
    score, rest = lines[winner]
    nearest: dict[bool, tuple[float, float, Flip]] = {}
    for name, (other_score, other_rest) in lines.items():
        slope = (other_score - other_rest) - (score - rest)  # of the other's lead over the winner
        if name == winner or slope == 0:
            continue
        at = (rest - other_rest) / slope
        at = now if abs(at - now) < 1e-9 else at  # a tie, but for rounding
        above = slope > 0  # the other leads beyond `at`, in the direction of its slope
        # At 0 or 1 themselves the two are equal, and there is no weight beyond at which the other wins.
        if not (now <= at < 1 - 1e-9 if above else 1e-9 < at <= now):
            continue
        # Of several that overtake at one weight, the steepest leads beyond it.
        rank = round(abs(at - now), 9), -abs(slope)
        if above not in nearest or rank < nearest[above][:2]:
            nearest[above] = *rank, Flip(criterion=criterion, now=now, at=at, winner=name)
    return [nearest[side][2] for side in (False, True) if side in nearest]
