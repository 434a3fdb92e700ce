"""The published vectors of MurmurHash3 x86 32, and the same hash from any place in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.flags.murmur3 import Murmur3

VECTORS = [
    (b"", 0, 0x00000000),
    (b"", 1, 0x514E28B7),
    (b"", 0xFFFFFFFF, 0x81F16F39),
    (b"\x00\x00\x00\x00", 0, 0x2362F9DE),
    (b"\xff\xff\xff\xff", 0, 0x76293B50),
    (b"!Ce\x87", 0, 0xF55B516B),
    (b"!Ce", 0, 0x7E4A8634),
    (b"!C", 0, 0xA0F7B07A),
    (b"!", 0, 0x72661CF4),
    (b"aaaa", 0x9747B28C, 0x5A97808A),
    (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    ("ππππππππ".encode(), 0x9747B28C, 0xD58063C1),
    (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    # flagd's own: keys found by search whose hashes lie at the edges of the range.
    (b"ejOoVL", 0, 0),
    (b"bY9fO-", 0, 1),
    (b"SI7p-", 0, 0x7FFFFFFF),
    (b"6LvT0", 0, 0x80000000),
    (b"ceQdGm", 0, 0xFFFFFFFF),
]


@pytest.mark.parametrize(("data", "seed", "digest"), VECTORS, ids=range(len(VECTORS)))
def test_the_hash_is_the_published_one(data: bytes, seed: int, digest: int) -> None:
    assert Murmur3(seed=seed)(data) == digest


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_beginning_that_was_hashed_before_gives_the_same_hash(start: bytes, end: bytes) -> None:
    assert Murmur3(start)(end) == Murmur3()(start + end)
