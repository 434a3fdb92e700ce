"""Who there is and what is configured, made from a seed: the same for the one table and for the three services.

Six users in ten are in a segment, one in twenty has settings of his own; of the rest, the table says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from fairlead_systems.remote_config.schema import SEGMENT
from fairlead_systems.remote_config.table import Change

__all__ = ["SEGMENTS", "USERS", "World"]

USERS = 5_000
SEGMENTS = ("newcomers", "casual", "power", "creators", "business", "family", "trial", "staff")
_IN_A_SEGMENT = 0.6
_WITH_OWN = 0.05

_EVERYBODY: dict[str, object] = {
    "checkout.label": "Pay now",
    "banner": {"text": "Delivery takes a day longer this week.", "level": "info"},
    "search.suggestions": 6,
}


class World:
    """Segments, users and their settings; a function of the seed."""

    def __init__(self, seed: int, users: int = USERS) -> None:
        self._seed = seed
        self._users = users

    def everybody(self) -> dict[str, object]:
        return dict(_EVERYBODY)

    def segments(self) -> dict[str, dict[str, object]]:
        rng = random.Random(f"{self._seed}-segments")
        return {
            segment: {
                "feed.page_size": rng.choice((10, 30, 50)),
                "feed.layout": rng.choice(("list", "grid", "cards")),
                "checkout.express": rng.random() < 0.5,
                "trial.days": rng.choice((7, 30)),
            }
            for segment in SEGMENTS
        }

    def users(self) -> Iterator[tuple[str, str, dict[str, object]]]:
        """Each user of whom something is known: name, segment (perhaps none), own settings."""
        rng = random.Random(f"{self._seed}-users")
        for number in range(self._users):
            segment = rng.choice(SEGMENTS) if rng.random() < _IN_A_SEGMENT else ""
            own: dict[str, object] = {}
            if rng.random() < _WITH_OWN:
                own = {"theme": rng.choice(("light", "dark")), "feed.autoplay": rng.random() < 0.5}
            if segment or own:
                yield f"u{number}", segment, own

    def changes(self) -> Iterator[Change]:
        """All of it as entries of the one table."""
        for name, value in self.everybody().items():
            yield Change(layer="all", name=name, value=value)
        for segment, values in self.segments().items():
            for name, value in values.items():
                yield Change(layer="segment", subject=segment, name=name, value=value)
        for user, segment, own in self.users():
            if segment:
                yield Change(layer="user", subject=user, name=SEGMENT, value=segment)
            for name, value in own.items():
                yield Change(layer="user", subject=user, name=name, value=value)
