"""MurmurHash3, 32 bits, for flags that were drawn by flagd and must stay with whom they have.

Written here because a request may import only the standard library, msgspec and xxhash; new flags use xxhash, which is
some ten times faster. The hash of a fixed beginning is kept, so that a salt is hashed once and not per request.

Source: Austin Appleby, MurmurHash3_x86_32 (smhasher, public domain).
"""

from __future__ import annotations

import struct

__all__ = ["Murmur3"]

_MASK = 0xFFFFFFFF
_FIRST, _SECOND = 0xCC9E2D51, 0x1B873593


def _scrambled(block: int) -> int:
    block = block * _FIRST & _MASK
    block = (block << 15 | block >> 17) & _MASK
    return block * _SECOND & _MASK


class Murmur3:
    """The hash of everything that begins with `prefix`.

    >>> Murmur3()(b""), Murmur3()(b"hello"), Murmur3(b"hel")(b"lo")
    (0, 613153351, 613153351)
    """

    __slots__ = ("_rest", "_size", "_state")

    def __init__(self, prefix: bytes = b"", *, seed: int = 0) -> None:
        whole = len(prefix) - len(prefix) % 4
        self._state = self._mixed(seed & _MASK, prefix[:whole])
        self._rest = prefix[whole:]
        self._size = whole

    def __call__(self, tail: bytes) -> int:
        """The hash of prefix and tail, 0 to 2**32 - 1."""
        data = self._rest + tail
        size = self._size + len(data)
        whole = len(data) - len(data) % 4
        state = self._mixed(self._state, data[:whole])
        if whole < len(data):
            state ^= _scrambled(int.from_bytes(data[whole:], "little"))
        state ^= size & _MASK
        state = (state ^ state >> 16) * 0x85EBCA6B & _MASK
        state = (state ^ state >> 13) * 0xC2B2AE35 & _MASK
        return state ^ state >> 16

    @staticmethod
    def _mixed(state: int, blocks: bytes) -> int:
        for (block,) in struct.iter_unpack("<I", blocks):
            state ^= _scrambled(block)
            state = (state << 13 | state >> 19) & _MASK
            state = (state * 5 + 0xE6546B64) & _MASK
        return state
