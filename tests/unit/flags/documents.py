"""Flag documents for the tests of delivery."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any


def document(
    value: str = "slow", *, version: object = None, epoch: object = None, names: tuple[str, ...] = ("feed",)
) -> bytes:
    """One string flag by each name, which serves `value`."""
    metadata = {key: each for key, each in (("epoch", epoch), ("version", version)) if each is not None}
    flags: dict[str, Any] = {
        name: {"state": "ENABLED", "variants": {"a": value}, "defaultVariant": "a"} for name in names
    }
    return json.dumps({"metadata": metadata, "flags": flags}).encode()


BROKEN = b'{"flags": {"feed": {"state": "ENABLED", "variants": {"a": "slow"}, "defaultVariant": "b"}}}'
EMPTY = b'{"flags": {}}'


async def until(is_so: Callable[[], object]) -> None:
    """Lets threads and tasks run until it is so."""
    while not is_so():  # noqa: ASYNC110  # nothing says when; the test's own timeout ends it
        await asyncio.sleep(0)
