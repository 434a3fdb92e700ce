"""The Redis driver over TLS, to a real server with a certificate of the test's own authority."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.cache.codec import Codec
from fairlead.cache.redis import RedisStore
from fairlead.errors import StoreUnavailable
from fairlead.testing import RedisServer
from fairlead.testing.store_contract import StoreContract, Stores

ANYTHING: Codec[Any] = Codec(Any, mutable_ok=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis.test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tls_url(certificate: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with RedisServer(
        "--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate / "cert.pem"),
        "--tls-cert-file", str(certificate / "cert.pem"), "--tls-key-file", str(certificate / "key.pem"),
    ):  # fmt: skip
        yield f"rediss://127.0.0.1:{port}/0"


class TestOverTls(StoreContract):
    @pytest.fixture
    async def stores(self, tls_url: str, certificate: Path) -> AsyncIterator[Stores]:
        trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
        both = tuple(RedisStore(tls_url, codec=ANYTHING, tls=trusting) for _ in range(2))
        await both[0].invalidate([])
        yield both[0], both[1]
        for store in both:
            await store.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused_in_one_line(tls_url: str):
    store = RedisStore(tls_url, codec=ANYTHING)
    with pytest.raises(StoreUnavailable, match="certificate verify failed") as refused:
        await store.get_many(["key"])
    assert "\n" not in str(refused.value)
    await store.close()


async def test_a_certificate_for_another_name_is_refused(tls_url: str, certificate: Path):
    trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
    store = RedisStore(tls_url.replace("127.0.0.1", "localhost"), codec=ANYTHING, tls=trusting)
    with pytest.raises(StoreUnavailable, match="Hostname mismatch"):
        await store.get_many(["key"])
    await store.close()


async def test_a_plain_connection_to_a_tls_port_fails_as_a_store_does(tls_url: str):
    store = RedisStore(tls_url.replace("rediss", "redis"), codec=ANYTHING, reply_timeout=1.0)
    with pytest.raises(StoreUnavailable):
        await store.get_many(["key"])
    await store.close()
