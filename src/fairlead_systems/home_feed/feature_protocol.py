"""What the feature service and its clients say to each other: gRPC methods with MessagePack bodies.

`Get` is unary, one item a call. `Batch` is one stream per client that stays open: requests carry an id,
replies come back in any order.
"""

from __future__ import annotations

import msgspec

__all__ = ["BATCH", "GET", "SERVICE", "BatchReply", "BatchRequest", "Features", "encode"]

SERVICE = "fairlead.home_feed.Features"
GET = f"/{SERVICE}/Get"
BATCH = f"/{SERVICE}/Batch"


class Features(msgspec.Struct, frozen=True, tag=True):
    """Features of one item, in the order of world.ITEM_FEATURES."""

    item: int
    values: list[float]
    as_of_seconds: float
    """Monotonic moment at which the service read them."""


class BatchRequest(msgspec.Struct, frozen=True):
    id: int
    items: list[int]


class BatchReply(msgspec.Struct, frozen=True):
    id: int
    features: list[Features] = []
    error: str = ""


encode = msgspec.msgpack.Encoder().encode
