from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput, PortInUse, ProcessDied
from fairlead.lab import HttpReady, Service, TcpReady, Topology

# A service in 20 lines: takes over --fd or binds --port, answers every path, and misbehaves on request.
PROGRAM = """
import os, signal, socket, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
option = lambda name: int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else 0
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--children" in sys.argv:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    print("children", *pids, flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            print("crashing as asked", file=sys.stderr, flush=True)
            os._exit(3)
        if self.path == "/kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.send_response(503 if "--sick" in sys.argv else 200)
        self.end_headers()
        self.wfile.write(os.environ.get("PEER", "").encode())
    def log_message(self, *arguments):
        pass
fd = option("--fd")
server = HTTPServer(("127.0.0.1", option("--port")), Handler, bind_and_activate=not fd)
if fd:
    server.socket = socket.socket(fileno=fd)
server.serve_forever()
"""


def _service(name: str, *options: str, own_port: bool = False, **settings: object) -> Service:
    where = ("--port", "{port}") if own_port else ("--fd", "{fd}")
    return Service(
        name=name,
        argv=[sys.executable, "-S", "-c", PROGRAM, *where, *options],
        **settings,  # type: ignore[arg-type]  # passed through as written in the test
    )


def _get(url: str) -> str:
    """The answer to GET; empty when the connection breaks. Plain sockets, so that nothing is pooled or retried."""
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    with socket.create_connection((host, int(port)), timeout=10) as connection, contextlib.suppress(OSError):
        connection.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
        return answer.decode()
    return ""


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until_gone(pids: Iterable[int]) -> None:
    limit = time.monotonic() + 20
    while left := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < limit, f"still running: {left}"
        time.sleep(0.02)


def _wait_until_made(file: Path) -> None:
    limit = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < limit, f"never made: {file}"
        time.sleep(0.01)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def _children_of(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split("children")[1].split()[:2]]


async def test_services_are_healthy_inside_the_block_and_gone_after_it(tmp_path: Path) -> None:
    services = [
        _service("source", own_port=True),
        _service("feed", env={"PEER": "{source.url} {source.port} {url}"}),
    ]
    async with Topology(services, log_directory=tmp_path / "logs") as topology:
        source, feed = topology["source"], topology["feed"]
        answer = await asyncio.to_thread(_get, f"{feed.url}/x")
        assert answer.endswith(f"{source.url} {source.port} {feed.url}")
        assert topology.failed is None
        pids = [source.pid, feed.pid]
        assert all(_alive(pid) for pid in pids)
        assert feed.log == tmp_path / "logs" / "feed.log"
    assert not any(_alive(pid) for pid in pids)
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", feed.port))


async def test_usage_covers_the_program_and_its_descendants(tmp_path: Path) -> None:
    services = [_service("alone"), _service("family", "--children")]
    async with Topology(services, log_directory=tmp_path) as topology:
        alone, family = topology["alone"], topology["family"]
        assert 1_000_000 < alone.usage().rss_bytes <= alone.usage().peak_rss_bytes
        # The children are interpreters that may still be loading, and the kernel counts CPU in ticks of 10 ms.
        async with asyncio.timeout(20):
            while family.usage().rss_bytes < alone.usage().rss_bytes * 1.5 or not alone.usage().cpu_seconds:
                await asyncio.to_thread(_get, alone.url)
    assert topology["alone"].usage().rss_bytes == 0


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with Topology([_service("deaf", "--deaf", grace=0.2)], log_directory=tmp_path) as topology:
        pid = topology["deaf"].pid
    assert not _alive(pid)
    assert topology["deaf"].process.ending == "signal SIGKILL"


async def test_a_stopped_child_is_ended_too(tmp_path: Path) -> None:
    async with Topology([_service("frozen", grace=0.2)], log_directory=tmp_path) as topology:
        pid = topology["frozen"].pid
        os.kill(pid, signal.SIGSTOP)
    assert not _alive(pid)


async def test_grandchildren_end_with_the_run_even_in_a_session_of_their_own(tmp_path: Path) -> None:
    async with Topology([_service("family", "--children")], log_directory=tmp_path) as topology:
        pids = _children_of(topology["family"].log)
        assert all(_alive(pid) for pid in pids)
    assert not any(_alive(pid) for pid in pids)


async def test_a_crash_in_the_block_ends_everything_and_is_not_hidden(tmp_path: Path) -> None:
    topology = Topology([_service("feed")], log_directory=tmp_path)

    async def run() -> None:
        async with topology:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert topology["feed"].process.ended.is_set()
    assert not _alive(topology["feed"].pid)


async def test_cancelling_the_block_twice_still_leaves_nothing_running(tmp_path: Path) -> None:
    pids: list[int] = []
    inside = asyncio.Event()

    async def run() -> None:
        services = [_service("deaf", "--deaf", "--children", grace=60.0), _service("feed")]
        async with Topology(services, log_directory=tmp_path) as topology:
            pids.extend([topology["deaf"].pid, topology["feed"].pid, *_children_of(topology["deaf"].log)])
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await inside.wait()
    task.cancel()
    # The feed ends at once; the deaf one is then in its grace of a minute.
    await asyncio.to_thread(_wait_until_gone, [pids[1]])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _wait_until_gone(pids)


async def test_cancelling_the_start_leaves_nothing_running(tmp_path: Path) -> None:
    topology = Topology([_service("good"), _service("sick", "--sick")], log_directory=tmp_path)
    start = asyncio.create_task(topology.__aenter__())
    await asyncio.to_thread(_wait_until_made, tmp_path / "sick.log")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    _wait_until_gone([topology["good"].pid, topology["sick"].pid])


async def test_a_child_that_dies_at_its_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import no_such_module", "{fd}"]
    topology = Topology([_service("good"), Service(name="broken", argv=argv)], log_directory=tmp_path)
    with pytest.raises(ProcessDied) as caught:
        async with topology:
            pass
    message = str(caught.value)
    assert message.startswith(f"broken died with exit code 1; log {tmp_path / 'broken.log'}: ")
    assert "No module named 'no_such_module'" in message
    assert "\n" not in message
    assert not _alive(topology["good"].pid)


async def test_a_child_that_is_never_healthy_is_reported_with_what_it_answered(tmp_path: Path) -> None:
    topology = Topology([_service("sick", "--sick", ready_within=0.5)], log_directory=tmp_path)
    with pytest.raises(ProcessDied, match=r"sick was not ready within 0.5 s \(GET /healthz answered 503\)"):
        async with topology:
            pass
    assert not _alive(topology["sick"].pid)


async def test_a_child_that_dies_during_the_run_is_named_with_its_end(tmp_path: Path) -> None:
    async with Topology([_service("feed"), _service("source")], log_directory=tmp_path) as topology:
        await asyncio.to_thread(_get, f"{topology['source'].url}/crash")
        with pytest.raises(ProcessDied, match=r"source died with exit code 3; log .*: crashing as asked"):
            await topology.watch()
        assert str(topology.failed).startswith("source died")
        assert _alive(topology["feed"].pid)


async def test_work_is_cancelled_when_a_service_it_needs_is_killed(tmp_path: Path) -> None:
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        await asyncio.to_thread(_get, f"{topology['feed'].url}/kill")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async with Topology([_service("feed")], log_directory=tmp_path) as topology:
        with pytest.raises(ProcessDied, match="feed died with signal SIGKILL"):
            await topology.during(work())
    assert cancelled


async def test_work_during_a_healthy_run_returns_its_result(tmp_path: Path) -> None:
    async with Topology([_service("feed")], log_directory=tmp_path) as topology:
        assert await topology.during(asyncio.sleep(0, result=42)) == 42
        with pytest.raises(ZeroDivisionError):
            await topology.during(_fails())


async def _fails() -> None:
    raise ZeroDivisionError


async def test_killing_the_guard_takes_the_program_and_its_children_along(tmp_path: Path) -> None:
    async with Topology([_service("family", "--children")], log_directory=tmp_path) as topology:
        family = topology["family"]
        guard = _parent_of(family.pid)
        group_child = _children_of(family.log)[0]
        os.kill(guard, signal.SIGKILL)
        with pytest.raises(ProcessDied, match="family died with its guard being killed"):
            await topology.watch()
        _wait_until_gone([family.pid, group_child])
    # This one had left the session: with its guard gone, nobody knows that it belongs here.
    os.kill(_children_of(family.log)[1], signal.SIGKILL)


async def test_a_fixed_port_that_is_taken_is_reported_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        for own_port in (True, False):
            topology = Topology([_service("feed", own_port=own_port, port=port)], log_directory=tmp_path)
            with pytest.raises(PortInUse) as caught:
                async with topology:
                    pass
            message = str(caught.value)
            assert message.startswith(f"feed: port {port} is taken by process {os.getpid()} (")
            assert "give feed another port" in message


async def test_a_program_that_lost_the_race_for_its_port_is_started_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thieves: list[socket.socket] = []
    launch = Topology._launch

    def steal_first(self: Topology, running: object) -> None:
        launch(self, running)  # type: ignore[arg-type]  # the real one, one step too late
        if not thieves:
            thieves.append(socket.create_server(("127.0.0.1", running.port)))  # type: ignore[attr-defined]

    monkeypatch.setattr(Topology, "_launch", steal_first)
    async with Topology([_service("feed", own_port=True)], log_directory=tmp_path) as topology:
        assert topology["feed"].port != thieves[0].getsockname()[1]
        assert "200" in await asyncio.to_thread(_get, topology["feed"].url)
    thieves[0].close()


async def test_a_foreign_program_is_ready_when_it_accepts_and_more_ports_differ(tmp_path: Path) -> None:
    service = Service(
        name="foreign",
        argv=[sys.executable, "-S", "-c", PROGRAM, "--port", "{port}", "{port:grpc}"],
        ready=TcpReady(),
        more_ports=("grpc",),
    )
    async with Topology([service], log_directory=tmp_path) as topology:
        foreign = topology["foreign"]
        assert foreign.more_ports["grpc"] not in (0, foreign.port)
        assert _arguments_of(foreign.pid)[-2:] == [str(foreign.port), str(foreign.more_ports["grpc"])]


async def test_two_topologies_live_side_by_side(tmp_path: Path) -> None:
    services = [_service("feed")]
    async with (
        Topology(services, log_directory=tmp_path / "a") as first,
        Topology(services, log_directory=tmp_path / "b") as second,
    ):
        assert first["feed"].port != second["feed"].port
        assert "200" in await asyncio.to_thread(_get, first["feed"].url)
        assert "200" in await asyncio.to_thread(_get, second["feed"].url)


async def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="feed: no program 'no-such-program'"):
        async with Topology([Service(name="feed", argv=["no-such-program"])], log_directory=tmp_path):
            pass


async def test_a_program_that_cannot_be_executed_says_why(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(ProcessDied, match=r"feed died with exit code 127; .*cannot start .*No such file"):
        async with Topology([Service(name="feed", argv=[str(program)])], log_directory=tmp_path):
            pass


async def test_a_log_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"log_directory: cannot write .*choose another directory"):
        async with Topology([_service("feed")], log_directory=tmp_path / "file" / "logs"):
            pass


async def test_a_topology_is_entered_once(tmp_path: Path) -> None:
    topology = Topology([_service("feed")], log_directory=tmp_path)
    async with topology:
        pass
    with pytest.raises(InvalidInput, match="entered once"):
        await topology.__aenter__()


async def test_a_health_path_of_its_own_is_asked(tmp_path: Path) -> None:
    service = _service("feed", ready=HttpReady(path="/ready"))
    async with Topology([service], log_directory=tmp_path) as topology:
        assert topology["feed"].pid > 0


# What happens to the parent is tried on a real one: a script that enters a topology, prints its pids and waits.
PARENT = """
import asyncio, os, sys, time
from pathlib import Path
from fairlead.lab import Service, Topology

async def main():
    program, directory, *options = sys.argv[1:]
    argv = [sys.executable, "-S", "-c", program, "--fd", "{fd}", *options]
    services = [Service(name=name, argv=argv, grace=0.3) for name in ("one", "two")]
    async with Topology(services, log_directory=Path(directory)) as topology:
        fork = os.fork() if "--fork" in options else -1
        if fork == 0:
            time.sleep(600)
        print(topology["one"].pid, topology["two"].pid, *([fork] if fork > 0 else []), flush=True)
        await asyncio.sleep(600)

runner = sys.argv.pop(1)
if runner == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@contextlib.contextmanager
def _parent(
    directory: Path, *options: str, runner: str = "asyncio"
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    parent = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PARENT, runner, PROGRAM, str(directory), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, parent.stderr.read().decode() if parent.stderr else ""
        yield parent, [int(pid) for pid in line.split()]
    finally:
        parent.kill()
        parent.communicate()


def test_killing_the_parent_with_sigkill_leaves_nothing_running(tmp_path: Path) -> None:
    with _parent(tmp_path, "--children", "--deaf") as (parent, pids):
        pids += [*_children_of(tmp_path / "one.log"), *_children_of(tmp_path / "two.log")]
        assert all(_alive(pid) for pid in pids)
        parent.kill()
        _wait_until_gone(pids)


def test_a_fork_of_the_parent_that_holds_the_pipe_open_keeps_no_service_alive(tmp_path: Path) -> None:
    with _parent(tmp_path, "--fork") as (parent, pids):
        *services, fork = pids
        parent.kill()
        try:
            _wait_until_gone(services)
            assert _alive(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_terminating_the_parent_leaves_nothing_running(tmp_path: Path) -> None:
    with _parent(tmp_path) as (parent, pids):
        parent.terminate()
        _wait_until_gone(pids)


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_ctrl_c_ends_the_services_before_the_parent(tmp_path: Path, runner: str) -> None:
    with _parent(tmp_path, runner=runner) as (parent, pids):
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does, to the whole foreground group
        _, errors = parent.communicate(timeout=30)
        assert not any(_alive(pid) for pid in pids)
        assert b"KeyboardInterrupt" in errors
        assert b"Warning" not in errors


async def test_service_that_is_out_is_refused_and_comes_back_on_its_port(tmp_path: Path):
    async with Topology([_service("one"), _service("two")], log_directory=tmp_path) as topology:
        pid, url = topology["one"].pid, topology["one"].url
        outage = asyncio.create_task(topology.outage("one", 0.3))
        await asyncio.to_thread(_wait_until_gone, [pid])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(_get, url)
        assert "200" in await asyncio.to_thread(_get, topology["two"].url)
        await outage
        assert topology["one"].url == url
        assert topology["one"].pid != pid
        assert "200" in await asyncio.to_thread(_get, url)
        assert topology.failed is None
        await topology.outage("one", 0.0)
        assert sorted(os.listdir(tmp_path)) == [
            "one.1.log",
            "one.2.log",
            "one.log",
            "two.log",
        ]
        await asyncio.to_thread(_get, url + "/kill")
        with pytest.raises(ProcessDied, match="SIGKILL"):  # it is watched again
            await topology.watch()


async def test_outage_that_is_cancelled_is_a_death(tmp_path: Path):
    async with Topology([_service("one")], log_directory=tmp_path) as topology:
        outage = asyncio.create_task(topology.outage("one", 30.0))
        await asyncio.sleep(0.1)
        with pytest.raises(InvalidInput, match="is out already"):
            await topology.outage("one", 0.0)
        outage.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outage
        with pytest.raises(ProcessDied, match="not brought back"):
            await topology.watch()


async def test_outage_is_refused_for_a_service_that_could_lose_its_port(tmp_path: Path):
    async with Topology([_service("one", own_port=True)], log_directory=tmp_path) as topology:
        with pytest.raises(InvalidInput, match=r"\{fd\}"):
            await topology.outage("one", 0.0)
        for seconds in (-1.0, float("nan")):
            with pytest.raises(InvalidInput, match="seconds"):
                await topology.outage("one", seconds)
        assert topology.failed is None
