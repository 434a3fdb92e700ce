"""What a user was shown of late."""

from __future__ import annotations

from fairlead.clock import ManualClock
from fairlead_systems.home_feed.seen import FORGOTTEN_AFTER, PER_USER, Seen


def test_items_are_remembered_per_user_oldest_first():
    seen = Seen(clock=ManualClock(now=10.0))
    seen.add("a", [1, 2])
    seen.add("a", [3, 1])
    seen.add("b", [9])
    assert (seen.of("a"), seen.of("b"), seen.of("c")) == ([2, 3, 1], [9], [])


def test_only_the_last_items_are_remembered():
    seen = Seen(clock=ManualClock(now=10.0))
    seen.add("a", range(PER_USER + 10))
    assert seen.of("a") == list(range(10, PER_USER + 10))


def test_items_are_forgotten_in_time():
    clock = ManualClock(now=10.0)
    seen = Seen(clock=clock)
    seen.add("a", [1])
    clock.advance(FORGOTTEN_AFTER)
    assert seen.of("a") == []


def test_user_who_was_not_served_for_longest_is_forgotten_first():
    seen = Seen(most_users=2, clock=ManualClock(now=10.0))
    for user in ("a", "b", "a", "c"):
        seen.add(user, [1])
    assert [bool(seen.of(user)) for user in ("a", "b", "c")] == [True, False, True]
