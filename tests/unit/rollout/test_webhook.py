"""Notices reach a webhook, are tried again, and give away neither its address nor a token."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from fairlead.errors import FailedStatus, InvalidInput
from fairlead.rollout import RolloutState, Split
from fairlead.rollout.httpx import Webhook

STATE = RolloutState(
    rollout="feed/3", stage=1, phase="rolled_back", want=Split(share=0.0, latched=True), reason="errors"
)
SECRET = "https://hooks.example.com/services/T0/B0/s3cr3t"


def answering(*statuses: int) -> tuple[list[httpx.Request], httpx.MockTransport]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(statuses[min(len(seen), len(statuses)) - 1])

    return seen, httpx.MockTransport(answer)


async def test_a_notice_says_what_happened_and_where_the_rollout_stands() -> None:
    seen, transport = answering(200)
    hook = Webhook("http://127.0.0.1:1/hook", token="t0ken", transport=transport)
    await hook("rolled back: errors", STATE)
    await hook.close()
    body = json.loads(seen[0].content)
    assert body["schema"] == "fairlead.rollout.notice/1"
    assert (body["rollout"], body["what"], body["state"]) == ("feed/3", "rolled back: errors", "rolled_back")
    assert (body["stage"], body["share"], body["reason"]) == (1, 0.0, "errors")
    assert seen[0].headers["authorization"] == "Bearer t0ken"


async def test_slacks_marks_in_a_name_call_nobody() -> None:
    seen, transport = answering(200)
    hook = Webhook(SECRET, form="slack", transport=transport)
    await hook("<!channel> & friends", STATE)
    await hook.close()
    assert json.loads(seen[0].content) == {"text": "*feed/3* &lt;!channel&gt; &amp; friends"}


async def test_a_server_that_is_busy_is_asked_again() -> None:
    seen, transport = answering(503, 503, 200)
    hook = Webhook(SECRET, transport=transport)
    await hook("advanced", STATE)
    await hook.close()
    assert len(seen) == 3


@pytest.mark.parametrize("status", [302, 404])
async def test_a_refusal_is_said_once_and_without_the_address(status: int) -> None:
    seen, transport = answering(status)
    hook = Webhook(SECRET, token="t0ken", transport=transport)
    with pytest.raises(FailedStatus) as refused:
        await hook("advanced", STATE)
    await hook.close()
    assert str(refused.value) == f"webhook hooks.example.com: answered {status}"
    assert len(seen) == 1


async def test_a_connection_that_fails_gives_no_address_away() -> None:
    def failing(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"no route to {request.url}")

    hook = Webhook(SECRET, timeout=0.05, transport=httpx.MockTransport(failing))
    with pytest.raises(FailedStatus) as refused:
        await hook("advanced", STATE)
    await hook.close()
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Webhook("ftp://host/x"), "begins with http"),
        (lambda: Webhook("http://"), "begins with http"),
        (lambda: Webhook("http://h/x", form="xml"), "json or slack"),  # type: ignore[arg-type]
    ],
    ids=["scheme", "host", "form"],
)
def test_an_address_that_is_none_is_refused_without_being_repeated(
    make: Callable[[], object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        make()
