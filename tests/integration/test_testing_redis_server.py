"""The Redis servers that tests start: hung, killed, restarted, and gone with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.errors import ProcessDied
from fairlead.testing import RedisCluster, RedisServer


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_a_paused_server_accepts_and_does_not_answer_until_it_is_resumed(redis_server: RedisServer) -> None:
    redis_server.pause()
    try:
        with socket.create_connection(("127.0.0.1", redis_server.port), timeout=0.1) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(10)
    finally:
        redis_server.resume()
    assert redis_server.command("PING") == "PONG"


def test_a_killed_server_comes_back_empty_on_its_port(redis_server: RedisServer) -> None:
    port = redis_server.port
    redis_server.command("SET", "k", "v")
    redis_server.kill()
    with pytest.raises(ConnectionRefusedError):
        redis_server.command("PING")
    redis_server.restart()
    assert redis_server.port == port
    assert redis_server.command("GET", "k") is None


def test_a_stopped_server_leaves_no_process_and_no_file() -> None:
    server = RedisServer().start()
    pid, folder = server.pid, server._folder
    server.pause()
    server.stop()
    assert not is_alive(pid)
    assert folder is not None
    assert not Path(folder).exists()


def test_a_missing_program_is_one_error_that_names_the_package() -> None:
    with pytest.raises(ProcessDied, match="install the package redis-server"):
        RedisServer(program="redis-server-that-nobody-has").start()


def test_a_server_dies_with_the_process_that_started_it() -> None:
    program = (
        "import time; from fairlead.testing import RedisServer\n"
        "print(RedisServer().start().pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    assert is_alive(pid)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_three_masters_share_all_slots(redis_cluster: RedisCluster) -> None:
    assert len(redis_cluster.nodes) == 3
    for slot in (0, 5461, 5462, 10922, 10923, 16383):
        node = redis_cluster.node_of(slot)
        ranges = node.command("CLUSTER", "SLOTS")
        owner = next(row[2][1] for row in ranges if row[0] <= slot <= row[1])
        assert owner == node.port
