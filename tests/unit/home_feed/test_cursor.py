"""Cursors: what was made is read, and nothing else."""

from __future__ import annotations

import base64

import pytest

from fairlead.errors import InvalidInput
from fairlead_systems.home_feed.cursor import MOST_SHOWN, decode_cursor, encode_cursor


@pytest.mark.parametrize("count", [1, 12, MOST_SHOWN - 1])
def test_cursor_names_what_was_shown(count: int):
    shown = tuple(range(0, 2 * count, 2))
    text = encode_cursor("u7", shown)
    assert text is not None
    assert len(text) <= 336
    assert decode_cursor("u7", text) == shown


def test_feed_ends_at_its_bound():
    assert encode_cursor("u7", range(MOST_SHOWN)) is None
    assert encode_cursor("u7", ()) is None


def _made(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


GOOD = encode_cursor("u7", (1, 2, 3)) or ""
RAW = base64.urlsafe_b64decode(GOOD + "=" * (-len(GOOD) % 4))


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "x",
        "====",
        "not base64!",
        "ünïcode",
        "\x00\n",
        "A" * 10_000,
        GOOD[:-2],
        GOOD + "AAAA",
        _made(b""),
        _made(RAW[:9]),
        _made(b"\x02" + RAW[1:]),
        _made(RAW[:-1] + b"\xff"),
        _made(RAW[:9] + RAW[9:] * 100),
    ],
)
def test_hostile_cursor_is_refused_with_one_error(hostile: str):
    with pytest.raises(InvalidInput, match=r"cursor: .* ask for the first page without one") as caught:
        decode_cursor("u7", hostile)
    assert len(str(caught.value)) < 200


def test_cursor_of_another_user_is_refused():
    with pytest.raises(InvalidInput, match="cursor"):
        decode_cursor("u8", GOOD)


@pytest.mark.parametrize("shown", [(1, 1), (1, 60_000)])
def test_cursor_that_names_an_item_twice_or_one_that_cannot_be_is_refused(shown: tuple[int, ...]):
    text = encode_cursor("u7", shown)
    assert text is not None
    with pytest.raises(InvalidInput, match="cursor"):
        decode_cursor("u7", text)
