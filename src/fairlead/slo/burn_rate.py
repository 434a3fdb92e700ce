"""Alerts on how fast the budget burns, over a long window and a short one at once.

A threshold on the error ratio wakes people for a blip and sleeps through a leak. A burn rate of 1 spends the budget
exactly in its period; an alert fires when a share of the budget that is worth waking somebody went within its long
window, and the short window says that it is still going: so it ends within minutes after the trouble does.

    spent       in       burn rate   and over    for
    2 %         1 h      14.4        5 min       page
    5 %         6 h      6           30 min      page
    10 %        1 d      3           2 h         ticket
    10 %        3 d      1           6 h         ticket

For 30 days. Other periods keep the shares and have their windows scaled. Source: Beyer et al., The Site Reliability
Workbook, 2018, chapter 5, "Alerting on SLOs" (read: the table of recommended parameters, and the multiwindow
expressions).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fairlead.errors import InvalidInput
from fairlead.slo.objective import Objective

__all__ = ["BurnRateAlert", "BurnRateMonitor", "alerts_of"]

Severity = Literal["page", "ticket"]
_DAY = 86400
_USUAL = 30 * _DAY
_TABLE: tuple[tuple[Severity, Fraction, int, int], ...] = (
    ("page", Fraction(2, 100), 3600, 300),
    ("page", Fraction(5, 100), 6 * 3600, 1800),
    ("ticket", Fraction(10, 100), _DAY, 2 * 3600),
    ("ticket", Fraction(10, 100), 3 * _DAY, 6 * 3600),
)
_ALMOST_ALL = Fraction(9, 10)
_SHORTEST = 60
"""Seconds: below it a scrape of every 15 s has too few points for a rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BurnRateAlert:
    """One row of the table."""

    severity: Severity
    long_seconds: int
    short_seconds: int
    burn_rate: Fraction
    """How many times too fast; exact."""
    budget_share: Fraction
    """Of the period's budget that is gone when it fires after a steady burn."""


def alerts_of(objective: Objective) -> tuple[BurnRateAlert, ...]:
    """The alerts for the objective's period: windows scaled by it, to whole minutes, shares of the budget kept.

    >>> from decimal import Decimal
    >>> from fairlead.slo.objective import RollingPeriod
    >>> feed = Objective(name="feed", title="Feed", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * 86400.0),
    ...                  event="request_finished", good="status < 500", owner="feed", runbook="https://runbooks/feed")
    >>> [(float(one.burn_rate), one.long_seconds // 60, one.short_seconds // 60) for one in alerts_of(feed)]
    [(14.4, 60, 5), (6.0, 360, 30), (3.0, 1440, 120), (1.0, 4320, 360)]
    """
    period = Fraction(objective.period.nominal_seconds)
    alerts: list[BurnRateAlert] = []
    for severity, share, long, short in _TABLE:
        windows = [max(_SHORTEST, round(period * seconds / _USUAL / 60) * 60) for seconds in (long, short)]
        long_seconds, short_seconds = max(windows), min(windows)
        # A loose target has a burn rate that a full outage does not reach; nine tenths of that is loud enough.
        burn_rate = min(share * period / long_seconds, _ALMOST_ALL / Fraction(objective.budget))
        share = burn_rate * long_seconds / period
        if burn_rate < 1 or any(one.burn_rate <= burn_rate for one in alerts):
            continue  # rounded so far that it would fire within the budget, or be no slower than one before it
        alerts.append(
            BurnRateAlert(
                severity=severity,
                long_seconds=long_seconds,
                short_seconds=short_seconds,
                burn_rate=burn_rate,
                budget_share=share,
            )
        )
    return tuple(alerts)


class BurnRateMonitor:
    """Evaluates an objective's alerts over counted events, on whatever clock the counts come with.

    Keeps what its longest window needs. Not to be shared between threads.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.alerts = alerts_of(objective)
        self._at: list[float] = []
        self._valid: list[float] = [0.0]
        self._bad: list[float] = [0.0]
        self._firing: set[BurnRateAlert] = set()

    def observe(self, at: float, valid: float, bad: float) -> tuple[BurnRateAlert, ...]:
        """Counts the events since the last call, at a moment in seconds; returns the alerts that begin to fire.

        Raises InvalidInput for a moment before the last one, or counts that are none.
        """
        if not math.isfinite(at) or (self._at and not at > self._at[-1]):
            raise InvalidInput(
                f"{self.objective.name}: {at!r} is no moment after {self._at[-1:]!r}; events go forward in time"
            )
        if not 0 <= bad <= valid < float("inf"):
            raise InvalidInput(f"{self.objective.name}: {bad!r} bad of {valid!r} valid events are no counts")
        self._at.append(at)
        self._valid.append(self._valid[-1] + valid)
        self._bad.append(self._bad[-1] + bad)
        began = []
        for alert in self.alerts:
            if self._burns(alert, at):
                if alert not in self._firing:
                    self._firing.add(alert)
                    began.append(alert)
            else:
                self._firing.discard(alert)
        self._forget(at)
        return tuple(began)

    @property
    def firing(self) -> frozenset[BurnRateAlert]:
        """The alerts that fire now."""
        return frozenset(self._firing)

    def burn_rate(self, seconds: float) -> float | None:
        """How many times too fast the budget burned over the last so many seconds; None without events."""
        if not self._at:
            return None
        valid, bad = self._since(self._at[-1] - seconds)
        return bad / valid / float(self.objective.budget) if valid else None

    def _burns(self, alert: BurnRateAlert, at: float) -> bool:
        # Without events there is no burn: 0/0 is neither a breach nor a success.
        threshold = float(alert.burn_rate * Fraction(self.objective.budget))
        for seconds in (alert.long_seconds, alert.short_seconds):
            valid, bad = self._since(at - seconds)
            if not valid or not bad / valid > threshold:
                return False
            if seconds == alert.long_seconds and valid < self.objective.minimum_events:
                return False
        return True

    def _since(self, moment: float) -> tuple[float, float]:
        """Valid and bad events counted after a moment."""
        index = bisect_left(self._at, moment)
        # What was counted at exactly that moment belongs to the time before it.
        if index < len(self._at) and self._at[index] == moment:
            index += 1
        return self._valid[-1] - self._valid[index], self._bad[-1] - self._bad[index]

    def _forget(self, at: float) -> None:
        longest = max((alert.long_seconds for alert in self.alerts), default=0)
        keep = bisect_left(self._at, at - longest)
        if keep > 4096 and keep > len(self._at) // 2:
            del self._at[:keep], self._valid[:keep], self._bad[:keep]


def severities(alerts: Iterable[BurnRateAlert]) -> set[Severity]:
    """Which severities are among them."""
    return {alert.severity for alert in alerts}
