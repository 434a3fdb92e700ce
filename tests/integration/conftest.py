"""Real servers for the tests beside it: started once a module, ended by handle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairlead.testing import RedisCluster, RedisServer


@pytest.fixture(scope="module")
def redis_module() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_module: RedisServer) -> RedisServer:
    """A Redis of this module, running and empty."""
    if not redis_module.pid:
        redis_module.start()
    redis_module.resume()
    redis_module.command("FLUSHALL")
    return redis_module


@pytest.fixture(scope="module")
def redis_cluster_module() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(redis_cluster_module: RedisCluster) -> RedisCluster:
    """Three masters of this module, running and empty."""
    for node in redis_cluster_module.nodes:
        node.resume()
        node.command("FLUSHALL")
    return redis_cluster_module
