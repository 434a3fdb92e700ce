"""Flags over real HTTP: what a follower does when the server is killed, hangs, lies or breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from fairlead.errors import InvalidInput
from fairlead.flags import EvaluationContext, FlagDelivery, FlagSet, write_flag_file
from fairlead.flags.httpx import HttpFlags
from fairlead.rollout import FlagTraffic, Split
from tests.integration.flags.servers import TOKEN, FlagServer, odd_server, until, value_of, whole
from tests.unit.flags.documents import BROKEN, EMPTY, document

FOLLOWERS = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flags.json"
    write_flag_file(path, document("v1", version=1))
    return path


@pytest.fixture
def server(path: Path) -> Iterator[FlagServer]:
    with FlagServer(path) as server:
        yield server


def follow(url: str, *, kept: Path | None = None, **options) -> FlagDelivery:
    settings = {
        "token": TOKEN,
        "timeout": 1.0,
        "silence": 1.0,
        "poll_every": 0.2,
        "longest_wait": 0.5,
        **options,
    }
    source = HttpFlags(url, rng=random.Random(7), **settings)
    return FlagDelivery(
        FlagSet.parse(EMPTY, source="shipped"), source, last_known_good=kept, start_timeout=5.0
    )


async def test_a_hundred_followers_evaluate_every_new_document(server, path, capsys):
    async with AsyncExitStack() as stack:
        followers = [follow(server.url, timeout=5.0, silence=5.0) for _ in range(FOLLOWERS)]
        await asyncio.gather(*(stack.enter_async_context(each) for each in followers))
        # Each has its stream open once it has been confirmed twice: by the answer, and by the stream.
        assert {value_of(each) for each in followers} == {"v1"}
        await asyncio.sleep(1.0)
        took = []
        for version in range(2, 7):
            began = time.monotonic()
            await asyncio.to_thread(write_flag_file, path, document(f"v{version}", version=version))
            await until(lambda version=version: all(value_of(each) == f"v{version}" for each in followers))
            took.append(time.monotonic() - began)
    with capsys.disabled():
        print(
            f"\nwritten → evaluated by {FOLLOWERS} followers over HTTP: "
            f"median {statistics.median(took) * 1000:.0f} ms, slowest {max(took) * 1000:.0f} ms (n = {len(took)})"
        )


async def test_a_server_that_is_killed_leaves_the_flags_as_they_were_and_is_found_again(server, path):
    async with follow(server.url) as follower:
        await until(lambda: value_of(follower) == "v1")
        server.kill()
        await until(lambda: follower.status.error)
        assert value_of(follower) == "v1"
        await asyncio.to_thread(write_flag_file, path, document("v2", version=2))
        await asyncio.to_thread(server.restart)
        await until(lambda: value_of(follower) == "v2")
        assert follower.status.error == ""


async def test_a_server_that_hangs_costs_an_evaluation_nothing_and_is_said(server, path):
    async with follow(server.url) as follower:
        await until(lambda: value_of(follower) == "v1")
        server.pause()
        await until(lambda: follower.status.error, within=5.0)
        assert value_of(follower) == "v1"
        assert follower.status.age_seconds > 0.5
        await asyncio.to_thread(write_flag_file, path, document("v2", version=2))
        server.resume()
        await until(lambda: value_of(follower) == "v2")


async def test_a_service_starts_from_its_disk_while_the_server_hangs_or_is_gone(server, path, tmp_path):
    kept = tmp_path / "kept"
    async with follow(server.url, kept=kept) as follower:
        assert value_of(follower) == "v1"
    server.pause()
    began = time.monotonic()
    async with follow(server.url, kept=kept, timeout=0.5) as follower:
        assert time.monotonic() - began < 2.0
        assert value_of(follower) == "v1"
        assert follower.status.source == "last_known_good"
    server.kill()
    async with follow(server.url, kept=kept) as follower:
        assert value_of(follower) == "v1"
        assert "ConnectError" in follower.status.error
        await asyncio.to_thread(server.restart)
        await until(lambda: follower.status.source == "http")


async def test_two_services_share_one_last_known_good_and_it_stays_whole(server, path, tmp_path):
    kept = tmp_path / "kept"
    async with follow(server.url, kept=kept) as one, follow(server.url, kept=kept) as other:
        for version in range(2, 12):
            await asyncio.to_thread(write_flag_file, path, document(f"v{version}", version=version))
            await until(lambda version=version: value_of(one) == value_of(other) == f"v{version}")
    server.kill()
    async with follow(server.url, kept=kept) as late:
        assert value_of(late) == "v11"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flags.json", "kept"]


async def test_a_broken_or_older_file_at_the_server_reaches_nobody(server, path):
    async with follow(server.url) as follower:
        await until(lambda: value_of(follower) == "v1")
        path.write_bytes(BROKEN)
        await asyncio.sleep(0.3)
        path.write_bytes(document("v0", version=0))
        await asyncio.sleep(0.3)
        assert value_of(follower) == "v1"
        assert follower.status.refused == 0, "the server itself refused them"
        path.write_bytes(document("v2", version=2))
        await until(lambda: value_of(follower) == "v2")


async def test_a_restored_control_plane_is_refused_until_its_epoch_is_higher(server, path, tmp_path):
    path.write_bytes(document("v7", version=7))
    async with follow(server.url) as follower:
        await until(lambda: value_of(follower) == "v7")
        server.kill()
        path.write_bytes(document("restored", version=3))
        await asyncio.to_thread(server.restart)
        await until(lambda: "older" in follower.status.error)
        assert value_of(follower) == "v7"
        path.write_bytes(document("restored", version=3, epoch=1))
        await until(lambda: value_of(follower) == "restored")


async def test_a_wrong_token_is_told_apart_and_says_nothing_of_itself(server):
    async with follow(server.url, token="wrong-and-secret") as follower:
        assert "answered 401; check the token" in follower.status.error
        assert "secret" not in follower.status.error
        assert value_of(follower) == "none"


async def test_above_the_bound_of_subscribers_a_follower_asks_and_still_hears(path):
    with FlagServer(path, subscribers=1) as server:
        async with follow(server.url) as one, follow(server.url) as other:
            await asyncio.to_thread(write_flag_file, path, document("v2", version=2))
            await until(lambda: value_of(one) == value_of(other) == "v2")
            assert one.status.error == other.status.error == ""


async def test_the_endpoint_answers_as_http_asks(server):
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False) as client:
        first = await client.get(server.url)
        assert first.status_code == 200
        assert first.content == document("v1", version=1)
        tag = first.headers["etag"]
        for asked, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
            again = await client.get(server.url, headers={"if-none-match": asked})
            assert again.status_code == status
            assert again.headers["etag"] == tag
            assert bool(again.content) is (status == 200)
        head = await client.head(server.url)
        assert (head.content, head.headers["content-length"]) == (b"", str(len(first.content)))
        assert (await client.post(server.url)).status_code == 405
        for sent in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"):
            assert (await client.get(server.url, headers={"authorization": sent})).status_code == 401


async def test_a_stream_names_the_present_version_only_to_whoever_lacks_it(server, path):
    headers = {"authorization": f"Bearer {TOKEN}", "accept": "text/event-stream"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
        async with client.stream("GET", server.url) as stream:
            lines = stream.aiter_lines()
            tag = (await anext(lines)).removeprefix("id: ")
            assert [await anext(lines) for _ in range(3)] == [
                "event: version",
                'data: {"epoch":0,"version":1}',
                "",
            ]
            assert await anext(lines) == ": alive", "a heartbeat"
        async with client.stream("GET", server.url, headers={"last-event-id": tag}) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": alive"
            await asyncio.to_thread(write_flag_file, path, document("v2", version=2))
            async for line in lines:
                if line.startswith("id: "):
                    assert line != f"id: {tag}"
                    break


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole(BROKEN), "is not a variant"),
        (whole(b"<html>"), "correct the JSON"),
        (whole(b"oops", "500 Internal Server Error"), "answered 500"),
        (whole(b"", "302 Found", "location: http://127.0.0.1:1/"), "redirects are not followed"),
        (whole(b"", "304 Not Modified"), "answered 304"),
        (whole(b" " * 1_048_577), "larger than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 3_000_000, "larger than 1048576 bytes"),
        (whole(document("v2"))[:-5], "RemoteProtocolError"),
        (whole(document("v2"), "200 OK", "content-encoding: gzip"), "compressed"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
    ids=[
        "broken",
        "no-json",
        "500",
        "redirect",
        "304",
        "declared",
        "endless",
        "cut",
        "gzip",
        "nonsense",
        "closed",
    ],
)
async def test_an_answer_that_is_no_good_document_changes_nothing_and_is_said(
    answer: bytes, said: str, tmp_path
):
    answers = [whole(document("v1"))]
    kept = tmp_path / "kept"
    async with (
        odd_server(lambda headers, writer: writer.write(answers[-1])) as url,
        follow(url, kept=kept) as follower,
    ):
        assert value_of(follower) == "v1"
        on_disk = kept.read_bytes()
        answers.append(answer)
        await until(lambda: said in follower.status.error)
        assert value_of(follower) == "v1"
        assert kept.read_bytes() == on_disk
        answers.append(whole(document("v2")))
        await until(lambda: value_of(follower) == "v2")


async def test_a_server_that_sends_a_byte_at_a_time_is_given_up_at_the_timeout():
    async def drip(headers, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1_000):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with odd_server(drip) as url, follow(url, timeout=0.3) as follower:
        await until(lambda: follower.status.error, within=3.0)
        assert "flags from http" in follower.status.error


async def test_a_stream_that_breaks_off_or_falls_silent_is_asked_past_and_opened_again():
    opened = []
    version = 1

    async def answer(headers, writer):
        if "text/event-stream" not in headers["accept"]:
            body = document(f"v{version}", version=version)
            tag = f'etag: "{version}"'
            known = headers.get("if-none-match") == f'"{version}"'
            writer.write(
                f"HTTP/1.1 304 Not Modified\r\n{tag}\r\nconnection: close\r\n\r\n".encode()
                if known
                else whole(body, "200 OK", tag)
            )
            return
        opened.append(headers.get("last-event-id"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        if len(opened) % 3 == 0:
            writer.write(b"id: cut in the mid")
        elif len(opened) % 3 == 1:
            writer.write(b": alive\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(30.0)
        else:
            writer.write(b"x" * 20_000)

    async with odd_server(answer) as url, follow(url, silence=0.2) as follower:
        await until(lambda: len(opened) >= 7)
        assert set(opened) == {'"1"'}
        version = 2
        await until(lambda: value_of(follower) == "v2")


async def test_a_kept_connection_that_is_closed_as_it_is_asked_again_costs_no_round():
    rounds = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal rounds
        head = await reader.readuntil(b"\r\n\r\n")
        rounds += b"application/json" in head
        answer = whole(document("v1")).replace(b"connection: close\r\n", b"")
        writer.write(answer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/flags"
        follower = follow(url, poll_every=2.0)
        reported = []
        follower.report = reported.append
        async with follower:
            await until(lambda: rounds >= 3)
        assert reported == []
    finally:
        server.close()


async def test_a_stream_that_never_says_anything_is_left_and_the_document_is_asked_for():
    opened = 0
    version = 1

    async def answer(headers, writer):
        nonlocal opened
        if "text/event-stream" in headers["accept"]:
            opened += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(30.0)
        else:
            writer.write(whole(document(f"v{version}", version=version)))

    async with odd_server(answer) as url, follow(url, silence=0.3) as follower:
        await until(lambda: opened == 1)
        await until(lambda: follower.status.error)
        for version in range(2, 6):
            await until(lambda version=version: value_of(follower) == f"v{version}", within=1.5)
        assert opened == 1


async def test_a_drip_of_refused_documents_is_read_once_each_and_said_for_as_long_as_it_lasts():
    bodies = 0

    def answer(headers, writer):
        nonlocal bodies
        if headers.get("if-none-match") == '"bad"':
            writer.write(b'HTTP/1.1 304 Not Modified\r\netag: "bad"\r\nconnection: close\r\n\r\n')
        else:
            bodies += 1
            writer.write(whole(BROKEN, "200 OK", 'etag: "bad"'))

    async with odd_server(answer) as url, follow(url, poll_every=0.02) as follower:
        await asyncio.sleep(0.5)
        assert "is not a variant" in follower.status.error
        assert follower.status.refused == 1
        # The question for a stream is answered by the document too: its body is not read.
        assert bodies < 60


async def test_cancelled_at_any_moment_a_follower_leaves_no_task_and_no_connection(server):
    before = asyncio.all_tasks()
    for moment in range(20):
        follower = follow(server.url)
        entering = asyncio.create_task(follower.__aenter__())
        await asyncio.sleep(moment * 0.003)
        if not entering.done():
            entering.cancel()
            await asyncio.wait([entering])
        await follower.__aexit__(None, None, None)
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


def test_without_a_loop_flags_are_followed_as_well(server, path):
    with follow(server.url) as follower:
        assert value_of(follower) == "v1"
        write_flag_file(path, document("v2", version=2))
        end = time.monotonic() + 5.0
        while value_of(follower) != "v2" and time.monotonic() < end:
            time.sleep(0.005)
        assert follower.flags.string("feed", EvaluationContext(), "none") == "v2"


async def test_a_rollback_of_a_rollout_reaches_a_follower_though_nobody_counted_the_version(server, path):
    variants = {"control": "control", "treatment": "treatment"}
    flag = {"state": "ENABLED", "variants": variants, "defaultVariant": "control"}
    await asyncio.to_thread(
        write_flag_file, path, json.dumps({"metadata": {"version": 2}, "flags": {"feed": flag}}).encode()
    )
    traffic = FlagTraffic(path, "feed")
    users = [EvaluationContext(targeting_key=f"user-{number}") for number in range(200)]
    async with follow(server.url) as follower:

        def treated() -> int:
            return sum(follower.flags.string("feed", user, "none") == "treatment" for user in users)

        await traffic.set(Split(share=0.5, rollout="feed/1", epoch=1))
        await until(lambda: 70 <= treated() <= 130)
        await traffic.set(Split(share=0.0, rollout="feed/1", epoch=1, latched=True))
        await until(lambda: treated() == 0)
        assert (follower.status.version, follower.status.error) == (2, "")
    await traffic.close()


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://control/flags"},
        {"url": "control/flags"},
        {"url": None},
        {"url": "http://[::1/flags"},
        {"token": "two words"},
        {"token": ""},
        {"token": "ümlaut"},
        {"poll_every": 0.0},
        {"timeout": 1e9},
        {"silence": float("nan")},
        {"longest_wait": -1.0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(options):
    with pytest.raises(InvalidInput, match=r"HttpFlags\."):
        HttpFlags(**{"url": "http://control/flags", **options})


def test_what_may_be_secret_in_an_address_is_in_no_message():
    source = HttpFlags("https://user:secret@control:8443/flags?key=secret")
    assert source.place == "https://control:8443/flags"
