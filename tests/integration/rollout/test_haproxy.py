"""A rollout on real HAProxy processes: who is served, what survives, who is named when something is broken."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput, ProcessDied, StaleEpoch, TrafficUnavailable
from fairlead.flags import bucket
from fairlead.rollout import Split
from fairlead.rollout.haproxy import HaproxyTraffic
from fairlead.testing import HaproxyServer, TrafficContract, TrafficTarget
from tests.integration.rollout.proxies import User, driver, proxy

FORWARD = Split(share=0.3, audience="internal", rollout="feed/1", epoch=3)
FARTHER = Split(share=0.5, rollout="feed/1", epoch=3)
ROLLBACK = Split(share=0.0, rollout="feed/1", epoch=3, latched=True)


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "feed.map"
    path.touch()
    return path


@pytest.fixture
def servers(map_file: Path) -> Iterator[tuple[HaproxyServer, HaproxyServer]]:
    """Two processes on one map file."""
    with proxy(map_file) as first, proxy(map_file) as second:
        yield first, second


@pytest.fixture
def server(map_file: Path) -> Iterator[HaproxyServer]:
    with proxy(map_file) as running:
        yield running


@pytest.fixture
def user(server: HaproxyServer) -> Iterator[User]:
    asking = User(server)
    yield asking
    asking.close()


def share_of(server: HaproxyServer) -> float:
    """Of 400 units, those that meet treatment."""
    asking = User(server)
    try:
        return sum(asking.asks(x_user_id=f"user-{n}")[0] == "treatment" for n in range(400)) / 400
    finally:
        asking.close()


def expected(slots: int) -> float:
    return sum(bucket("feed", f"user-{n}") < slots for n in range(400)) / 400


def text_of(path: Path) -> str:
    return path.read_text()


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


class TestHaproxyTraffic(TrafficContract):
    @pytest.fixture
    def target(self, map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]) -> Iterator[TrafficTarget]:
        users = [User(each) for each in servers]

        async def serves(unit: str, audience: str) -> bool:
            headers = {
                **({"x-user-id": unit} if unit else {}),
                **({"x-audience": audience} if audience else {}),
            }
            arms = {each.asks(**headers)[0] for each in users}
            assert len(arms) == 1
            return arms == {"treatment"}

        yield TrafficTarget(
            driver(map_file, *servers), driver(map_file, *servers), salt="feed", serves=serves
        )
        for each in users:
            each.close()


def keys(count: int) -> Iterator[str]:
    """Of many alphabets and lengths; none that a header cannot carry."""
    rng = random.Random(7)
    alphabets = ["0123456789", "abcdef-_.~", "a,b;c d=\"'\\%", "äöüß€", "日本語キー", "🙂🚀"]
    for n in range(count):
        alphabet = alphabets[n % len(alphabets)]
        key = "".join(rng.choice(alphabet) for _ in range(1 + rng.randrange(40)))
        yield key.strip() or "x"
    yield "k" * 8_000


@pytest.mark.parametrize("salt", ["feed", "home_feed-2.B"])
async def test_the_proxy_and_the_flags_draw_the_same_slot_for_every_key(map_file: Path, salt: str):
    with proxy(map_file, salt=salt) as server:
        asking = User(server)
        traffic = driver(map_file, server)
        for slots in (137, 5_000):
            await traffic.set(Split(share=slots / 10_000, rollout="feed/1", epoch=1))
            differ = [
                key
                for key in keys(3_000)
                if (asking.asks(x_user_id=key.encode())[0] == "treatment") != (bucket(salt, key) < slots)
            ]
            assert differ == []
        asking.close()


async def test_a_cookie_may_carry_the_key(map_file: Path):
    with proxy(map_file, cookie="uid") as server:
        asking = User(server)
        await driver(map_file, server).set(Split(share=0.5, rollout="feed/1"))
        for n in range(200):
            arm = "treatment" if bucket("feed", f"user-{n}") < 5_000 else "control"
            assert asking.asks(cookie=f"a=1; uid=user-{n}; b=2", x_user_id="other")[0] == arm
        assert asking.asks(x_user_id="user-1")[0] == "control"
        asking.close()


async def test_no_key_or_an_empty_one_meets_control(map_file: Path, server: HaproxyServer, user: User):
    await driver(map_file, server).set(Split(share=1.0, rollout="feed/1"))
    assert user.asks(x_user_id="u")[0] == "treatment"
    assert [user.asks()[0], user.asks(x_user_id="")[0], user.asks(x_user_id="   ")[0]] == ["control"] * 3


async def test_the_service_is_told_the_variant_whatever_the_user_says(
    map_file: Path, server: HaproxyServer, user: User
):
    await driver(map_file, server).set(FORWARD)
    for n in range(50):
        arm, variant, _ = user.asks(x_user_id=f"user-{n}", x_variant="forged")
        assert arm == variant == ("treatment" if bucket("feed", f"user-{n}") < 3_000 else "control")


async def test_the_log_names_the_variant_of_each_request(map_file: Path, server: HaproxyServer, user: User):
    await driver(map_file, server).set(Split(share=0.5, rollout="feed/1"))
    arms = [user.asks(x_user_id=f"user-{n}")[0] for n in range(20)]
    while (
        len(said := re.findall(r"variant=(\w+)\W", server.log)) < 20
    ):  # whole words: a line may be half there
        await asyncio.to_thread(share_of, server)
    assert said[:20] == arms


async def test_an_audience_is_believed_from_insiders_and_from_nobody_else(map_file: Path):
    with proxy(map_file) as inside, proxy(map_file, insiders=("192.0.2.0/24",)) as outside:
        traffic = driver(map_file, inside, outside)
        await traffic.set(Split(share=0.0, audience="internal", rollout="feed/1"))
        users = User(inside), User(outside)
        said = [each.asks(x_user_id="u", x_audience="internal") for each in users]
        assert said == [["treatment", "treatment", "internal"], ["control", "control", ""]]
        for forged in ("", "-", "internal2", "INTERNAL", "internal,internal"):
            assert users[0].asks(x_user_id="u", x_audience=forged)[0] == "control"
        for each in users:
            each.close()


async def test_no_request_meets_a_map_that_is_being_replaced(map_file: Path, server: HaproxyServer):
    traffic = driver(map_file, server)
    await traffic.set(Split(share=1.0, rollout="feed/0"))
    arms: set[str] = set()
    done = False

    def ask() -> None:
        asking = User(server)
        while not done:
            arms.add(asking.asks(x_user_id="u")[0])
        asking.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(asyncio.to_thread(ask))
        for epoch in range(60):
            await traffic.set(Split(share=1.0 if epoch % 2 else 0.9999, rollout="feed/0", epoch=epoch))
        done = True
    assert arms == {"treatment"}


async def test_a_reload_in_the_middle_of_a_stage_starts_with_what_is_served(
    map_file: Path, server: HaproxyServer
):
    traffic = driver(map_file, server)
    for split in (FORWARD, FARTHER, ROLLBACK):
        await traffic.set(split)
        await asyncio.to_thread(server.reload)
        assert await traffic.read() == split
        assert await asyncio.to_thread(share_of, server) == expected(split.slots)
    with pytest.raises(StaleEpoch):
        await traffic.set(FARTHER)


async def test_a_process_that_was_killed_comes_back_with_the_rollback(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]
):
    traffic = driver(map_file, *servers)
    await traffic.set(FORWARD)
    servers[1].kill()
    with pytest.raises(TrafficUnavailable, match=rf"{servers[1].socket}: .*is it running\?"):
        await traffic.read()
    with pytest.raises(TrafficUnavailable, match=rf"rolled back in 1 of 2 processes; {servers[1].socket}: "):
        await traffic.set(ROLLBACK)
    assert await asyncio.to_thread(share_of, servers[0]) == 0
    await asyncio.to_thread(servers[1].start)
    assert await traffic.read() == ROLLBACK
    assert await asyncio.to_thread(share_of, servers[1]) == 0


async def test_a_step_forward_moves_nobody_where_one_process_hangs(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]
):
    traffic = driver(map_file, *servers, timeout=0.2)
    await traffic.set(FORWARD)
    before = text_of(map_file)
    servers[0].pause()
    with pytest.raises(TrafficUnavailable, match=rf"{servers[0].socket}: no answer within 0\.2 s"):
        await traffic.set(FARTHER)
    assert text_of(map_file) == before
    assert await asyncio.to_thread(share_of, servers[1]) == expected(3_000)
    servers[0].resume()
    assert await traffic.read() == FORWARD


async def test_a_rollback_reaches_all_but_the_process_that_hangs_and_names_it(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]
):
    traffic = driver(map_file, *servers, timeout=0.2)
    await traffic.set(FORWARD)
    servers[0].pause()
    began = asyncio.get_running_loop().time()
    with pytest.raises(
        TrafficUnavailable, match=rf"rolled back in 1 of 2 processes; {servers[0].socket}: no answer"
    ):
        await traffic.set(ROLLBACK)
    assert asyncio.get_running_loop().time() - began < 5.0
    assert await asyncio.to_thread(share_of, servers[1]) == 0
    assert "latched 1" in text_of(map_file)
    servers[0].resume()
    with pytest.raises(
        TrafficUnavailable, match=r"not all serve the same: .* serves 3000 slots and internal"
    ):
        await traffic.read()
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_a_rollback_does_not_wait_for_a_step_that_hangs(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]
):
    traffic = driver(map_file, *servers, timeout=30.0)
    await traffic.set(FORWARD)
    servers[0].pause()
    forward = asyncio.create_task(traffic.set(FARTHER))
    await asyncio.sleep(0.05)
    rollback = asyncio.create_task(traffic.set(ROLLBACK))
    while await asyncio.to_thread(share_of, servers[1]) > 0:
        pass
    servers[0].resume()
    await rollback
    with pytest.raises(TrafficUnavailable, match="a rollback has ended this step"):
        await forward
    assert await traffic.read() == ROLLBACK


async def test_a_rollback_does_not_wait_for_a_controller_that_holds_the_lock(
    map_file: Path, server: HaproxyServer
):
    traffic = driver(map_file, server, timeout=30.0)
    await traffic.set(FORWARD)
    lock = os.open(f"{map_file}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    rollback = asyncio.create_task(traffic.set(ROLLBACK))
    while await asyncio.to_thread(share_of, server) > 0:
        pass
    assert not rollback.done()
    os.close(lock)
    await rollback
    assert await traffic.read() == ROLLBACK


async def test_a_rollback_reaches_the_processes_though_the_folder_of_the_map_is_gone(tmp_path: Path):
    folder = tmp_path / "maps"
    folder.mkdir()
    map_file = folder / "feed.map"
    map_file.touch()
    with proxy(map_file) as server:
        traffic = driver(map_file, server)
        await traffic.set(FORWARD)
        shutil.rmtree(folder)
        with pytest.raises(
            TrafficUnavailable, match=r"in 1 of 1 processes; .*a reload would bring treatment back"
        ):
            await traffic.set(ROLLBACK)
        assert await asyncio.to_thread(share_of, server) == 0


async def test_processes_that_fail_at_the_last_step_put_the_others_back(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer], monkeypatch: pytest.MonkeyPatch
):
    traffic = driver(map_file, *servers, timeout=0.2)
    await traffic.set(FORWARD)
    first = traffic._processes[0]
    commit = first.commit

    async def hung(version: int):
        servers[0].pause()
        return await commit(version)

    monkeypatch.setattr(first, "commit", hung)
    with pytest.raises(TrafficUnavailable, match="no answer within") as caught:
        await traffic.set(FARTHER)
    assert any("could not be put back" in note for note in caught.value.__notes__)
    assert await asyncio.to_thread(share_of, servers[1]) == expected(3_000)
    assert "slots 3000" in text_of(map_file)


async def test_a_controller_that_was_stopped_before_its_commit_does_not_undo_a_rollback(
    map_file: Path, server: HaproxyServer, monkeypatch: pytest.MonkeyPatch
):
    late, other = driver(map_file, server), driver(map_file, server, timeout=0.2)
    await late.set(FORWARD)
    process = late._processes[0]
    commit = process.commit

    async def overtaken(version: int):
        monkeypatch.undo()
        await other.set(ROLLBACK)  # without the lock, which `late` holds
        return await commit(version)

    monkeypatch.setattr(process, "commit", overtaken)
    with pytest.raises(TrafficUnavailable, match="another controller has changed its map"):
        await late.set(FARTHER)
    assert await other.read() == ROLLBACK
    assert await asyncio.to_thread(share_of, server) == 0


async def test_what_was_changed_by_hand_in_the_proxy_is_found(map_file: Path, server: HaproxyServer):
    traffic = driver(map_file, server)
    await traffic.set(FORWARD)
    server.command(f"set map {map_file} slots 9000")
    with pytest.raises(TrafficUnavailable, match=r"serves 9000 slots and internal .* serves 3000 slots"):
        await traffic.read()
    server.command(f"set map {map_file} slots all")
    with pytest.raises(TrafficUnavailable, match=r"slots 'all', epoch '3', .* are not what a rollout writes"):
        await traffic.set(FARTHER)
    assert await asyncio.to_thread(share_of, server) == 0
    server.command(f"add map {map_file} slots 9000")
    with pytest.raises(TrafficUnavailable, match="a key twice"):
        await traffic.read()
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_without_its_map_file_the_proxy_does_not_start(map_file: Path):
    os.unlink(map_file)
    with pytest.raises(ProcessDied, match=re.escape(str(map_file))):
        await asyncio.to_thread(proxy(map_file).start)


@pytest.mark.parametrize(
    "text", ["", "\n# nothing\n", "garbage\n\x00\x01 x\n", "slots five\n", "slots -1\n"], ids=range(5)
)
async def test_a_map_file_of_garbage_serves_control(map_file: Path, text: str):
    overwrite(map_file, text)
    with proxy(map_file) as server:
        assert await asyncio.to_thread(share_of, server) == 0
        traffic = driver(map_file, server)
        await traffic.set(ROLLBACK)
        assert await traffic.read() == ROLLBACK


async def test_a_map_file_that_is_gone_is_told_and_written_by_a_rollback(
    map_file: Path, server: HaproxyServer
):
    traffic = driver(map_file, server)
    await traffic.set(FORWARD)
    os.unlink(map_file)
    for call in (traffic.read(), traffic.set(FARTHER)):
        with pytest.raises(TrafficUnavailable, match=rf"{map_file}: cannot be read"):
            await call
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_a_socket_that_is_gone_is_named(map_file: Path, server: HaproxyServer):
    traffic = driver(map_file, server)
    os.unlink(server.socket)
    with pytest.raises(
        TrafficUnavailable, match=rf"{server.socket}: No such file or directory; is it running\?"
    ):
        await traffic.set(FORWARD)


async def test_a_map_that_the_proxy_does_not_have_is_named(map_file: Path, server: HaproxyServer):
    traffic = HaproxyTraffic(map_file, sockets=[server.socket], map_name="/etc/other.map")
    with pytest.raises(
        TrafficUnavailable, match=r"it knows no map /etc/other\.map; name it as its configuration"
    ):
        await traffic.set(FORWARD)


async def test_the_runtime_api_may_be_reached_over_tcp(map_file: Path, tmp_path: Path):
    def configuration(port: int) -> str:
        lines = f"global\n    stats socket ipv4@127.0.0.1:{port} level admin\n"
        lines += f"frontend api\n    bind abns@fairlead-{port}\n"
        return f"{lines}    http-request set-var(txn.a) str(a),map({map_file})\n"

    with HaproxyServer(configuration) as server:
        traffic = HaproxyTraffic(map_file, sockets=[f"127.0.0.1:{server.port}"])
        await traffic.set(FORWARD)
        assert await traffic.read() == FORWARD


SETTER = """
import asyncio, sys
from fairlead.rollout import Split
from fairlead.rollout.haproxy import HaproxyTraffic

path, *sockets = sys.argv[1:]
traffic = HaproxyTraffic(path, sockets=sockets)

async def main():
    print("ready", flush=True)
    for turn in range(1_000_000):
        await traffic.set(Split(share=(1 + turn % 5_000) / 10_000, rollout="feed/1", epoch=3))

asyncio.run(main())
"""


async def test_a_controller_that_is_killed_leaves_one_split_or_a_difference_that_reading_tells(
    map_file: Path, servers: tuple[HaproxyServer, HaproxyServer]
):
    traffic, rng = driver(map_file, *servers), random.Random(11)
    for turn in range(8):
        setter = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SETTER, str(map_file), *(each.socket for each in servers)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert setter.stdout is not None
        await setter.stdout.readline()
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        setter.kill()
        await setter.wait()
        try:
            served = (await traffic.read()).share
        except TrafficUnavailable:
            served = None
        shares = {await asyncio.to_thread(share_of, each) for each in servers}
        assert served is None or shares == {expected(round(served * 10_000))}
        wanted = FORWARD if turn < 7 else ROLLBACK
        await traffic.set(wanted)
        assert await traffic.read() == wanted
        assert {await asyncio.to_thread(share_of, each) for each in servers} == {expected(wanted.slots)}


@pytest.mark.parametrize(
    "split",
    [
        Split(share=0.0, rollout="feed/1; clear map"),
        Split(share=0.0, rollout="feed\nclear map"),
        Split(share=0.0, rollout="feed 1"),
        Split(share=0.0, rollout="feed\\"),
        Split(share=0.0, audience="<<"),
        Split(share=0.0, audience="é"),
        Split(share=0.0, rollout="x" * 600),
    ],
    ids=range(7),
)
async def test_a_name_that_would_be_a_command_is_refused(map_file: Path, server: HaproxyServer, split: Split):
    traffic = driver(map_file, server)
    with pytest.raises(InvalidInput, match="would not read as one word"):
        await traffic.set(split)
    assert await traffic.read() == Split(share=0.0)


async def test_a_full_disk_stops_a_step_and_not_a_rollback(
    map_file: Path, server: HaproxyServer, tmp_path: Path
):
    script = tmp_path / "full.py"
    overwrite(script, FULL)
    await run_python(str(script), str(map_file), server.socket)
    assert "latched 1" in text_of(map_file)
    assert await asyncio.to_thread(share_of, server) == 0
    await asyncio.to_thread(server.reload)
    assert await asyncio.to_thread(share_of, server) == 0


FULL = """
import asyncio, resource, sys
from fairlead.errors import NoSpace, TrafficUnavailable
from fairlead.rollout import Split
from fairlead.rollout.haproxy import HaproxyTraffic

traffic = HaproxyTraffic(sys.argv[1], sockets=[sys.argv[2]])
forward = Split(share=0.05, rollout="feed/1", epoch=3)

async def main():
    await traffic.set(forward)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    try:
        await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
    except TrafficUnavailable as error:
        assert isinstance(error.__cause__, NoSpace), error
    else:
        raise AssertionError
    assert await traffic.read() == forward
    for _ in range(2):
        await traffic.set(Split(share=0.0, rollout="feed/1", epoch=3, latched=True))
    assert (await traffic.read()).latched

asyncio.run(main())
"""


async def run_python(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", *words, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
