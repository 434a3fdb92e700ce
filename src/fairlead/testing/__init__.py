"""For people who write drivers, and for tests that want a real Redis.

`RedisServer` and `RedisCluster` start servers on private ports that a test can hang, kill and restart; nothing
of them outlives the process that started them. `StoreContract` is what a `fairlead.cache.Store` must do.
"""

from __future__ import annotations

from fairlead.testing.redis_server import RedisCluster, RedisServer
from fairlead.testing.store_contract import StoreContract

__all__ = ["RedisCluster", "RedisServer", "StoreContract"]
