"""MirrorMiddleware before small ASGI applications, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from fairlead.calls import CircuitBreaker
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.errors import InvalidInput
from fairlead.shadow import Answer, FieldDiff, Mirror, is_shadow
from fairlead.shadow.asgi import (
    AsgiCandidate,
    MirroredRequest,
    MirrorMiddleware,
    ShadowedMiddleware,
)
from fairlead.statistics import discordant_pairs
from tests.unit.shadow.apps import answers, ask, body_of


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


@pytest.fixture
def mirror(clock: ManualClock) -> Mirror:
    return Mirror("feed", noise_share=0.0, clock=clock, rng=random.Random(7))


async def test_the_client_gets_controls_answer_message_by_message_and_fields_are_compared(mirror: Mirror):
    control = answers({"items": [{"id": 1, "score": 0.5}]})
    candidate = AsgiCandidate(answers({"items": [{"id": 1, "score": 0.7}]}, 201))
    sent = await ask(MirrorMiddleware(control, mirror=mirror, candidate=candidate))
    bare = await ask(control)
    assert sent == bare
    report = mirror.report()
    assert set(report.fields) == {"status", "body.items[].score"}


async def test_chosen_headers_are_compared(mirror: Mirror):
    control = answers({}, headers=((b"Cache-Control", b"a"), (b"x-b", b"1"), (b"x-b", b"2"), (b"x-c", b"1")))
    other = answers({}, headers=((b"cache-control", b"b"), (b"x-b", b"1"), (b"x-c", b"2")))
    chosen = ("Cache-Control", "x-b")
    app = MirrorMiddleware(control, mirror=mirror, headers=chosen, candidate=AsgiCandidate(other))
    await ask(app)
    assert set(mirror.report().fields) == {"headers.cache-control", "headers.x-b"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "QUERY"])
async def test_what_may_change_something_is_not_mirrored(mirror: Mirror, method: str):
    asked: list[str] = []

    async def candidate(request: MirroredRequest) -> Answer:
        asked.append(request.method)
        return request.answer(200, [], b"")

    await ask(MirrorMiddleware(answers({}), mirror=mirror, candidate=candidate), method=method)
    assert asked == []
    assert mirror.report().dropped == {"not_idempotent": 1}


async def test_a_route_that_is_declared_idempotent_is_mirrored_with_its_body(mirror: Mirror):
    asked: list[MirroredRequest] = []

    async def candidate(request: MirroredRequest) -> Answer:
        asked.append(request)
        return request.answer(200, [], b"")

    async def control(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = MirrorMiddleware(
        control, mirror=mirror, candidate=candidate, idempotent=lambda scope: scope["path"] == "/search"
    )
    length = ((b"content-length", b"6"),)
    await ask(app, "/search", method="POST", body=(b"abc", b"def"), query=b"q=%20", headers=length)
    (request,) = asked
    assert (request.method, request.body, request.target) == ("POST", b"abcdef", "/search?q=%20")
    assert (b"content-length", b"6") in request.headers
    await ask(app, "/logout")
    assert mirror.report().dropped == {"not_idempotent": 1}


async def test_a_body_of_nothing_is_still_announced_and_a_short_timeout_is_not_none_at_all(
    clock: ManualClock,
):
    asked: list[MirroredRequest] = []

    async def candidate(request: MirroredRequest) -> Answer:
        asked.append(request)
        return request.answer(200, [], b"")

    mirror = Mirror("feed", noise_share=0.0, timeout=0.0004, clock=clock)
    app = MirrorMiddleware(answers({}), mirror=mirror, candidate=candidate, idempotent=lambda scope: True)
    await ask(app, method="POST", headers=((b"content-length", b"0"),))
    (request,) = asked
    assert {(b"content-length", b"0"), (b"x-request-timeout-ms", b"1")} <= set(request.headers)


async def test_credentials_and_headers_of_the_connection_are_withheld(mirror: Mirror):
    asked: list[dict[bytes, bytes]] = []

    async def candidate(request: MirroredRequest) -> Answer:
        asked.append(dict(request.headers))
        return request.answer(200, [], b"")

    came = (
        *((b"authorization", b"Bearer s"), (b"cookie", b"s=1"), (b"x-api-key", b"s"), (b"accept", b"a/b")),
        *((b"connection", b"keep-alive, X-Mine"), (b"x-mine", b"1"), (b"upgrade", b"h2c"), (b"te", b"gzip")),
        *((b"x-request-timeout-ms", b"50"), (b"accept-encoding", b"gzip")),
    )
    await ask(MirrorMiddleware(answers({}), mirror=mirror, candidate=candidate), headers=came)
    allowing = MirrorMiddleware(answers({}), mirror=mirror, candidate=candidate, credentials=True)
    await ask(allowing, headers=came)
    withheld, allowed = asked
    assert set(withheld) == {
        *(b"host", b"accept", b"accept-encoding", b"x-request-timeout-ms", b"x-fairlead-shadow")
    }
    assert withheld[b"x-request-timeout-ms"] == b"1000"
    assert withheld[b"accept-encoding"] == b"identity"
    assert allowed[b"authorization"] == b"Bearer s"


async def test_controls_second_run_has_its_credentials_and_what_outer_middleware_put_there(
    clock: ManualClock,
):
    seen: list[tuple[bool, bool, object]] = []

    async def control(scope: Any, receive: Any, send: Any) -> None:
        seen.append((is_shadow(), (b"cookie", b"s=1") in scope["headers"], scope.get("user")))
        await answers({"n": len(seen)})(scope, receive, send)

    mirror = Mirror("feed", noise_share=1.0, clock=clock, rng=random.Random(7))
    app = MirrorMiddleware(control, mirror=mirror, candidate=AsgiCandidate(answers({"n": 1})))
    await ask(app, headers=((b"cookie", b"s=1"),), user="ann")
    assert seen == [(False, True, "ann"), (True, True, "ann")]
    assert mirror.report().discordant() == {"body.n": (1, 0)}


async def test_a_marked_request_is_answered_and_not_mirrored_again(mirror: Mirror):
    app = MirrorMiddleware(answers({}), mirror=mirror, candidate=AsgiCandidate(answers({})))
    assert await ask(app, headers=((b"x-fairlead-shadow", b"1"),))
    assert mirror.report().dropped == {"marked": 1}


async def test_two_services_that_mirror_each_other_do_not_ask_for_ever(clock: ManualClock):
    first = Mirror("a", noise_share=0.0, clock=clock)
    second = Mirror("b", noise_share=0.0, clock=clock)

    async def to_second(request: MirroredRequest) -> object:
        return await AsgiCandidate(apps["b"])(request)

    async def to_first(request: MirroredRequest) -> object:
        return await AsgiCandidate(apps["a"])(request)

    apps = {
        "a": MirrorMiddleware(answers({}), mirror=first, candidate=to_second),
        "b": MirrorMiddleware(answers({}), mirror=second, candidate=to_first),
    }
    await ask(apps["a"])
    assert first.report().outcomes == {"same": 1}
    assert second.report().dropped == {"marked": 1}


async def test_a_candidates_process_knows_marked_requests():
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(is_shadow())
        await answers({})(scope, receive, send)

    await ask(ShadowedMiddleware(app), headers=((b"x-fairlead-shadow", b"1"),))
    await ask(ShadowedMiddleware(app))
    assert seen == [True, False]


@pytest.mark.parametrize("large", ["request", "response", "candidate"])
async def test_what_is_too_large_to_keep_passes_and_is_not_compared(mirror: Mirror, large: str):
    small, big = {"a": 1}, {"a": "x" * 200}
    control = answers(big if large == "response" else small)

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        await control(scope, receive, send)

    candidate = AsgiCandidate(answers(big if large == "candidate" else small))
    app = MirrorMiddleware(
        reads, mirror=mirror, candidate=candidate, body_bytes=100, idempotent=lambda scope: True
    )
    body = b"y" * 200 if large == "request" else b""
    sent = await ask(app, method="POST", body=(body,), headers=((b"content-length", b"200"),) if body else ())
    assert body_of(sent) == json.dumps(big if large == "response" else small).encode()
    report = mirror.report()
    assert (report.dropped, report.outcomes) == (
        ({}, {"cut": 1}) if large == "candidate" else ({"too_large": 1}, {})
    )


async def test_a_body_that_the_application_did_not_read_is_not_mirrored_without_it(mirror: Mirror):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    mirrored = MirrorMiddleware(
        app, mirror=mirror, candidate=AsgiCandidate(app), idempotent=lambda scope: True
    )
    await ask(mirrored, method="POST", body=(b"abc",), headers=((b"content-length", b"3"),))
    assert mirror.report().dropped == {"incomplete": 1}


async def test_a_client_that_leaves_and_a_response_that_breaks_off_are_not_compared(mirror: Mirror):
    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise OSError("the client has left")

    app = MirrorMiddleware(breaks_off, mirror=mirror, candidate=AsgiCandidate(answers({})))
    with pytest.raises(OSError, match="left"):
        await ask(app)

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(
        ask(MirrorMiddleware(hangs, mirror=mirror, candidate=AsgiCandidate(answers({}))))
    )
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert mirror.report().dropped == {"incomplete": 2}


async def test_an_application_that_raises_is_compared_as_the_500_that_its_client_gets(mirror: Mirror):
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("x")

    app = MirrorMiddleware(raises, mirror=mirror, candidate=AsgiCandidate(answers({})))
    with pytest.raises(KeyError):
        await ask(app)
    await settle()
    report = mirror.report()
    assert report.outcomes == {"different": 1}
    assert set(report.fields) == {"status", "headers.content-type", "body"}


async def test_a_candidate_whose_server_answers_500_is_no_worse_than_a_control_that_raises(
    clock: ManualClock,
):
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("x")

    async def answers_and_raises(scope: Any, receive: Any, send: Any) -> None:
        await answers({"error": 1}, 500)(scope, receive, send)  # as Starlette's outermost middleware
        raise KeyError("x")

    for candidate in (answers({"error": 1}, 500), answers_and_raises):
        breaker = CircuitBreaker("candidate", minimum_calls=3, clock=clock)
        mirror = Mirror("feed", noise_share=1.0, clock=clock, rng=random.Random(7), breaker=breaker)
        app = MirrorMiddleware(raises, mirror=mirror, candidate=AsgiCandidate(candidate))
        for _ in range(5):
            with pytest.raises(KeyError):
                await ask(app)
            await settle()
        report = mirror.report()
        assert (report.outcomes, report.dropped, report.discordant()) == ({"same": 5}, {}, {})


async def test_errors_of_the_same_code_are_noise_whoever_makes_an_answer_of_them(clock: ManualClock):
    rng = random.Random(3)

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        if rng.random() < 0.3:
            raise KeyError("x")
        await answers({"a": 1})(scope, receive, send)

    async def behind_a_server(scope: Any, receive: Any, send: Any) -> None:
        failed = rng.random() < 0.3
        await answers({"detail": "KeyError"} if failed else {"a": 1}, 500 if failed else 200)(
            scope, receive, send
        )

    mirror = Mirror("feed", noise_share=1.0, clock=clock, rng=random.Random(7))
    app = MirrorMiddleware(raises, mirror=mirror, candidate=AsgiCandidate(behind_a_server))
    for _ in range(400):
        with contextlib.suppress(KeyError):
            await ask(app)
        await settle()
        await clock.run_for(1.0)
    found = discordant_pairs(mirror.report().discordant())
    assert set(found) == {"status", "headers.content-type", "body"}
    assert {each.verdict for each in found.values()} == {"not shown"}


async def test_a_compressed_answer_is_left_out(mirror: Mirror):
    control = answers(b"...", headers=((b"content-encoding", b"gzip"),))
    await ask(MirrorMiddleware(control, mirror=mirror, candidate=AsgiCandidate(control)))
    assert mirror.report().dropped == {"encoded": 1}


async def test_copies_at_once_are_bounded(mirror: Mirror):
    release = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await answers({})(scope, receive, send)

    app = MirrorMiddleware(waits, mirror=mirror, candidate=AsgiCandidate(answers({})), copies=2)
    tasks = [asyncio.create_task(ask(app)) for _ in range(5)]
    await settle()
    release.set()
    await asyncio.gather(*tasks)
    assert mirror.report().dropped == {"full": 3}
    assert mirror.report().outcomes == {"same": 2}
    await ask(app)
    assert mirror.report().outcomes == {"same": 3}


@pytest.mark.parametrize("broken", ["idempotent", "unit", "candidate"])
async def test_a_function_that_raises_costs_its_request_nothing(mirror: Mirror, broken: str):
    def raises(*_: object) -> Any:
        raise RuntimeError("broken")

    functions: dict[str, Any] = {"candidate": AsgiCandidate(answers({})), broken: raises}
    assert body_of(await ask(MirrorMiddleware(answers({}), mirror=mirror, **functions))) == b"{}"
    report = mirror.report()
    assert (report.dropped, report.outcomes) == (
        ({}, {"failed": 1}) if broken == "candidate" else ({"broken": 1}, {})
    )


async def test_the_share_is_drawn_by_the_unit_of_the_request(clock: ManualClock):
    mirror = Mirror("feed", share=0.5, noise_share=0.0, clock=clock)
    asked: list[str] = []

    async def candidate(request: MirroredRequest) -> Answer:
        asked.append(request.path)
        return request.answer(200, [], b"")

    app = MirrorMiddleware(
        answers({}), mirror=mirror, candidate=candidate, unit=lambda scope: scope["path"][1:]
    )
    for _ in range(2):
        for n in range(40):
            await ask(app, f"/{n}")
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]
    assert 10 <= len(asked) // 2 <= 30
    keyed = MirrorMiddleware(answers({}), mirror=mirror, candidate=candidate)
    before = len(asked)
    with request_context(RequestContext(targeting_key=asked[0][1:])):
        for _ in range(5):
            await ask(keyed)
    assert len(asked) == before + 5


async def test_time_that_was_waited_for_the_client_is_not_controls(mirror: Mirror, clock: ManualClock):
    async def control(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await clock.sleep(0.010)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        await clock.sleep(1.0)
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        await clock.sleep(1.0)

    app = MirrorMiddleware(control, mirror=mirror, candidate=AsgiCandidate(control, clock=clock))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    task = asyncio.create_task(app(scope, receive, send))
    await clock.run_for(10.0)
    await task
    report = mirror.report()
    assert report.quantile("control", 0.5) == pytest.approx(0.010, rel=0.02)
    assert report.quantile("candidate", 0.5) == pytest.approx(0.010, rel=0.02)


async def test_websockets_and_lifespan_pass_untouched(mirror: Mirror):
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    mirrored = MirrorMiddleware(app, mirror=mirror, candidate=AsgiCandidate(app))
    for kind in ("websocket", "lifespan"):
        await mirrored({"type": kind}, None, None)
        await ShadowedMiddleware(app)({"type": kind}, None, None)
    assert seen == ["websocket", "websocket", "lifespan", "lifespan"]
    assert mirror.report().dropped == {}


async def test_a_starlette_application_is_mirrored_onto_another_inside_its_compression(mirror: Mirror):
    async def feed(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.path_params["user"], "q": request.query_params["q"], "v": 1})

    async def feed_v2(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.path_params["user"], "q": request.query_params["q"], "v": 2})

    async def stream(request: Request) -> StreamingResponse:
        async def parts():
            for n in range(5):
                yield f"{n}\n"

        return StreamingResponse(parts())

    candidate = Starlette(routes=[Route("/feed/{user}", feed_v2), Route("/stream", stream)])
    mirror_settings = {"mirror": mirror, "candidate": AsgiCandidate(candidate)}
    service = Starlette(
        routes=[Route("/feed/{user}", feed), Route("/stream", stream)],
        middleware=[
            Middleware(GZipMiddleware, minimum_size=1),
            Middleware(MirrorMiddleware, **mirror_settings),
        ],
    )
    sent = await ask(service, "/feed/ann b", query=b"q=a%26b", headers=((b"accept-encoding", b"gzip"),))
    assert dict(sent[0]["headers"])[b"content-encoding"] == b"gzip"
    await ask(service, "/stream")
    await ask(service, "/nothing")
    report = mirror.report()
    assert report.outcomes == {"different": 1, "same": 2}
    assert set(report.fields) == {"body.v"}


async def test_control_that_needs_its_application_in_the_scope_can_be_asked_again(clock: ManualClock):
    async def page(request: Request) -> JSONResponse:
        return JSONResponse({"name": request.app.state.name, "url": str(request.url_for("page"))})

    mirror = Mirror("feed", noise_share=1.0, clock=clock)
    service = Starlette(
        routes=[Route("/page", page, name="page")],
        middleware=[Middleware(MirrorMiddleware, mirror=mirror, candidate=AsgiCandidate(answers({})))],
    )
    service.state.name = "shop"
    await ask(service, "/page")
    assert mirror.report().discordant() == {"body.name": (0, 1), "body.url": (0, 1)}


async def test_an_application_that_waits_for_its_client_to_leave_ends(mirror: Mirror):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers({})(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    await ask(MirrorMiddleware(answers({}), mirror=mirror, candidate=AsgiCandidate(app)))
    assert mirror.report().outcomes == {"same": 1}


async def test_an_application_that_does_not_end_its_response_has_failed(mirror: Mirror):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await ask(MirrorMiddleware(answers({}), mirror=mirror, candidate=AsgiCandidate(app)))
    assert mirror.report().outcomes == {"failed": 1}


async def test_what_control_puts_into_its_request_is_not_there_for_the_later_answers(clock: ManualClock):
    seen: list[tuple[dict[str, object], int]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((dict(scope["state"]), len(list(scope["headers"]))))
        scope["state"]["rows"] = "loaded for this request"
        if isinstance(scope["headers"], list):
            scope["headers"].append((b"x-user", b"ann"))
        await answers({})(scope, receive, send)

    mirror = Mirror("feed", noise_share=1.0, clock=clock, rng=random.Random(7))
    await ask(MirrorMiddleware(app, mirror=mirror, candidate=AsgiCandidate(app)), state={"pool": "ours"})
    assert [state for state, _ in seen] == [{"pool": "ours"}] * 3
    assert seen[1] == seen[2]
    assert seen[1][1] == 4  # host, and the three that a mirror adds


async def test_a_candidate_cannot_change_what_the_lifespan_made(mirror: Mirror):
    async def candidate(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["pool"] = "mine"
        await answers({})(scope, receive, send)

    state = {"pool": "ours"}
    app = MirrorMiddleware(answers({}), mirror=mirror, candidate=AsgiCandidate(candidate))
    await ask(app, state=state)
    assert mirror.report().outcomes == {"same": 1}
    assert state == {"pool": "ours"}


async def test_bodies_that_are_no_json_are_compared_whole(mirror: Mirror):
    await ask(
        MirrorMiddleware(answers(b"\xff\x00"), mirror=mirror, candidate=AsgiCandidate(answers(b"\xff\x01")))
    )
    assert set(mirror.report().fields) == {"body"}


@pytest.mark.parametrize("settings", [{"headers": "accept"}, {"body_bytes": -1}, {"copies": 0}])
async def test_settings_that_are_none_are_refused(mirror: Mirror, settings: dict[str, Any]):
    with pytest.raises(InvalidInput):
        MirrorMiddleware(answers({}), mirror=mirror, candidate=AsgiCandidate(answers({})), **settings)


async def test_ignored_fields_of_bodies_are_named_as_in_reports(clock: ManualClock):
    mirror = Mirror("feed", noise_share=0.0, clock=clock, diff=FieldDiff(ignored=("body.at", "headers")))
    control, other = answers({"at": 1}), answers({"at": 2}, headers=((b"x-a", b"1"),))
    app = MirrorMiddleware(control, mirror=mirror, headers=("x-a",), candidate=AsgiCandidate(other))
    await ask(app)
    assert mirror.report().outcomes == {"same": 1}
