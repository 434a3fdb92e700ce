"""For people who write drivers: contract suites, and the servers to run them against.

`StoreContract` is what a `fairlead.cache.Store` must do, `MigrationStoreContract` what a store that rows are moved
from or to must, `TransportContract` what any client that sends calls through a Policy must, and `TrafficContract`
whatever moves a rollout's traffic. `RedisServer`, `RedisCluster`, `NatsServer`, `PostgresServer` and `HaproxyServer`
start real servers on private ports that a test can hang, kill and restart; nothing of them outlives the process that
started them. `HttpPeer` is a server on loopback that misbehaves as told.
"""

from __future__ import annotations

from fairlead.testing.haproxy_server import HaproxyServer
from fairlead.testing.http_peer import HttpPeer
from fairlead.testing.migration_store_contract import MigrationStoreContract
from fairlead.testing.nats_server import NatsServer
from fairlead.testing.postgres_server import PostgresServer
from fairlead.testing.redis_server import RedisCluster, RedisServer
from fairlead.testing.store_contract import StoreContract
from fairlead.testing.traffic_contract import TrafficContract, TrafficTarget
from fairlead.testing.transports import Act, Arrived, Peer, Send, TransportContract

__all__ = [
    "Act",
    "Arrived",
    "HaproxyServer",
    "HttpPeer",
    "MigrationStoreContract",
    "NatsServer",
    "Peer",
    "PostgresServer",
    "RedisCluster",
    "RedisServer",
    "Send",
    "StoreContract",
    "TrafficContract",
    "TrafficTarget",
    "TransportContract",
]
