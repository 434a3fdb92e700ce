"""Answers from memory, without the herds.

`Cache.get_or_load(key, load, freshness)` returns what it has while `Freshness` allows, and otherwise loads
it once for all who ask. `lookup` also says where the answer came from and how stale it is. `SingleFlight`
is the coalescing alone. `MemoryStore` bounds what is kept. `SecondTier` is the tier that processes share, over a
`Store` such as `fairlead.cache.redis.RedisStore`; `TwoNodes` is two of them.

`KeyBuilder` makes keys from arguments, `Codec` bytes from values. `HotKeys` finds the keys that take the traffic, and
`Rendezvous` says where a key belongs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.cache.cache import Cache
from fairlead.cache.entry import Entry
from fairlead.cache.events import CacheEvent
from fairlead.cache.freshness import Freshness
from fairlead.cache.loading import Lookup, Source
from fairlead.cache.memory import MemoryStore
from fairlead.cache.single_flight import SingleFlight
from fairlead.cache.stats import CacheStats

if TYPE_CHECKING:
    from fairlead.cache.codec import Codec
    from fairlead.cache.composite import Composite, CompositeAnswer, Field
    from fairlead.cache.hot_keys import HotKey, HotKeys
    from fairlead.cache.invalidation import Backplane, Message
    from fairlead.cache.key_builder import KeyBuilder
    from fairlead.cache.lease import Leases
    from fairlead.cache.prewarming import Prewarmed, prewarm
    from fairlead.cache.routing import Rendezvous
    from fairlead.cache.second_tier import SecondTier
    from fairlead.cache.store import Invalidation, InvalidationKind, Put, Store
    from fairlead.cache.tier_stats import TierStats
    from fairlead.cache.two_nodes import TwoNodes
else:
    # Imported when first asked for: a service that keeps to its own memory need not wait for the shared tier.
    _LATER = {
        "Backplane": "invalidation",
        "Codec": "codec",
        "Composite": "composite",
        "CompositeAnswer": "composite",
        "Field": "composite",
        "HotKey": "hot_keys",
        "HotKeys": "hot_keys",
        "Invalidation": "store",
        "InvalidationKind": "store",
        "KeyBuilder": "key_builder",
        "Leases": "lease",
        "Message": "invalidation",
        "Prewarmed": "prewarming",
        "Put": "store",
        "Rendezvous": "routing",
        "SecondTier": "second_tier",
        "Store": "store",
        "TierStats": "tier_stats",
        "TwoNodes": "two_nodes",
        "prewarm": "prewarming",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "Backplane",
    "Cache",
    "CacheEvent",
    "CacheStats",
    "Codec",
    "Composite",
    "CompositeAnswer",
    "Entry",
    "Field",
    "Freshness",
    "HotKey",
    "HotKeys",
    "Invalidation",
    "InvalidationKind",
    "KeyBuilder",
    "Leases",
    "Lookup",
    "MemoryStore",
    "Message",
    "Prewarmed",
    "Put",
    "Rendezvous",
    "SecondTier",
    "SingleFlight",
    "Source",
    "Store",
    "TierStats",
    "TwoNodes",
    "prewarm",
]
