"""The page of either arm in a real Chromium: it is ready when its configuration is there, or after a second without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright

from fairlead.telemetry import PageMeasured, read_events
from fairlead.trial import Arm, Settings
from fairlead_systems.remote_config.system import front_of, make_plan, services_of, start
from fairlead_systems.remote_config.world import World

PLAN = make_plan(Settings(quick=True))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield chromium
        await chromium.close()


async def open_page(browser: Browser, url: str, user: str) -> tuple[str, dict[str, Any]]:
    """What its button says, and what it measured; closed afterwards, so that its beacon reports."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(f"{url}/page?user={user}")
    measured: dict[str, Any] = await (await page.wait_for_function("window.measured")).json_value()
    label = await page.inner_text("#go")
    await page.goto("about:blank")
    await asyncio.sleep(0.2)  # the report is on its way
    await context.close()
    return label, measured


async def test_page_shows_its_configuration_and_its_browser_reports(browser: Browser, tmp_path: Path) -> None:
    (user, *_) = (user for user, _, _ in World(1).users())
    async with start(PLAN, Settings(quick=True), tmp_path) as running:
        for arm in PLAN.arms:
            label, measured = await open_page(browser, running.url(arm), user)
            assert (label, measured["configured"]) == ("Pay now", True)
            assert measured["ready_milliseconds"] > 0
            assert measured["interaction_milliseconds"] > 0
    for arm in PLAN.arms:
        (reported,) = reports(tmp_path, arm)
        assert (reported.page, reported.variant) == ("/page", arm.name)
        assert reported.largest_contentful_paint_seconds is not None


async def test_page_goes_on_with_what_it_was_built_with_where_the_control_hangs(
    browser: Browser, tmp_path: Path
) -> None:
    async with start(PLAN, Settings(quick=True), tmp_path) as running:
        for arm, expected in zip(PLAN.arms, (("Buy now", False), ("Pay now", True)), strict=True):
            for name in services_of(arm):  # longer than in a trial: a browser takes its time to begin
                await running._post(name, "/lab/hang?seconds=6")
            label, measured = await open_page(browser, running.url(arm), "a-stranger")
            assert (label, measured["configured"]) == expected


def reports(directory: Path, arm: Arm) -> list[PageMeasured]:
    events = read_events(directory / "events" / front_of(arm))
    return [event for event in events if isinstance(event, PageMeasured)]
