"""The NATS servers that tests start: with JetStream, hung, killed, and back with their streams' folder."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import ProcessDied
from fairlead.testing import NatsServer


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer() as running:
        yield running


def test_a_server_offers_jetstream(server: NatsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as connection:
        assert b'"jetstream":true' in connection.recv(65_536)


def test_a_paused_server_accepts_and_does_not_answer(server: NatsServer) -> None:
    server.pause()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(10)
    finally:
        server.resume()


def test_a_killed_server_comes_back_on_its_port_with_its_folder() -> None:
    with NatsServer() as server:
        port, folder = server.port, server._folder
        assert folder is not None
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0)
        server.restart()
        assert (server.port, server._folder) == (port, folder)
    assert not Path(folder).exists()


def test_a_missing_program_is_one_error_that_names_the_package() -> None:
    with pytest.raises(ProcessDied, match="install the package nats-server"):
        NatsServer(program="nats-server-that-nobody-has").start()
