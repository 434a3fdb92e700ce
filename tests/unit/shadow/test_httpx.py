"""What HttpxCandidate sends and keeps, over a transport that answers by itself."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.shadow import Answer, Mirror, RawJson
from fairlead.shadow.asgi import AsgiCandidate, MirroredRequest, MirroredResponse, MirrorMiddleware
from fairlead.shadow.httpx import HttpxCandidate
from tests.unit.shadow.apps import answers, ask


class Transport(httpx.AsyncBaseTransport):
    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.sent: list[httpx.Request] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.sent.append(request)
        return self.answers.pop(0)

    async def aclose(self) -> None:
        self.closed = True


def request(
    target: str = "/feed?q=1", *headers: tuple[bytes, bytes], body: bytes = b"", **settings: Any
) -> MirroredRequest:
    return MirroredRequest(
        method="GET",
        path=target.partition("?")[0],
        target=target,
        headers=((b"host", b"shop"), *headers),
        body=body,
        scope={},
        **settings,
    )


async def test_the_question_goes_as_it_came_to_the_candidates_own_address():
    transport = Transport(httpx.Response(200, json={"a": 1}), httpx.Response(302, headers={"location": "/x"}))
    candidate = HttpxCandidate("http://candidate:8001/v2/", transport=transport)
    answer = await candidate(request("/a/../b%2F?q=%20", (b"x-a", b"1"), (b"x-a", b"2"), body=b"abc"))
    (sent,) = transport.sent
    assert sent.extensions["target"] == b"/v2/a/../b%2F?q=%20"
    assert sent.content == b"abc"
    assert sent.headers.get_list("x-a") == ["1", "2"]
    assert sent.headers["host"] == "candidate:8001"
    assert sent.headers["x-forwarded-host"] == "shop"
    assert answer.value == MirroredResponse(200, {"content-type": "application/json"}, RawJson(b'{"a":1}'))
    assert (await candidate(request())).value.status == 302  # not followed
    await candidate.close()
    assert transport.closed


async def test_what_one_answer_sets_is_not_sent_with_the_next_question():
    transport = Transport(httpx.Response(200, headers={"set-cookie": "whose=ann"}), httpx.Response(200))
    candidate = HttpxCandidate("http://candidate", transport=transport)
    await candidate(request())
    await candidate(request())
    assert "cookie" not in transport.sent[1].headers


async def test_a_failing_status_speaks_against_the_candidate_and_a_missing_page_does_not():
    transport = Transport(httpx.Response(503), httpx.Response(404))
    candidate = HttpxCandidate("http://candidate", transport=transport)
    assert (await candidate(request())).failed
    assert not (await candidate(request())).failed


async def test_an_answer_that_is_too_large_or_compressed_all_the_same_is_not_kept_nor_unpacked():
    bomb = gzip.compress(b" " * 10_000_000)
    transport = Transport(
        httpx.Response(200, stream=Unread(bomb), headers={"content-encoding": "gzip"}),
        httpx.Response(200, stream=Unread(b"..."), headers={"content-encoding": "br"}),
        httpx.Response(200, content=b"x" * 101),
        httpx.Response(200, content=b"x", headers={"content-encoding": "identity"}),
    )
    candidate = HttpxCandidate("http://candidate", transport=transport)
    assert [(await candidate(request(body_bytes=100))).whole for _ in range(4)] == [False, False, False, True]


class Unread(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pytest.fail("nobody needs to read it")
        yield self.data


async def test_a_question_that_http_cannot_carry_is_no_failure_of_the_candidate():
    class Refuses(Transport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.LocalProtocolError("illegal target characters")

    candidate = HttpxCandidate("http://candidate", transport=Refuses())
    assert not (await candidate(request("/\x80"))).whole


async def test_the_host_that_a_proxy_in_front_has_noted_is_kept():
    transport = Transport(httpx.Response(200))
    await HttpxCandidate("http://candidate", transport=transport)(
        request("/", (b"x-forwarded-host", b"shop.example"))
    )
    assert transport.sent[0].headers.get_list("x-forwarded-host") == ["shop.example"]


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(InvalidInput, match="holds a password") as refused:
        HttpxCandidate("http://ann:secret@candidate")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_a_body_that_http_does_not_carry_is_not_compared(method: str, status: int):
    # As an application hands it to its server, and as a client gets it from there.
    control = answers({"a": 1}, status)
    compared = Mirror("feed", noise_share=0.0, clock=ManualClock())
    json = {"content-type": "application/json"}
    over_http = HttpxCandidate("http://candidate", transport=Transport(httpx.Response(status, headers=json)))
    await ask(MirrorMiddleware(control, mirror=compared, candidate=over_http), method=method)
    await ask(MirrorMiddleware(control, mirror=compared, candidate=AsgiCandidate(control)), method=method)
    assert compared.report().outcomes == {"same": 2}


async def test_what_counts_of_a_response_is_said_once_for_every_candidate():
    headers = (("Content-Type", "application/json"), ("X-Version", "7"))
    raw = tuple((name.encode(), value.encode()) for name, value in headers)
    transport = Transport(httpx.Response(200, headers=headers, content=b'{ "a": 1}'))

    async def own(asked: MirroredRequest) -> Answer:
        return asked.answer(200, raw, b'{"a": 1 }')

    async def too_large(asked: MirroredRequest) -> Answer:
        return asked.answer(200, raw, b" " * 21)

    compared = Mirror("feed", noise_share=0.0, clock=ManualClock())
    control = answers({"a": 1}, headers=((b"x-version", b"7"),))
    here = AsgiCandidate(answers({"a": 1}, headers=((b"X-Version", b"7"),)))
    for candidate in (HttpxCandidate("http://candidate", transport=transport), own, here, too_large):
        app = MirrorMiddleware(
            control,
            mirror=compared,
            candidate=candidate,
            headers=("X-Version", "content-type"),
            body_bytes=20,
        )
        await ask(app)
    assert compared.report().outcomes == {"same": 3, "cut": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "candidate:8001"},
        {"url": "ftp://candidate"},
        {"url": "http://"},
        {"url": "http://candidate/?q=1"},
        {"url": "http://[::1"},
        {"url": 5},
        {"url": "http://candidate", "connections": 0},
    ],
    ids=str,
)
def test_addresses_and_bounds_that_are_none_are_refused(settings: dict[str, Any]):
    with pytest.raises(InvalidInput):
        HttpxCandidate(**settings)
