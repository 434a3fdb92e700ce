"""Live traffic written down, so that the lab can send it again, with nobody's name in it.

Invented load has the wrong shape: no bursts, no hot keys, none of the odd requests that break things. Real
traffic has names in it. Here a share of the requests, chosen by their ids, is recorded with its moment, route
and answer. What a parameter or a field of a JSON body holds is kept only if you said that it is public or
internal; everything else, known or not, becomes a token. Equal values have equal tokens, so the popularity of
keys survives.

    request → chosen? → the application answers → RequestRecorded → EventSink, beside all other events

The body is copied on its way to the application, up to a bound, and kept only if it is JSON and whole.
Recording never delays, changes or fails a request. `fairlead.lab.Recording` reads it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus, urlencode

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import InvalidInput
from fairlead.telemetry.asgi_types import Application, Message, Receive, Scope, Send
from fairlead.telemetry.bounds import check_number, check_whole
from fairlead.telemetry.classification import Classification
from fairlead.telemetry.event import RequestRecorded
from fairlead.telemetry.redact import Redactor
from fairlead.telemetry.route_patterns import UNROUTED, RoutePatterns
from fairlead.telemetry.sampling import sampled
from fairlead.telemetry.sink import EventSink

__all__ = ["RecordingMiddleware"]


_LARGEST_BODY = 2**20
_NOT_RECORDED = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})


class RecordingMiddleware:
    """Records a share of the requests to `app`. Put it inside `AdmissionMiddleware`, which gives requests their ids.

    With a `RequestContext` around it the choice is by its request id, the same in every service that a request passes;
    without one, by lot.
    """

    def __init__(
        self,
        app: Application,
        *,
        sink: EventSink,
        redactor: Redactor,
        share: float = 0.01,
        fields: Mapping[str, Classification] | None = None,
        headers: Iterable[str] = ("accept", "content-type"),
        body_bytes: int = 0,
        user: Callable[[Scope], str] | None = None,
        route: Callable[[Scope], str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """sink: takes the recorded requests; not closed here. redactor: best without a vault, which waits for the disk.

        share: of the requests, above 0 and at most 1; recorded with each as its inclusion probability.
        fields: what parameters of paths and queries, and fields of JSON bodies at any depth, hold, by name. A name
            that is missing counts as personal.
        headers: which to record; never those that authenticate. Their values are searched for personal data.
        body_bytes: the largest body to keep, 0 to 1,048,576; 0 keeps none.
        user: who asks, by the scope, after the request; None takes `RequestContext.targeting_key`.
        route: the route's pattern, by the scope, after the request; None: as Starlette, FastAPI and Litestar leave it.

        Raises InvalidInput for a number out of range, a classification that is none, or a header that authenticates.
        """
        check_number("RecordingMiddleware.share", share, above=0.0, high=1.0)
        check_whole("RecordingMiddleware.body_bytes", body_bytes, low=0, high=_LARGEST_BODY)
        for name, said in (fields or {}).items():
            if said not in ("public", "internal", "personal"):
                raise InvalidInput(
                    f"RecordingMiddleware.fields: {name!r} is {said!r}; expected 'public', 'internal' or 'personal'"
                )
        self._headers = frozenset(name.lower() for name in headers)
        if refused := self._headers & _NOT_RECORDED:
            raise InvalidInput(
                f"RecordingMiddleware.headers: {sorted(refused)[0]!r} authenticates: it is not recorded"
            )
        self.app = app
        self._sink = sink
        self._redactor = redactor
        self._share = float(share)
        self._shown = frozenset(name for name, said in (fields or {}).items() if said != "personal")
        self._body_bytes = body_bytes
        self._user = user
        self._route = route or RoutePatterns().of
        self._clock = clock
        self._rng = rng or random.Random()
        self.failures = 0
        """Requests that were chosen and could not be recorded, in this process."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._chosen():
            await self.app(scope, receive, send)
            return
        taken = _Taken(receive, send, self._body_bytes)
        arrived_at, began = self._clock.utc(), self._clock.now()
        # Kept from before: mounts rewrite the second, with values of parameters in it.
        path, root = scope["path"], scope.get("root_path", "")
        try:
            await self.app(scope, taken.receive, taken.send)
        except asyncio.CancelledError:
            taken.status = taken.status or 0
            raise
        except Exception:
            taken.status = taken.status or 500
            raise
        finally:
            try:
                latency = self._clock.now() - began
                self._sink.emit(self._recorded(scope, path, root, taken, arrived_at, latency))
            except Exception:  # a scope, a redactor or a callback of others: never the request's loss
                self.failures += 1

    def _chosen(self) -> bool:
        request_id = current().request_id
        return sampled(request_id, self._share) if request_id else self._rng.random() < self._share

    def _recorded(
        self, scope: Scope, path: str, root: str, taken: _Taken, arrived_at: float, latency: float
    ) -> RequestRecorded:
        context = current()
        route = self._route(scope)
        who = context.targeting_key if self._user is None else self._user(scope)
        return RequestRecorded(
            at_utc_seconds=arrived_at,
            request_id=context.request_id,
            inclusion_probability=self._share,
            method=str(scope["method"]),
            route=route,
            target=self._target(scope, path, root, route),
            headers={
                name: self._redactor.text(value.decode("latin-1"))
                for key, value in scope.get("headers", ())
                if (name := key.decode("latin-1")) in self._headers
            },
            body=self._body(taken),
            body_bytes=taken.size,
            user=self._redactor.token(who) if who else "",
            priority=int(context.priority),
            status=taken.status,
            latency_seconds=latency,
        )

    def _target(self, scope: Scope, path: str, root: str, route: str) -> str:
        shown, hidden = self._parameters(scope)
        for value in sorted(hidden, key=len, reverse=True):
            if "/" in value:
                path = path.replace(value, hidden[value])
        # By whole segments: the user "1" must not be replaced inside "/v1/users/1". What is neither a word of the
        # pattern nor a declared value is personal: a "007" that became 7, a "{name}.json", the paths below a mount.
        words = {*root.split("/"), *([] if route == UNROUTED else filter(_is_word, route.split("/")))}
        tokens = set(hidden.values())
        path = "/".join(
            [
                hidden[segment]
                if segment in hidden and segment not in words
                else segment
                if not segment or segment in words or segment in shown or segment in tokens
                else self._redactor.token(segment)
                for segment in path.split("/")
            ]
        )
        target = quote(self._redactor.text(path), safe="/:@!$&'()*+,;=~")
        text = scope.get("query_string", b"").decode("latin-1")
        query = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
        if not query:
            return target
        alone = {unquote_plus(part) for part in text.split("&") if "=" not in part}
        return f"{target}?" + urlencode(
            [(self._name(name, alone), self._value(name, value) if value else "") for name, value in query]
        )

    def _parameters(self, scope: Scope) -> tuple[set[str], dict[str, str]]:
        """The values in the path that may be shown, and tokens for the others. A value that is both is hidden."""
        shown: set[str] = set()
        hidden: dict[str, str] = {}
        for name, value in (scope.get("path_params") or {}).items():
            text = str(value)
            if str(name) in self._shown:
                shown.add(text)
            elif text:
                hidden[text] = self._redactor.token(text)
        return shown, hidden

    def _name(self, name: str, alone: set[str]) -> str:
        # "?ann" is a value without a name, unless that name was declared.
        hidden = name in alone and name not in self._shown
        return self._redactor.token(name) if hidden else self._redactor.text(name)

    def _value(self, name: str, value: str) -> str:
        return self._redactor.text(value) if name in self._shown else self._redactor.token(value)

    def _body(self, taken: _Taken) -> str:
        if not taken.body or not taken.whole:
            return ""
        try:
            return msgspec.json.encode(self._hidden("", msgspec.json.decode(bytes(taken.body)), 16)).decode()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""  # not JSON: nobody can say which part of it is a name

    def _hidden(self, name: str, value: Any, depth: int) -> Any:
        """The value with what is personal in it replaced, its shape and types kept."""
        if isinstance(value, dict):
            return {
                self._redactor.text(key): self._hidden(key, item, depth - 1) if depth else None
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._hidden(name, item, depth - 1) for item in value] if depth else []
        if name in self._shown:
            return self._redactor.value(value)
        if isinstance(value, str):
            return self._redactor.token(value)
        return 0 if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_word(segment: str) -> bool:
    """Whether a segment of a pattern stands for itself."""
    return segment[:1] not in (":", "*", "<") and "{" not in segment and "<" not in segment


class _Taken:
    """One request and its answer, as they pass."""

    __slots__ = ("_most", "_receive", "_send", "body", "size", "status", "whole")

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self._receive = receive
        self._send = send
        self._most = most
        self.body = bytearray()
        self.size = 0
        self.whole = False
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            part = message.get("body", b"")
            self.size += len(part)
            if self.size <= self._most:
                self.body += part
                self.whole = not message.get("more_body", False)
            else:
                self.whole = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
