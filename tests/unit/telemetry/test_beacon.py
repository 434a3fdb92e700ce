"""What browsers report is bounded, checked, timed by the server's clock, and taken once."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.telemetry import (
    BeaconEndpoint,
    DeadLetterFile,
    MemorySink,
    PageMeasured,
    ScriptFailed,
    decode_event,
    encode_event,
    read_dead_letters,
)
from fairlead.telemetry.beacon import script

VIEW = "0123456789abcdef"


def page(n: int = 1, **changes: object) -> dict[str, object]:
    return {
        "kind": "page", "view": VIEW, "n": n, "at": 1_000.0, "page": "/feed/{user}", "lcp": 1_234.5, "cls": 0.02,
        "nav": "navigate", **changes,
    }  # fmt: skip


def report(*items: object, sent: float = 1_000.0) -> bytes:
    return json.dumps({"sent": sent, "items": items}).encode()


class Browser:
    """Talks to an endpoint as a server would on its behalf."""

    def __init__(self, **options: Any) -> None:
        self.sink = MemorySink()
        self.clock = ManualClock()
        self.endpoint = BeaconEndpoint(self.sink, clock=self.clock, **options)

    async def ask(
        self, method: str = "POST", body: bytes = b"", headers: dict[str, str] | None = None, parts: int = 1
    ) -> tuple[int, dict[str, str], bytes]:
        step = max(1, -(-len(body) // parts))
        left = [body[start : start + step] for start in range(0, max(1, len(body)), step)]
        sent: list[Any] = []

        async def receive() -> Any:
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        fields = {"host": "shop.example", **(headers or {})}
        scope = {
            "type": "http", "method": method, "path": "/", "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }  # fmt: skip
        await self.endpoint(scope, receive, send)
        start, end = sent
        answered = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], answered, end["body"]


async def test_a_page_view_becomes_an_event_in_seconds_on_the_servers_clock() -> None:
    browser = Browser()
    item = page(at=400.0, key="u1", variant="on", inp=80, scroll=16.0, ttfb=None)
    status, _, _ = await browser.ask(body=report(item, sent=2_400.0))
    assert status == 204
    assert browser.sink.events == [
        PageMeasured(
            at_utc_seconds=browser.clock.utc() - 2.0, page="/feed/{user}", view_id=VIEW, navigation="navigate",
            largest_contentful_paint_seconds=1.2345, cumulative_layout_shift=0.02,
            interaction_to_next_paint_seconds=0.08, scroll_latency_seconds=0.016, targeting_key="u1", variant="on",
        )
    ]  # fmt: skip
    assert decode_event(encode_event(browser.sink.events[0])) == browser.sink.events[0]


async def test_an_error_becomes_an_event_that_is_a_failure() -> None:
    browser = Browser()
    item = {
        "kind": "error",
        "type": "rejection",
        "view": VIEW,
        "n": 2,
        "at": 0,
        "name": "TypeError",
        "message": "no",
    }
    await browser.ask(body=report(item))
    [event] = browser.sink.of(ScriptFailed)
    assert event.failed()
    assert (event.kind, event.error, event.number) == ("rejection", "TypeError", 2)


@pytest.mark.parametrize("sent", [-1e18, 0.0, 1e18])
async def test_whatever_a_browsers_clock_says_an_event_is_at_most_a_day_old_and_never_of_the_future(
    sent: float,
) -> None:
    browser = Browser()
    await browser.ask(body=report(page(), sent=sent))
    age = browser.clock.utc() - browser.sink.events[0].at_utc_seconds
    assert 0.0 <= age <= 86_400.0


async def test_an_item_that_comes_again_is_taken_once() -> None:
    browser = Browser()
    for _ in range(3):
        status, _, _ = await browser.ask(body=report(page(1), page(2)))
        assert status == 204
    assert len(browser.sink.events) == 2
    assert (browser.endpoint.taken, browser.endpoint.repeated) == (2, 4)


@pytest.mark.parametrize(
    "item",
    [
        page(view="../../etc/passwd"),
        page(view=VIEW.upper()),
        page(n=0),
        page(n=10**9),
        page(lcp=-1),
        page(lcp=1e12),
        page(cls="much"),
        page(page="x" * 201),
        page(kind="order"),
        {"kind": "error", "view": VIEW, "n": 1, "at": 0, "type": "odd"},
        {"kind": "page"},
        7,
        None,
        [[[]]],
    ],
    ids=lambda item: json.dumps(item)[:40],
)
async def test_an_item_that_does_not_fit_is_put_aside_and_its_neighbours_are_kept(
    item: object, tmp_path: Path
) -> None:
    letters = DeadLetterFile(tmp_path / "letters.jsonl")
    browser = Browser(dead_letters=letters)
    status, _, _ = await browser.ask(body=report(page(1), item, page(2)))
    assert status == 204
    assert len(browser.sink.events) == 2
    [letter] = read_dead_letters(letters.path)
    assert json.loads(letter.line) == item
    assert browser.endpoint.malformed == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        b'{"sent":NaN,"items":[]}',
        report(*[page(n) for n in range(1, 102)]),
        b'{"sent":1,"items":' + b"[" * 5_000,
    ],
    ids=["empty", "null", "no fields", "binary", "deep", "NaN", "too many", "deep inside"],
)
async def test_what_is_no_report_is_a_400_and_counted(body: bytes) -> None:
    browser = Browser()
    status, _, _ = await browser.ask(body=body)
    assert status == 400
    assert browser.endpoint.malformed == 1
    assert browser.sink.events == []


async def test_a_report_beyond_the_bound_is_a_413_however_it_is_cut() -> None:
    browser = Browser(max_bytes=1_024)
    for parts in (1, 10):
        status, _, _ = await browser.ask(body=b"x" * 1_025, parts=parts)
        assert status == 413


async def test_a_client_that_leaves_in_the_middle_leaves_nothing() -> None:
    browser = Browser()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    await browser.endpoint({"type": "http", "method": "POST", "headers": []}, receive, send)
    assert browser.sink.events == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://shop.example", 204),
        ("http://shop.example", 204),
        ("https://www.example.com", 204),
        ("https://evil.example", 403),
        ("https://shop.example.evil.example", 403),
        ("null", 403),
    ],
)
async def test_only_the_site_itself_and_named_origins_may_report(origin: str, status: int) -> None:
    browser = Browser(origins=["https://www.example.com"])
    found, headers, _ = await browser.ask(body=report(page()), headers={"origin": origin})
    assert found == status
    named = origin == "https://www.example.com"
    assert headers.get("access-control-allow-origin") == (origin if named else None)


@pytest.mark.parametrize(
    "origins", ["https://a.example", ["a.example"], ["https://a.example/"], ["*"], ["https://*.a.example"]]
)
def test_an_origin_that_is_none_is_refused(origins: Any) -> None:
    with pytest.raises(InvalidInput, match="origins"):
        BeaconEndpoint(MemorySink(), origins=origins)


async def test_a_client_over_its_limit_is_a_429() -> None:
    browser = Browser(allow=lambda scope: scope["client"][0] != "127.0.0.1")
    status, _, _ = await browser.ask(body=report(page()))
    assert status == 429
    assert browser.sink.events == []


async def test_the_script_is_served_once_and_confirmed_afterwards() -> None:
    browser = Browser()
    status, headers, body = await browser.ask("GET")
    assert (status, body) == (200, script())
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-length"] == str(len(body))
    again, _, empty = await browser.ask("GET", headers={"if-none-match": f'"other", W/{headers["etag"]}'})
    assert (again, empty) == (304, b"")
    head, same, nothing = await browser.ask("HEAD")
    assert (head, same["content-length"], nothing) == (200, str(len(body)), b"")


async def test_another_method_is_a_405() -> None:
    status, headers, _ = await Browser().ask("DELETE")
    assert (status, headers["allow"]) == (405, "GET, HEAD, POST")


def test_the_script_is_two_kilobytes_at_most_on_its_way_and_four_unpacked() -> None:
    assert len(gzip.compress(script())) <= 2_048
    assert len(script()) <= 4_096
    assert b"eval" not in script()
    assert b"//" not in script().replace(b"://", b"")


async def test_a_body_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.telemetry.beacon._BODY_WITHIN", 0.0)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"shop.example")]}
    await BeaconEndpoint(MemorySink())(scope, receive, send)
    assert sent[0]["status"] == 408


async def test_dead_letters_are_written_beside_the_loop(tmp_path: Path) -> None:
    class Watched(DeadLetterFile):
        threads: ClassVar[list[threading.Thread]] = []

        def put(self, line: bytes, *, reason: str, source: str) -> None:
            self.threads.append(threading.current_thread())
            super().put(line, reason=reason, source=source)

    await Browser(dead_letters=Watched(tmp_path / "letters")).ask(body=b"no report")
    assert threading.main_thread() not in Watched.threads
    assert len(Watched.threads) == 1


async def test_an_origin_that_says_nothing_is_not_this_site() -> None:
    assert (await Browser().ask(body=report(page()), headers={"host": "", "origin": "null"}))[0] == 403
