"""The log of real HAProxy processes: what a user cannot write into it, what is lost, and what a rollout sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput, ProcessDied
from fairlead.flags import bucket
from fairlead.rollout import Guardrail, RolloutState, Split, Stage
from fairlead.rollout.controller import Controller
from fairlead.rollout.haproxy import HaproxyLog, HaproxyLogFacts, haproxy_config
from fairlead.rollout.journal import MemoryJournal
from fairlead.telemetry import BufferedSink, EventTail, Exposure, JsonLinesSegments, RequestFinished
from fairlead.testing import HaproxyServer
from tests.integration.rollout.proxies import User, driver, proxy
from tests.unit.rollout.conftest import ERRORS, plan

ROOT = Path(__file__).resolve().parents[3]
KEY = "YSBzZWNyZXQgb2YgdGhlc2UgdGVzdHM="
HALF = Split(share=0.5, audience="internal", rollout="feed/1", epoch=1)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_LOG_KEY", KEY)


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "feed.map"
    path.write_text("slots 5000\n")
    return path


@pytest.fixture
def address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Kept:
    """A log whose events lie in a folder, and are read back from it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.sink = BufferedSink(JsonLinesSegments(folder), capacity=100_000)
        self.log = HaproxyLog(self.sink, flag="feed")
        self._tail = EventTail(folder)
        self.exposures: list[Exposure] = []
        self.requests: list[RequestFinished] = []

    def read(self) -> None:
        assert self.sink.flush()
        for event in self._tail.read():
            if isinstance(event, Exposure):
                self.exposures.append(event)
            else:
                assert isinstance(event, RequestFinished)
                self.requests.append(event)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        self.read()
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time: {self.log.stats}"
            time.sleep(0.02)
            self.read()

    def close(self) -> None:
        self.log.close()
        self.sink.close()


@pytest.fixture
def kept(tmp_path: Path, address: str) -> Iterator[Kept]:
    made = Kept(tmp_path / "events", address)
    made.log.listen(address)
    yield made
    made.close()


def unit_of(key: bytes) -> str:
    return hmac.new(b64decode(KEY), key, hashlib.sha256).digest()[:16].hex()


def ask(server: HaproxyServer, *keys: str) -> None:
    user = User(server)
    for key in keys:
        user.asks(x_user_id=key)
    user.close()


HOSTILE = [
    b"user-1",
    b"a b\tc",
    b'" unit=00000000000000000000000000000000 arm=treatment | "',
    b"fairlead/1 time=1795822865225 from=a/1/1 line=1 request=1",
    b"'; DROP TABLE units; --",
    b"%[env(FAIRLEAD_LOG_KEY)]%ci%%",
    b"\xff\xfe\x80\xc3(",
    "日本語🙂ü".encode(),
    b"\x7f\x1b[2J",
    b",",
    b"k" * 8_000,
]


def test_a_key_reaches_the_log_as_its_hash_whatever_is_in_it(
    map_file: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    lines = []
    monkeypatch.setattr(kept.log, "take", lambda line: (lines.append(line), HaproxyLog.take(kept.log, line)))
    with proxy(map_file, log=kept.address) as server:
        user = User(server)
        for key in HOSTILE:
            user.asks(x_user_id=key)
        user.close()
        kept.until(lambda: len(kept.requests) >= len(HOSTILE))
    assert [each.targeting_key for each in kept.requests] == [unit_of(key) for key in HOSTILE]
    assert kept.log.stats.other == 0
    written = b"".join(lines)
    for key in HOSTILE[1:]:
        if len(key) > 1:
            assert key not in written
    for each in kept.requests:
        key = HOSTILE[[unit_of(key) for key in HOSTILE].index(each.targeting_key)]
        drawn = bucket("feed", key.decode(errors="surrogateescape")) if key.isascii() else None
        if drawn is not None:
            assert each.variant == ("treatment" if drawn < 5_000 else "control")


def test_an_address_of_8_kilobytes_cuts_nothing_that_is_counted(map_file: Path, kept: Kept):
    with (
        proxy(map_file, log=kept.address) as server,
        socket.create_connection(("127.0.0.1", server.port)) as raw,
    ):
        path = b"/" + b"p" * 8_000 + b"fairlead/1"
        raw.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: a\r\nx-user-id: u\r\nconnection: close\r\n\r\n")
        while raw.recv(65_536):
            pass
        kept.until(lambda: bool(kept.requests))
    assert (kept.requests[0].targeting_key, kept.requests[0].status) == (unit_of(b"u"), 200)
    assert kept.log.stats.other == 0


def test_a_header_that_goes_on_in_a_second_line_or_comes_twice_is_one_unit(map_file: Path, kept: Kept):
    with proxy(map_file, log=kept.address) as server:
        for head in (
            b"x-user-id: a\r\n b",
            b"x-user-id: a\r\nx-user-id: b",
            b"x-user-id: a\nfairlead/1 b: c",
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n" + head + b"\r\nconnection: close\r\n\r\n")
                while raw.recv(65_536):
                    pass
        kept.until(lambda: kept.log.stats.counted + kept.log.stats.elsewhere >= 3)
    assert kept.log.stats.other == 0
    assert len({each.targeting_key for each in kept.requests}) == len(kept.requests)


def test_who_has_no_key_is_not_compared_and_who_was_let_in_was_not_drawn(map_file: Path, kept: Kept):
    with proxy(map_file, log=kept.address) as server:
        asyncio.run(driver(map_file, server).set(HALF))
        user = User(server)
        user.asks()
        user.asks(x_user_id="")
        user.asks(x_user_id="u", x_audience="internal")
        user.asks(x_audience="internal")
        user.asks(x_user_id="u", x_audience="others")
        kept.until(lambda: kept.log.stats.unkeyed >= 3 and len(kept.requests) >= 2)
        user.close()
    assert [each.reason for each in kept.exposures] == ["TARGETING_MATCH", "SPLIT"]
    assert kept.requests[0].variant == "treatment"
    assert kept.log.stats.counted == 2


def test_a_cookie_is_the_key_where_it_was_named(map_file: Path, kept: Kept):
    with proxy(map_file, log=kept.address, cookie="uid") as server:
        user = User(server)
        user.asks(cookie="a=1; uid=u-1; b=2", x_user_id="other")
        user.close()
        kept.until(lambda: bool(kept.requests))
    assert kept.requests[0].targeting_key == unit_of(b"u-1")


def test_haproxy_does_not_start_without_the_secret(
    map_file: Path, address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FAIRLEAD_LOG_KEY")
    with pytest.raises(ProcessDied, match="FAIRLEAD_LOG_KEY is not in the environment"):
        proxy(map_file, log=address).start()


# How requests end -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service() -> Iterator[int]:
    """Answers as the path says: whole, with an error, cut in the middle, after a while, or never."""
    stop = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            path = connection.recv(65_536).split(b" ")[1]
            if path == b"/hang":
                stop.wait(5)
            elif path == b"/cut":
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nshort")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif path == b"/long":
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
                while not stop.is_set():
                    connection.sendall(b"x" * 100_000)
            elif path == b"/garbage":
                connection.sendall(b"\0\1\2\3\r\n\r\n")
            else:
                status = (
                    b"500 Broken" if path == b"/broken" else b"404 Gone" if path == b"/gone" else b"200 OK"
                )
                time.sleep(0.05)
                connection.sendall(
                    b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                )

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def in_front_of(map_file: Path, address: str, port: int) -> HaproxyServer:
    def configuration(own: int) -> str:
        text = haproxy_config(
            "feed", bind=f"127.0.0.1:{own}", map_file=str(map_file), log=address,
            control=[f"127.0.0.1:{port}"], treatment=[f"127.0.0.1:{port}"],
        )  # fmt: skip
        return text.replace("\nbackend feed_control", "\nbackend feed_control\n    timeout server 300ms")

    return HaproxyServer(configuration)


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/", 200, ""),
        ("/gone", 404, ""),
        ("/broken", 500, "ServerError"),
        ("/cut", 200, "ServerAborted"),
        ("/hang", 504, "ServerTimedOut"),
        ("/garbage", 502, "ServerError"),
    ],
)
def test_how_a_request_ended_is_told_from_the_servers_side(
    map_file: Path, kept: Kept, path: str, status: int, error: str
):
    control = next(f"u{n}" for n in range(100) if bucket("feed", f"u{n}") >= 5_000)
    with service() as port, in_front_of(map_file, kept.address, port) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(
                f"GET {path} HTTP/1.1\r\nhost: a\r\nx-user-id: {control}\r\nconnection: close\r\n\r\n".encode()
            )
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(65_536):
                    pass
        kept.until(lambda: bool(kept.requests))
    (request,) = kept.requests
    assert (request.status, request.error, request.variant) == (status, error, "control")
    if path == "/":
        assert request.first_byte_seconds is not None
        assert 0.04 <= request.first_byte_seconds <= request.latency_seconds < 2
    if path in ("/hang", "/garbage"):
        assert request.first_byte_seconds is None


def test_a_user_who_leaves_is_no_error_of_the_server(map_file: Path, kept: Kept):
    with service() as port, in_front_of(map_file, kept.address, port) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET /long HTTP/1.1\r\nhost: a\r\nx-user-id: u\r\n\r\n")
            raw.recv(1_000)
        kept.until(lambda: bool(kept.requests))
    assert (kept.requests[0].status, kept.requests[0].error) == (200, "")


def test_a_server_that_is_gone_is_an_error_of_its_arm(map_file: Path, kept: Kept):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with in_front_of(map_file, kept.address, port) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nx-user-id: u\r\nconnection: close\r\n\r\n")
            while raw.recv(65_536):
                pass
        kept.until(lambda: bool(kept.requests), 20.0)
    assert (kept.requests[0].status, kept.requests[0].error) == (503, "ServerAborted")


# Lines that are lost, late or double ----------------------------------------------------------------------------------


def test_reloads_lose_no_line_and_count_none_twice(map_file: Path, kept: Kept):
    keys = [f"u{n}" for n in range(2_000)]
    with proxy(map_file, log=kept.address) as server:
        threads = [threading.Thread(target=ask, args=(server, *keys[part::2])) for part in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.1)
            server.reload()
        for thread in threads:
            thread.join(60)
        kept.until(lambda: len(kept.requests) >= len(keys))
    assert {each.targeting_key for each in kept.requests} == {unit_of(key.encode()) for key in keys}
    assert (kept.log.stats.lost, kept.log.stats.duplicates) == (0, 0)
    assert kept.log.stats.other == 3  # of each reload HAProxy says a word itself


def test_two_proxies_agree_on_the_unit_and_are_told_apart(map_file: Path, kept: Kept):
    keys = [f"u{n}" for n in range(200)]
    with proxy(map_file, log=kept.address) as first, proxy(map_file, log=kept.address) as second:
        ask(first, *keys)
        ask(second, *keys)
        kept.until(lambda: len(kept.requests) >= 400)
    assert set(Counter(each.targeting_key for each in kept.requests).values()) == {2}
    assert len(kept.exposures) == 200
    arms = {(each.targeting_key, each.variant) for each in kept.requests}
    assert len(arms) == 200
    assert (kept.log.stats.lost, kept.log.stats.duplicates) == (0, 0)


def test_what_nobody_received_is_counted_as_lost(map_file: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch):
    """More than the kernel holds for a receiver that does nothing for a while."""
    busy = threading.Event()

    def take(line: bytes) -> None:
        busy.wait(30)
        HaproxyLog.take(kept.log, line)

    monkeypatch.setattr(kept.log, "take", take)
    most = (
        int(Path("/proc/sys/net/core/rmem_max").read_text()) // 500
    )  # a line takes more of it than its bytes
    asked = min(most, 10_000) + 1_000
    with proxy(map_file, log=kept.address) as server:
        ask(server, *(f"u{n}" for n in range(asked)))
        busy.set()
        # The gap shows by the first line behind it, which has to find room.
        while not kept.log.stats.lost:
            ask(server, "more")
            asked += 1
            assert asked < 20_000
            kept.read()
            time.sleep(0.05)
        kept.until(lambda: kept.log.stats.counted + kept.log.stats.lost == asked)
    assert kept.log.stats.lost > 500


def test_others_who_send_to_the_address_are_passed_over(map_file: Path, kept: Kept):
    host, port = kept.address.split(":")
    with (
        proxy(map_file, log=kept.address) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        for text in (b"", b"\0" * 60_000, b"<134>haproxy[1]: hello", b"fairlead/1 time=1"):
            stranger.sendto(text, (host, int(port)))
        ask(server, "u1")
        kept.until(lambda: bool(kept.requests))
    kept.log.check()
    assert kept.log.stats.other == 4


def test_one_address_is_listened_on_once(kept: Kept):
    with pytest.raises(InvalidInput, match="Address already in use"):
        HaproxyLog(kept.sink, flag="feed").listen(kept.address)


def test_it_closes_at_once_while_lines_go_on_to_arrive(map_file: Path, kept: Kept):
    stop = threading.Event()
    host, port = kept.address.split(":")

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                sender.sendto(b"x", (host, int(port)))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        kept.until(lambda: kept.log.stats.other > 1_000)
        began = time.monotonic()
        kept.log.close()
        assert time.monotonic() - began < 5
    finally:
        stop.set()
        thread.join()


COLLECTOR = """
import sys, time
from fairlead.rollout.haproxy import HaproxyLog
from fairlead.telemetry import BufferedSink, JsonLinesSegments
HaproxyLog(BufferedSink(JsonLinesSegments(sys.argv[1])), flag="feed").listen(sys.argv[2])
print("listening", flush=True)
time.sleep(60)
"""


def test_who_was_killed_while_receiving_leaves_what_it_had_and_the_address(
    map_file: Path, tmp_path: Path, address: str
):
    folder = tmp_path / "events"
    with proxy(map_file, log=address) as server:
        first = subprocess.Popen(
            [sys.executable, "-c", COLLECTOR, str(folder), address], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"listening\n"
            ask(server, *(f"u{n}" for n in range(100)))
            time.sleep(1.0)
        finally:
            first.send_signal(signal.SIGKILL)
            first.communicate(timeout=10)
        second = Kept(folder, address)
        second.log.listen(address)
        try:
            ask(server, *(f"u{n}" for n in range(100, 200)))
            second.until(lambda: len(second.requests) >= 200)
        finally:
            second.close()
    assert {each.targeting_key for each in second.requests} == {unit_of(b"u%d" % n) for n in range(200)}


# What a rollout sees of it --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def users(server: HaproxyServer) -> Iterator[None]:
    """New ones all the time, some hundred a second."""
    stop = threading.Event()

    def come() -> None:
        number = 0
        user = User(server)
        while not stop.wait(0.005):
            number += 1
            with contextlib.suppress(OSError):
                user.asks(x_user_id=f"user-{number}")
        user.close()

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


QUICK = {
    "look_every": 0.5, "stale_after": 2.0, "silence": 3.0, "patience": 3.0, "settle": 5.0,
    "stages": (Stage(share=0.5, bake=60.0),), "guardrails": (Guardrail(metric=ERRORS, worse_by=0.02, relative=False),),
}  # fmt: skip


async def led(
    kept: Kept,
    map_file: Path,
    server: HaproxyServer,
    when: Callable[[RolloutState], bool],
    do: Callable[[], None],
    **changes: object,
) -> tuple[RolloutState, list[str]]:
    """A rollout in real time, and what was said; `do` is done when `when` holds."""
    told: list[str] = []
    done = False
    rollout = plan(**{**QUICK, **changes})

    async def notice(what: str, state: RolloutState) -> None:
        told.append(what)

    traffic = driver(map_file, server)
    controller = Controller(
        rollout, journal=MemoryJournal("feed/1", rollout, by="ann"), traffic=traffic, notice=notice,
        facts=HaproxyLogFacts(kept.log, EventTail(kept.folder)),
    )  # fmt: skip
    running = asyncio.create_task(controller.run())
    async with asyncio.timeout(60):
        while not running.done():
            if not done and when(controller.state):
                done = True
                await asyncio.to_thread(do)
            await asyncio.sleep(0.1)
    await traffic.close()
    assert done
    return await running, told


def seen(state: RolloutState) -> bool:
    return dict(state.units).get("treatment", 0) >= 100


async def test_a_log_that_ends_in_mid_stage_freezes_the_rollout_and_its_deadline_holds(
    map_file: Path, kept: Kept
):
    with proxy(map_file, log=kept.address) as server, users(server):

        def gone() -> None:
            path = Path(server.socket).with_name("haproxy.cfg")
            path.write_text(path.read_text().replace(f"    log {kept.address}", f"    # log {kept.address}"))
            server.reload()

        final, told = await led(kept, map_file, server, seen, gone)
        served = " ".join(server.command(f"show map {map_file}"))
    assert final.phase == "rolled_back"
    assert "no events of either arm" in final.reason
    assert "and nobody came within 3 s" in final.reason
    assert any("neither arm reports" in each for each in told)
    assert "slots 0" in served


async def test_a_log_that_never_came_is_no_data_and_its_deadline_holds(map_file: Path, kept: Kept):
    with proxy(map_file) as server, users(server):
        final, _ = await led(kept, map_file, server, lambda state: bool(state.evaluations), lambda: None)
    assert final.phase == "rolled_back"
    (evaluation,) = final.evaluations
    assert (evaluation.verdict, evaluation.reason) == ("INCONCLUSIVE", "no_data")
    assert evaluation.detail == "no units of control and treatment yet"


def test_a_controller_that_was_killed_listens_again_and_knows_what_it_had_seen(
    map_file: Path, tmp_path: Path, address: str
):
    (change,) = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs/guides/black-box.md").read_text("utf-8"), re.DOTALL
    )
    change = re.sub(
        r'\[\[rollout.guardrails\]\]\nmetric = "missing_pages".*?\n\n', "", change, flags=re.DOTALL
    )
    for was, now in (("10m", "6s"), ("30m", "9s"), ('look_every = "1m"', 'look_every = "1s"')):
        change = change.replace(was, now)
    (tmp_path / "site.toml").write_text(change)
    words = [sys.executable, "-m", "fairlead.cli", "rollout", "start", "site.toml", "--store", "fairlead.db"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def stages() -> list[str]:
        told = subprocess.run(
            [*words[:4], "status", "site.toml", "--store", "fairlead.db", "--json"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return re.findall(r'"treatment": (\d+)', told.stdout)

    with proxy(map_file, log=address) as server, users(server):
        where = [
            "--haproxy",
            server.socket,
            "--map",
            str(map_file),
            "--haproxy-log",
            address,
            "--events",
            "log",
        ]
        first = subprocess.Popen([*words, *where], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while not any(int(units) > 10 for units in stages()):
                assert time.monotonic() < end
        finally:
            first.kill()
            first.wait(10)
        again = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
        )
        served = " ".join(server.command(f"show map {map_file}"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on with site/1" in again.stdout
    assert f"log {address}: " in again.stdout
    assert "slots 10000" in served
    assert len(list((tmp_path / "log").glob("haproxy-*.jsonl"))) == 2


async def test_a_receiver_that_broke_is_a_reason_and_its_deadline_holds(
    map_file: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    def broken(line: bytes) -> None:
        raise OSError("the network card has left")

    with proxy(map_file, log=kept.address) as server, users(server):
        final, _ = await led(
            kept, map_file, server, seen, lambda: monkeypatch.setattr(kept.log, "take", broken)
        )
    assert final.phase == "rolled_back"
    (evaluation,) = final.evaluations
    assert (evaluation.verdict, evaluation.reason) == ("INCONCLUSIVE", "query_error")
    assert "no longer received: the network card has left" in evaluation.detail


async def test_a_split_that_the_proxy_does_not_keep_is_found_by_unit(map_file: Path, kept: Kept):
    """Somebody's rule sends a third of treatment's users elsewhere: HAProxy's map says nothing of it."""
    made = proxy(map_file, log=kept.address)
    as_made = made._configuration
    made._configuration = lambda port: as_made(port).replace(
        "    use_backend feed_treatment if",
        "    use_backend feed_control if { req.fhdr(x-user-id) -m end 1 2 3 }\n    use_backend feed_treatment if",
    )
    with made as server, users(server):
        stages = (Stage(share=0.5, bake=3.0, longest=6.0),)
        final, _ = await led(kept, map_file, server, seen, lambda: None, stages=stages)
    assert final.phase == "rolled_back"
    assert "the split is not as planned (sample ratio)" in final.reason
