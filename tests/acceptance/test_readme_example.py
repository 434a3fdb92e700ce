"""The README's FastAPI service, exactly as printed, under the conditions that it claims to survive."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

README = Path(__file__).resolve().parents[2] / "README.md"


class Upstream:
    """The profile service behind it: slow, counted, and broken on demand."""

    def __init__(self) -> None:
        self.calls = 0
        self.broken = False
        self.app = FastAPI()

        @self.app.get("/profiles/{user_id}")
        async def profile(user_id: int) -> dict[str, str]:
            self.calls += 1
            await asyncio.sleep(0.01)
            if self.broken:
                raise httpx.ReadError("connection reset")
            if user_id > 1_000:
                raise HTTPException(404)
            return {"name": f"user {user_id}"}


def printed_service() -> dict[str, Any]:
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 24
    namespace: dict[str, Any] = {"__name__": "service"}
    exec(compile(block[1], str(README), "exec"), namespace)  # noqa: S102 - the text under test is ours
    return namespace


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def service(upstream: Upstream):
    namespace = printed_service()
    await namespace["client"].aclose()
    namespace["client"] = httpx.AsyncClient(
        transport=httpx.ASGITransport(upstream.app), base_url="http://127.0.0.1:9000"
    )
    transport = httpx.ASGITransport(namespace["app"], raise_app_exceptions=False)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        namespace["client"],
    ):
        yield client


async def test_fifty_users_at_once_cost_one_call(service: httpx.AsyncClient, upstream: Upstream):
    answers = await asyncio.gather(*(service.get("/users/7") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["name"] for answer in answers} == {"user 7"}
    assert upstream.calls == 1


async def test_a_broken_upstream_is_tried_twice_at_most(service: httpx.AsyncClient, upstream: Upstream):
    upstream.broken = True
    assert (await service.get("/users/7")).status_code == 500
    assert upstream.calls == 2


async def test_a_failure_is_not_cached(service: httpx.AsyncClient, upstream: Upstream):
    upstream.broken = True
    await service.get("/users/7")
    upstream.broken = False
    assert (await service.get("/users/7")).json() == {"name": "user 7"}


async def test_one_client_asking_for_unknown_users_harms_no_other(
    service: httpx.AsyncClient, upstream: Upstream
):
    for user_id in range(2_000, 2_040):
        assert (await service.get(f"/users/{user_id}")).status_code == 500
    assert upstream.calls == 40  # not one was tried twice
    assert (await service.get("/users/7")).status_code == 200
