"""What a p-value argues against.

"Is it different?" is one question of several. A guardrail asks whether treatment is worse by more than a
margin; a migration asks whether it is the same within one. All of them compare treatment with
ratio · control + difference, on one side or both, so every comparison takes one `Hypothesis`.

    question                    hypothesis                                                  a small p-value says
    different?                  Hypothesis()                                                it is
    not worse by 2 %?           not_worse(by=0.02, relative=True, better="higher")          it is not
    the same within ±2 %?       equivalence(…, margin=0.02, relative=True)                  it is

"No difference was found" is never "no difference": only the last row can say that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from fairlead.errors import InvalidInput
from fairlead.statistics.tails import is_number

if TYPE_CHECKING:
    from fairlead.statistics.effect import Effect

__all__ = ["Alternative", "Equivalence", "Hypothesis", "equivalence", "not_worse"]

Alternative = Literal["two_sided", "greater", "less"]
"""On which side treatment would contradict the hypothesis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """Treatment equals ratio · control + difference (or is on the other side of it, when one-sided)."""

    alternative: Alternative = "two_sided"
    """greater: a small p-value says that treatment lies above; less: below; two_sided: off it."""
    difference: float = 0.0
    """In the metric's unit. 0.0: none."""
    ratio: float = 1.0
    """Above 0. 1.0: none; 0.98 asks about 2 % less than control."""

    def __post_init__(self) -> None:
        if self.alternative not in get_args(Alternative):
            choices = ", ".join(get_args(Alternative))
            raise InvalidInput(f"alternative {str(self.alternative)[:40]!r}: choose one of {choices}")
        if not is_number(self.difference):
            raise InvalidInput(f"difference {self.difference!r} is not a finite number")
        if not is_number(self.ratio) or self.ratio <= 0:
            raise InvalidInput(f"ratio {self.ratio!r} is not a number above 0; 0.98 means 2 % less")
        if self.difference and self.ratio != 1:
            raise InvalidInput("a margin is relative or absolute: give ratio or difference, not both")


NO_DIFFERENCE = Hypothesis()


def not_worse(*, by: float, better: Literal["lower", "higher"], relative: bool = False) -> Hypothesis:
    """The hypothesis of a non-inferiority test: its small p-value says that treatment is not worse by `by`.

    by: the margin, 0 or more; in the metric's unit, or as a ratio (0.02: 2 %, below 1) when relative. 0 with
    a one-sided test asks for superiority. Raises InvalidInput.

    >>> not_worse(by=0.1, better="lower", relative=True)
    Hypothesis(alternative='less', difference=0.0, ratio=1.1)
    """
    _check_margin(by, relative, least=0.0)
    if better not in ("lower", "higher"):
        raise InvalidInput(f"better {str(better)[:40]!r}: lower or higher")
    sign = 1.0 if better == "lower" else -1.0
    side: Alternative = "less" if better == "lower" else "greater"
    if relative:
        return Hypothesis(alternative=side, ratio=1.0 + sign * by)
    return Hypothesis(alternative=side, difference=sign * by)


@dataclass(frozen=True, kw_only=True, slots=True)
class Equivalence:
    """The two one-sided tests behind "the same, within the margin"."""

    p_value: float
    """The larger of both: small says that treatment lies within the margin on either side."""
    above_lower: Effect
    """The test against control less the margin."""
    below_upper: Effect
    """The test against control and the margin."""


def equivalence(
    compare: Callable[[Hypothesis], Effect], *, margin: float, relative: bool = False
) -> Equivalence:
    """Whether treatment equals control within ± `margin`, by two one-sided tests.

    compare: any comparison with its data, for example ``lambda h: mean_effect(c, t, "seconds", hypothesis=h)``.
    margin: above 0; in the metric's unit, or as a ratio below 1 when relative. At level alpha this is the same
    as the two-sided interval of confidence 1 − 2·alpha lying within the margin.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987 (two one-sided tests).

    >>> from fairlead.statistics import Moments, mean_effect
    >>> arm = Moments(columns=("y",), n=10_000, means=(10.0,), products=((9_999.0,),))
    >>> same = equivalence(lambda h: mean_effect(arm, arm, "y", hypothesis=h), margin=0.05)
    >>> round(same.p_value, 6)  # 0.05 lies 3.5355 standard errors, of 0.01·√2 each, away
    0.000204
    """
    _check_margin(margin, relative, least=0.0)
    if margin == 0:
        raise InvalidInput("margin 0: nothing can be shown to be exactly equal; say how much does not matter")
    if relative:
        lower, upper = (
            Hypothesis(alternative="greater", ratio=1 - margin),
            Hypothesis(alternative="less", ratio=1 + margin),
        )
    else:
        lower, upper = (
            Hypothesis(alternative="greater", difference=-margin),
            Hypothesis(alternative="less", difference=margin),
        )
    above, below = compare(lower), compare(upper)
    return Equivalence(p_value=max(above.p_value, below.p_value), above_lower=above, below_upper=below)


def _check_margin(margin: float, relative: bool, *, least: float) -> None:
    if not is_number(margin) or margin < least:
        raise InvalidInput(f"margin {margin!r} is not a number of {least:g} or more")
    if relative and margin >= 1:
        raise InvalidInput(f"margin {margin!r} is relative and not below 1; 0.02 means 2 %")
