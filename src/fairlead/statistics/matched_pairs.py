"""Two yes-or-no answers about each of many requests: does treatment say yes more often than control?

A candidate's answers are compared with control's, and control's second answers as well: of each request it is known
whether the one differs and whether the other does. The requests in which both or neither differ say nothing about which
of the two differs more. The rest, the discordant ones, fall to either side like a fair coin if there is no difference.

Asked of every field of an answer at once, one in twenty would be found to differ at 5 % though none does, so the
p-values are adjusted over the fields.

    fixed sample      one look, after a number of requests that was chosen beforehand: exact binomial
    at any look       while requests come in: an e-value, which needs more requests and may be looked at always
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import special

from fairlead.errors import InvalidInput
from fairlead.statistics.multiplicity import holm
from fairlead.statistics.sequential_counts import log_e_value, tuned_strength
from fairlead.statistics.tails import LEAST, is_number

__all__ = ["DiscordantPairs", "discordant_pairs"]

_LARGEST = 700.0
_STRENGTH = tuned_strength(50)
"""Most sensitive at fifty discordant requests: a difference that matters shows in fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscordantPairs:
    """Whether treatment says yes more often than control to one question, asked among others."""

    only_control: int
    """Requests in which control said yes, and treatment no."""
    only_treatment: int
    p_value: float
    """One-sided, of this question alone; above 0."""
    adjusted_p_value: float
    """Over all questions, to be compared with alpha."""
    verdict: Literal["more", "not shown", "too few"]
    """more: treatment says yes more often. not shown: chance would do it; that is no proof of equality. too few: even
    if every discordant request were treatment's, chance would do it."""


def discordant_pairs(
    counts: Mapping[str, tuple[int, int]], *, alpha: float = 0.05, family: int | None = None
) -> dict[str, DiscordantPairs]:
    """For each question, whether treatment says yes more often than control on the same requests.

    counts: by question, in how many requests (only control, only treatment) said yes; independent requests. alpha: the
    chance of even one false "more" among all questions is at most this. family: None for one look. A number makes the
    answer hold at any look: the most questions that there will ever be, those without a discordant request included,
    fixed beforehand. Raises InvalidInput.

    Source: McNemar, Psychometrika 12, 1947, in its exact conditional form; adjusted by Holm 1979. Questions with so few
    discordant requests that they could not reach alpha do not count as asked: the test is conditional on their number,
    as in Tarone, Biometrics 46, 1990. The mid-p form that Fagerland, Lydersen and Laake recommend (BMC Medical Research
    Methodology 13:91, 2013) gains a request or so, and does not guarantee alpha. At any look: the beta-binomial e-value
    of `sequential_counts`.

    >>> found = discordant_pairs({"body.price": (0, 9), "body.at": (14, 11), "body.id": (0, 1)})
    >>> {field: (each.verdict, round(each.adjusted_p_value, 4)) for field, each in found.items()}  # 2 · 1/2⁹
    {'body.price': ('more', 0.0039), 'body.at': ('not shown', 0.7878), 'body.id': ('too few', 1.0)}
    """
    if not is_number(alpha) or not 0 < alpha < 1:
        raise InvalidInput(f"alpha {alpha!r} is not a number between 0 and 1, both excluded")
    for name, pair in counts.items():
        if len(pair) != 2 or any(
            isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in pair
        ):
            raise InvalidInput(f"{name}: {pair!r} are not two counts; pass (only control, only treatment)")
    if family is not None and (
        isinstance(family, bool) or not isinstance(family, int) or not len(counts) <= family <= 1_000_000
    ):
        raise InvalidInput(
            f"family {family!r}: pass a whole number, no less than the {len(counts)} questions"
        )
    if family is None:
        p_values = {name: _exact(*pair) for name, pair in counts.items()}
        asked = [name for name, pair in counts.items() if _exact(0, sum(pair)) <= alpha]
        silent = 0
    else:
        p_values = {name: _watched(*pair) for name, pair in counts.items()}
        asked = list(counts)
        silent = family - len(asked)
    adjusted = dict(zip(asked, holm([*(p_values[name] for name in asked), *([1.0] * silent)]), strict=False))
    found = {}
    for name, (only_control, only_treatment) in counts.items():
        p = adjusted.get(name, 1.0)
        verdict: Literal["more", "not shown", "too few"] = "more" if p <= alpha else "not shown"
        if name not in adjusted:
            verdict = "too few"
        found[name] = DiscordantPairs(
            only_control=only_control,
            only_treatment=only_treatment,
            p_value=p_values[name],
            adjusted_p_value=p,
            verdict=verdict,
        )
    return found


def _exact(only_control: int, only_treatment: int) -> float:
    """P(B >= only_treatment), B binomial of n = both together and one half."""
    if not only_treatment:
        return 1.0
    return max(LEAST, float(special.betainc(only_treatment, only_control + 1, 0.5)))


def _watched(only_control: int, only_treatment: int) -> float:
    """1 / e against a share of one half or less, at most 1: valid at any look."""
    log_e = log_e_value(only_treatment, only_control + only_treatment, 0.5, _STRENGTH, "greater")
    return min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e)))))
