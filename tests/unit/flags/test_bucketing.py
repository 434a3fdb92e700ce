from __future__ import annotations

import pytest
import xxhash

from fairlead.errors import InvalidInput
from fairlead.flags import SLOTS, bucket


def test_the_hash_is_the_published_xxh32() -> None:
    # the test vectors of the xxHash specification, seed 0
    assert xxhash.xxh32_intdigest(b"") == 0x02CC5D05
    assert xxhash.xxh32_intdigest(b"a") == 0x550D7456


@pytest.mark.parametrize(
    ("salt", "key", "slot"),
    [
        ("feed", "user-1", 7214),
        ("feed", "user-2", 7886),
        ("feed", "üser", 6417),
        ("checkout.2026-03", "42", 2368),
        ("a", "", 6317),
    ],
)
def test_slots_are_pinned_for_ever(salt: str, key: str, slot: int) -> None:
    assert bucket(salt, key) == slot
    # the layout as the docs state it, spelt out
    assert xxhash.xxh32_intdigest(f"{salt}:{key}".encode()) % SLOTS == slot


def test_the_salt_ends_where_it_ends() -> None:
    assert bucket("ab", "c") != bucket("a", "bc")


def test_slots_are_even_over_half_a_million_units() -> None:
    # chi-square over 100 ranges of 100 slots: 99 degrees of freedom, 99.9 % quantile 148.2 (printed tables)
    counts = [0] * 100
    for number in range(500_000):
        counts[bucket("even", str(number)) // 100] += 1
    expected = 500_000 / 100
    assert sum((count - expected) ** 2 / expected for count in counts) < 148.2


def test_two_salts_split_the_same_units_independently() -> None:
    # chi-square of a 2 x 2 table: 1 degree of freedom, 99.9 % quantile 10.83
    both = sum(bucket("one", str(n)) < 5000 and bucket("two", str(n)) < 5000 for n in range(40_000))
    first = sum(bucket("one", str(n)) < 5000 for n in range(40_000))
    second = sum(bucket("two", str(n)) < 5000 for n in range(40_000))
    expected = first * second / 40_000
    table = [
        (both, expected),
        (first - both, first - expected),
        (second - both, second - expected),
        (40_000 - first - second + both, 40_000 - first - second + expected),
    ]
    assert sum((seen - wanted) ** 2 / wanted for seen, wanted in table) < 10.83


@pytest.mark.parametrize("salt", ["", "a:b", "a b", "ü", "a\n", "x" * 65, None, 3, "a/b"])
def test_a_salt_outside_the_layout_is_refused(salt: object) -> None:
    with pytest.raises(InvalidInput, match="salt"):
        bucket(salt, "user")  # type: ignore[arg-type]  # hostile on purpose


def test_a_key_that_is_not_text_in_any_encoding_still_has_a_slot() -> None:
    assert 0 <= bucket("feed", "\ud800") < SLOTS
