"""Live traffic is recorded as it came, with nobody in it and at nobody's cost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.context import Priority, RequestContext, request_context
from fairlead.errors import InvalidInput
from fairlead.telemetry import (
    Event,
    MemorySink,
    RecordingMiddleware,
    Redactor,
    RequestRecorded,
    decode_event,
    encode_event,
    sampled,
)

REDACTOR = Redactor(b"k" * 32)


async def recorded(
    *,
    path: str = "/feed/ann",
    parameters: dict[str, str] | None = None,
    query: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: tuple[bytes, ...] = (),
    status: int = 200,
    error: BaseException | None = None,
    request_id: str = "r-1",
    clock: ManualClock | None = None,
    sink: Any = None,
    routed: bool = True,
    template: str = "/feed/{user}",
    **options: Any,
) -> tuple[list[RequestRecorded], bytes]:
    """What was recorded of one request, and the body that the application saw."""
    seen = bytearray()
    parts = list(body)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if routed:
            scope["path_template"] = template
            scope["path_params"] = {"user": "ann"} if parameters is None else parameters
        while True:
            message = await receive()
            seen.extend(message.get("body", b""))
            if not message.get("more_body"):
                break
        if clock is not None:
            clock.advance(0.25)
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def receive() -> Any:
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    memory = MemorySink()
    middleware = RecordingMiddleware(
        app, sink=memory if sink is None else sink, redactor=REDACTOR, clock=clock or ManualClock(),
        **{"share": 1.0, **options},
    )  # fmt: skip
    scope = {
        "type": "http", "method": "POST" if body else "GET", "path": path, "query_string": query,
        "headers": headers or [],
    }  # fmt: skip
    context = RequestContext(request_id=request_id, targeting_key="ann", priority=Priority.CRITICAL)
    with request_context(context):
        if error is None:
            await middleware(scope, receive, send)
            assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        else:
            with pytest.raises(type(error)):
                await middleware(scope, receive, send)
    return memory.of(RequestRecorded), bytes(seen)


async def test_a_request_is_recorded_with_its_moment_route_answer_and_priority() -> None:
    clock = ManualClock()
    arrived = clock.utc()
    [event], _ = await recorded(clock=clock, status=503)
    assert event.at_utc_seconds == arrived
    assert (event.method, event.route, event.status, event.latency_seconds) == (
        "GET",
        "/feed/{user}",
        503,
        0.25,
    )
    assert (event.request_id, event.priority) == ("r-1", 2)
    assert decode_event(encode_event(event)) == event


async def test_whoever_is_in_the_path_or_the_query_or_asks_becomes_one_token() -> None:
    [event], _ = await recorded(query=b"for=ann&page=2&flag=", fields={"page": "public"})
    token = REDACTOR.token("ann")
    quoted = token.replace("[", "%5B").replace("]", "%5D")
    assert event.user == token
    assert event.target.startswith(f"/feed/{quoted}?for=")
    assert "&page=2&flag=" in event.target
    assert "ann" not in event.target


async def test_a_parameter_replaces_whole_segments_and_never_a_part_of_another() -> None:
    [event], _ = await recorded(path="/v1/users/1", parameters={"user": "1"}, template="/v1/users/{user}")
    assert event.target.startswith("/v1/users/%5Bpersonal:")


async def test_a_parameter_that_spans_segments_is_replaced_whole() -> None:
    [event], _ = await recorded(
        path="/files/home/ann/cv.pdf", parameters={"file": "home/ann/cv.pdf"}, template="/files/{file:path}"
    )
    assert "ann" not in event.target
    assert event.target.startswith("/files/%5B")


async def test_of_a_path_that_no_route_matched_every_part_is_a_token() -> None:
    [event], _ = await recorded(path="/who/is/ann", routed=False)
    assert event.target.count("%5Bpersonal:") == 3


async def test_a_body_keeps_its_shape_and_only_what_was_declared_harmless() -> None:
    body = {
        "name": "Ann",
        "age": 41,
        "member": True,
        "tags": ["a", "b"],
        "address": {"city": "Ulm", "zip": None},
    }
    [event], seen = await recorded(
        body=(json.dumps(body).encode(),), body_bytes=10_000, fields={"city": "internal", "tags": "public"}
    )
    assert json.loads(seen) == body
    assert json.loads(event.body) == {
        "name": REDACTOR.token("Ann"), "age": 0, "member": None, "tags": ["a", "b"],
        "address": {"city": "Ulm", "zip": None},
    }  # fmt: skip


async def test_a_field_declared_harmless_is_searched_all_the_same() -> None:
    [event], _ = await recorded(
        body=(b'{"note":"write to ann@example.com"}',), body_bytes=100, fields={"note": "public"}
    )
    assert "ann@" not in event.body


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ((b'{"page":', b"1}"), '{"page":1}'),
        ((b"x" * 1_001,), ""),
        ((b"x" * 600, b"x" * 600), ""),
        ((b"user=ann",), ""),
        ((b"\xff\xfe",), ""),
        ((b"[" * 900,), ""),
    ],
    ids=["in parts", "too large", "too large in parts", "a form", "binary", "deep"],
)
async def test_a_body_is_kept_whole_or_not_at_all_and_reaches_the_application_either_way(
    body: tuple[bytes, ...], kept: str
) -> None:
    [event], seen = await recorded(body=body, body_bytes=1_000, fields={"page": "public"})
    assert seen == b"".join(body)
    assert (event.body, event.body_bytes) == (kept, len(seen))


async def test_without_a_bound_for_bodies_none_is_kept() -> None:
    [event], _ = await recorded(body=(b'{"page":1}',), fields={"page": "public"})
    assert (event.body, event.body_bytes) == ("", 10)


async def test_only_named_headers_are_kept() -> None:
    [event], _ = await recorded(headers=[(b"accept", b"text/html"), (b"cookie", b"s=1"), (b"x-other", b"1")])
    assert event.headers == {"accept": "text/html"}


@pytest.mark.parametrize("name", ["Authorization", "cookie", "Set-Cookie", "proxy-authorization"])
def test_a_header_that_authenticates_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="authenticates"):
        RecordingMiddleware(lambda *_: None, sink=MemorySink(), redactor=REDACTOR, headers=[name])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0},
        {"share": 1.1},
        {"share": True},
        {"body_bytes": -1},
        {"body_bytes": 2**21},
        {"fields": {"a": "odd"}},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"RecordingMiddleware.{next(iter(options))}"):
        RecordingMiddleware(lambda *_: None, sink=MemorySink(), redactor=REDACTOR, **options)  # type: ignore[arg-type,return-value]


async def test_the_same_requests_are_chosen_as_by_every_other_sampler() -> None:
    chosen = {
        f"r{number}" for number in range(300) if (await recorded(request_id=f"r{number}", share=0.1))[0]
    }
    assert chosen == {f"r{number}" for number in range(300) if sampled(f"r{number}", 0.1)}
    [event], _ = await recorded(request_id=min(chosen), share=0.1)
    assert event.inclusion_probability == 0.1


async def test_without_a_request_id_the_lot_decides() -> None:
    class Half:
        def random(self) -> float:
            return 0.5

    assert len((await recorded(request_id="", share=0.6, rng=Half()))[0]) == 1
    assert (await recorded(request_id="", share=0.4, rng=Half()))[0] == []


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("x"), 500), (asyncio.CancelledError(), 0)])
async def test_a_request_that_raises_is_recorded_and_raises_on(error: BaseException, status: int) -> None:
    [event], _ = await recorded(error=error)
    assert event.status == status


async def test_a_recording_that_fails_costs_the_request_nothing() -> None:
    class Broken:
        def emit(self, event: Event) -> None:
            raise OSError("full")

    events, _ = await recorded(sink=Broken())
    assert events == []


async def test_what_is_no_request_passes_untouched() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    middleware = RecordingMiddleware(app, sink=MemorySink(), redactor=REDACTOR)
    await middleware({"type": "websocket"}, "receive", "send")  # type: ignore[arg-type]
    assert seen == [("websocket", "receive", "send")]


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        ("/users/{id:int}", "/users/007", {"id": "7"}),
        ("/users/{id:uuid}", "/users/ABCDEF00", {"id": "abcdef00"}),
        ("/users/{name}.json", "/users/007.json", {"name": "007"}),
        ("/users/*", "/users/007/photo", {}),
    ],
)
async def test_what_the_router_read_otherwise_than_it_was_written_is_hidden_all_the_same(
    template: str, path: str, parameters: dict[str, str]
) -> None:
    [event], _ = await recorded(path=path, parameters=parameters, template=template)
    assert event.target.startswith("/users/%5B")
    assert "007" not in event.target
    assert "ABCDEF" not in event.target


async def test_a_value_that_is_both_declared_and_personal_is_hidden() -> None:
    [event], _ = await recorded(
        path="/u/7/page/7", parameters={"user": "7", "page": "7"}, template="/u/{user}/page/{page}",
        fields={"page": "public"},
    )  # fmt: skip
    assert "/7" not in event.target


async def test_names_of_parameters_are_searched_and_a_value_without_a_name_is_hidden() -> None:
    [event], _ = await recorded(
        query=b"ann@example.com=1&lee&debug&page=2", fields={"page": "public", "debug": "public"}
    )
    assert "example" not in event.target
    assert "lee" not in event.target
    assert event.target.endswith("&debug=&page=2")
