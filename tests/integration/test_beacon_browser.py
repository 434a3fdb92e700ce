"""The beacon in a real Chromium: it reports what the browser itself measured, and loses and doubles nothing."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from fairlead.telemetry import BeaconEndpoint, MemorySink, PageMeasured, ScriptFailed

HTML = """<!doctype html><title>feed</title>
<script async src="/beacon/" data-page="/feed/{user}" data-variant="on" data-key="u1"></script>
<script nonce="t">
  // The browser's own word on the same things, kept by the test.
  window.own = {lcp: 0, shift: 0, events: []};
  new PerformanceObserver(l => l.getEntries().forEach(e => own.lcp = e.startTime))
    .observe({type: "largest-contentful-paint", buffered: true});
  new PerformanceObserver(l => l.getEntries().forEach(e => { if (!e.hadRecentInput) own.shift += e.value; }))
    .observe({type: "layout-shift", buffered: true});
  new PerformanceObserver(l => l.getEntries().forEach(e => e.interactionId && own.events.push(e.duration)))
    .observe({type: "event", buffered: true, durationThreshold: 16});
</script>
<body style="margin:0;height:5000px"><div id="late"></div><p>first</p><button id="slow">slow</button>
<img src="/image.png" width="600" height="400">
<script nonce="t">
  setTimeout(() => late.style.height = "120px", 300);
  slow.addEventListener("click", () => { const end = performance.now() + 120; while (performance.now() < end); });
</script>"""


def png(width: int, height: int) -> bytes:
    """Noise: an image of few bytes a pixel is no content to the browser, so it would be no largest paint."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\x00" + random.Random(row).randbytes(3 * width) for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


POLICY = "default-src 'self'; script-src 'self' 'nonce-t'; style-src 'unsafe-inline'"


class Site:
    """A page, the beacon and the events that came of it."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.beacon = BeaconEndpoint(self.sink)
        self.posts = 0
        self.refuses = False

    def app(self) -> Starlette:
        async def feed(request: Request) -> Response:
            return HTMLResponse(HTML, headers={"content-security-policy": POLICY})

        async def icon(request: Request) -> Response:
            return Response(status_code=204)

        async def image(request: Request) -> Response:
            await asyncio.sleep(0.4)
            return Response(png(300, 200), media_type="image/png")

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "POST":
                self.posts += 1
                if self.refuses:
                    await Response(status_code=503)(scope, receive, send)
                    return
            await self.beacon(scope, receive, send)

        return Starlette(
            routes=[
                Route("/feed", feed),
                Route("/other", feed),
                Route("/image.png", image),
                Route("/favicon.ico", icon),
                Mount("/beacon", counted),
            ]
        )

    async def pages(self, count: int = 1) -> list[PageMeasured]:
        for _ in range(200):
            if len(found := self.sink.of(PageMeasured)) >= count:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{len(self.sink.of(PageMeasured))} of {count} reports came")


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
async def address(site: Site) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(site.app(), log_level="critical", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield launched
        await launched.close()


@pytest.fixture
async def context(browser: Browser) -> BrowserContext:
    return await browser.new_context()


async def hide(page: Page) -> None:
    """What the browser does when the tab is left: headless Chromium has no other tab to go to."""
    await page.evaluate(
        "Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});"
        "dispatchEvent(new Event('visibilitychange'))"
    )


async def test_what_is_reported_is_what_the_browser_measured(
    site: Site, address: str, context: BrowserContext
):
    page = await context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    await page.goto(f"{address}/feed", wait_until="load")
    await page.wait_for_timeout(700)
    await page.mouse.move(50, 50)
    for _ in range(5):
        await page.mouse.wheel(0, 200)
        await page.wait_for_timeout(60)
    await page.evaluate("scrollTo(0, 0)")
    await page.click("#slow")
    await page.wait_for_timeout(300)
    own = await page.evaluate("own")
    zero = await page.evaluate("performance.getEntriesByType('navigation')[0].responseStart")
    await hide(page)
    [event] = await site.pages()
    assert failures == []  # a strict content security policy included
    assert (event.page, event.variant, event.targeting_key, event.navigation) == (
        "/feed/{user}",
        "on",
        "u1",
        "navigate",
    )
    assert event.largest_contentful_paint_seconds == pytest.approx(own["lcp"] / 1000, abs=0.002)
    assert event.largest_contentful_paint_seconds > 0.4  # the image came late
    assert event.cumulative_layout_shift == pytest.approx(own["shift"], abs=1e-6)
    assert event.cumulative_layout_shift > 0
    assert event.interaction_to_next_paint_seconds == pytest.approx(max(own["events"]) / 1000, abs=0.001)
    assert event.interaction_to_next_paint_seconds >= 0.12
    assert event.first_byte_seconds == pytest.approx(zero / 1000, abs=0.002)
    assert event.scroll_latency_seconds is not None
    assert 0 < event.scroll_latency_seconds < 1


async def test_errors_that_nobody_caught_are_reported_without_the_pages_query(
    site: Site, address: str, context: BrowserContext
):
    page = await context.new_page()
    await page.goto(f"{address}/feed?token=secret", wait_until="load")
    await page.evaluate(
        "setTimeout(() => { throw new TypeError('broke') }); Promise.reject(new RangeError('turned down')); null"
    )
    for _ in range(100):
        if len(site.sink.of(ScriptFailed)) == 2:
            break
        await asyncio.sleep(0.05)
    found = {(event.kind, event.error, event.message) for event in site.sink.of(ScriptFailed)}
    assert found == {("error", "TypeError", "broke"), ("rejection", "RangeError", "turned down")}
    assert not any("secret" in event.where for event in site.sink.of(ScriptFailed))


async def test_what_happens_offline_comes_once_when_the_line_is_back(
    site: Site, address: str, context: BrowserContext
):
    page = await context.new_page()
    await page.goto(f"{address}/feed", wait_until="load")
    await context.set_offline(True)
    for number in range(3):
        await page.evaluate(f"setTimeout(() => {{ throw new Error('offline {number}') }})")
    await hide(page)
    await page.wait_for_timeout(500)
    assert site.sink.events == []
    await context.set_offline(False)
    await site.pages()
    await page.wait_for_timeout(500)
    assert len(site.sink.of(PageMeasured)) == 1
    assert sorted(event.message for event in site.sink.of(ScriptFailed)) == [f"offline {n}" for n in range(3)]
    assert await page.evaluate("Object.keys(localStorage).length") == 0


async def test_what_a_closed_tab_could_not_send_the_next_page_sends(
    site: Site, address: str, context: BrowserContext
):
    site.refuses = True
    page = await context.new_page()
    await page.goto(f"{address}/feed", wait_until="load")
    await page.close(run_before_unload=True)
    for _ in range(100):
        if site.posts:
            break
        await asyncio.sleep(0.05)
    assert site.posts
    assert site.sink.events == []
    site.refuses = False
    again = await context.new_page()
    await again.goto(f"{address}/other", wait_until="load")
    [event] = await site.pages()
    await hide(again)
    assert len({each.view_id for each in await site.pages(2)}) == 2
    assert event.page == "/feed/{user}"


async def test_what_the_browser_does_not_measure_is_missing_and_no_zero(
    site: Site, address: str, context: BrowserContext
):
    await context.add_init_script(
        "Object.defineProperty(PerformanceObserver, 'supportedEntryTypes', {value: ['navigation']})"
    )
    page = await context.new_page()
    await page.goto(f"{address}/feed", wait_until="load")
    await hide(page)
    [event] = await site.pages()
    assert event.cumulative_layout_shift is None
    assert event.interaction_to_next_paint_seconds is None
    assert event.scroll_latency_seconds is None


async def test_an_input_that_scrolled_nothing_does_not_begin_a_later_scroll(
    site: Site, address: str, context: BrowserContext
):
    page = await context.new_page()
    await page.goto(f"{address}/feed", wait_until="load")
    await page.mouse.move(50, 50)
    await page.mouse.wheel(0, -300)  # the page is at its beginning already
    await page.wait_for_timeout(800)
    await page.evaluate("scrollTo(0, 500)")
    await page.wait_for_timeout(200)
    await hide(page)
    [event] = await site.pages()
    assert event.scroll_latency_seconds is None


async def test_leaving_for_another_page_reports_the_first(site: Site, address: str, context: BrowserContext):
    page = await context.new_page()
    await page.goto(f"{address}/feed", wait_until="load")
    await page.goto(f"{address}/other", wait_until="load")
    await site.pages()
    await page.wait_for_timeout(300)
    assert len(site.sink.of(PageMeasured)) == 1
    assert site.beacon.malformed == 0
