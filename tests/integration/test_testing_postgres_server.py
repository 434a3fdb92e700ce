"""The PostgreSQL servers that tests start: hung, killed, restarted with their data, and gone at the end."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fairlead.errors import ProcessDied
from fairlead.testing import PostgresServer


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


def ask(server: PostgresServer, statement: str, timeout: int = 5) -> object:
    with psycopg.connect(server.url, connect_timeout=timeout, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone() if cursor.description else None


def test_a_paused_server_answers_neither_new_connections_nor_old_ones(server: PostgresServer) -> None:
    old = psycopg.connect(server.url, autocommit=True)
    try:
        server.pause()
        try:
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                ask(server, "SELECT 1", timeout=2)
            old.pgconn.send_query(b"SELECT 2")
            assert select.select([old.pgconn.socket], [], [], 0.2)[0] == []
        finally:
            server.resume()
        assert select.select([old.pgconn.socket], [], [], 5.0)[0] == [old.pgconn.socket]
    finally:
        old.close()
    assert ask(server, "SELECT 3") == (3,)


def test_a_killed_server_comes_back_with_its_data_on_its_port(server: PostgresServer) -> None:
    ask(server, "CREATE TABLE kept (number integer)")
    ask(server, "INSERT INTO kept VALUES (7)")
    port = server.port
    server.kill()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        ask(server, "SELECT 1")
    server.restart()
    assert server.port == port
    assert ask(server, "SELECT number FROM kept") == (7,)


def test_a_stopped_server_leaves_no_process_and_no_file() -> None:
    server = PostgresServer().start()
    pid, folder = server.pid, server._folder
    server.pause()
    server.stop()
    assert not is_alive(pid)
    assert folder is not None
    assert not Path(folder).exists()


def test_a_missing_program_is_one_error_that_names_the_package() -> None:
    with pytest.raises(ProcessDied, match=r"install the package postgresql"):
        PostgresServer(program="/nonexistent/postgres").start()


def test_arguments_reach_the_server() -> None:
    with PostgresServer("-c", "max_connections=17") as server:
        assert ask(server, "SHOW max_connections") == ("17",)
