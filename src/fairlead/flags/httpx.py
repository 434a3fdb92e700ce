"""Flags from a control plane by HTTP: asked with If-None-Match, told by a stream of events.

Each round asks for the document, which costs a 304 when nothing is new, and then keeps a stream open on which the
server names each new version (server-sent events, WHATWG HTML, section 9.2). A version that is named is fetched by the
same conditional request, so what is taken in was always a whole answer of known length. A server without such a
stream, a static file behind a CDN say, is asked every `poll_every` seconds.

    ask → stream: version named → ask … | silent, cut, ended → wait, with full jitter → ask
        → no stream                                          → wait, poll_every      → ask

Bounded are: an answer (`timeout`, 1 MiB, no compression), a silence on the stream, a line of it. Redirects are refused,
since they would carry the token elsewhere. Nothing here is ever waited for by an evaluation.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator

from fairlead.calls import Policy, Retry, RetryBudget
from fairlead.calls.bounds import check_number
from fairlead.calls.http_semantics import declared_length, parse_retry_after
from fairlead.errors import FailedStatus, FairleadError, InvalidInput, MissingExtra
from fairlead.flags.delivery import FlagDelivery
from fairlead.flags.delivery_status import SourceKind
from fairlead.flags.flag import MAX_BYTES

try:
    import httpx
except ImportError as missing:
    raise MissingExtra(missing.name or "httpx", "http") from missing

__all__ = ["HttpFlags"]

_LONGEST_LINE = 8_192
_LONGEST_TAG = 256
_BACKOFF = 0.5  # seconds: the first wait after a failure is up to this
_CUT = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_PLAIN_ROUNDS = 10  # without a try at the stream, after one that said nothing


class HttpFlags:
    """A source for `FlagDelivery`: the document at `url`, as `fairlead.flags.asgi.FlagsEndpoint` serves it.

    token: a bearer token; in no message.
    poll_every: seconds between two questions where there is no stream, above 0 up to an hour; each wait is between
        half of it and all of it, so that a fleet does not ask in step.
    timeout: seconds for an answer from its connection to its last byte, above 0 up to 60.
    silence: seconds without a sign of life after which the stream counts as hung, above 0 up to an hour. Three
        heartbeats of the endpoint.
    longest_wait: seconds; waits after failures grow up to this. Each is drawn between nothing and its bound.
    transport: for TLS of your own; None: a new httpx.AsyncHTTPTransport. Proxies of the environment are not used.
    """

    kind: SourceKind = "http"

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        poll_every: float = 10.0,
        timeout: float = 5.0,
        silence: float = 15.0,
        longest_wait: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        check_number("HttpFlags.poll_every", poll_every, above=0.0, high=3600.0)
        check_number("HttpFlags.timeout", timeout, above=0.0, high=60.0)
        check_number("HttpFlags.silence", silence, above=0.0, high=3600.0)
        check_number("HttpFlags.longest_wait", longest_wait, above=0.0, high=3600.0)
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidInput("HttpFlags.url: cannot be read; write https://host/path") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidInput("HttpFlags.url: write an address that begins with http:// or https://")
        if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
            raise InvalidInput(
                "HttpFlags.token: it has a space, a line break or a letter that no header carries; strip it"
            )
        # Without what may be secret in it: user, password, query.
        port = f":{parsed.port}" if parsed.port else ""
        self.place = f"{parsed.scheme}://{parsed.host}{port}{parsed.path}"
        self._url = parsed
        self._headers = {"accept-encoding": "identity"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._poll_every = poll_every
        self._timeout = timeout
        self._silence = silence
        self._longest_wait = longest_wait
        self._transport = transport
        self._rng = rng or random.SystemRandom()

    async def follow(self, delivery: FlagDelivery) -> None:
        failures = plain = 0
        async with httpx.AsyncClient(
            transport=self._transport or httpx.AsyncHTTPTransport(),
            headers=self._headers,
            timeout=httpx.Timeout(self._timeout, read=max(self._timeout, self._silence)),
            trust_env=False,
            follow_redirects=False,
        ) as client:
            talk = _Conversation(client, self._url, self, delivery, self._timeout, self._silence)
            while True:
                wait = self._rng.uniform(0.5, 1.0) * self._poll_every
                plain = max(0, plain - 1)
                talk.streamed = False
                try:
                    await talk.ask()
                    failures = 0
                    if not plain and await talk.listen():
                        wait = self._jittered(0)
                except FairleadError as error:
                    delivery.report(error)
                    if talk.streamed:
                        failures = 0
                    elif talk.is_open:
                        # Something on the way may hold events back: a stream that never said anything.
                        plain = _PLAIN_ROUNDS
                    failures += 1
                    wait = max(self._jittered(failures), self._asked_to_wait(error))
                await delivery.clock.sleep(wait)

    def _jittered(self, failures: int) -> float:
        return self._rng.uniform(0.0, min(self._longest_wait, _BACKOFF * 2.0 ** min(failures, 20)))

    def _asked_to_wait(self, error: FairleadError) -> float:
        asked = error.retry_after if isinstance(error, FailedStatus) else None
        return min(asked or 0.0, self._longest_wait)


class _Conversation:
    """What one follower and one server have told each other."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: httpx.URL,
        source: HttpFlags,
        delivery: FlagDelivery,
        timeout: float,
        silence: float,
    ) -> None:
        self._client = client
        self._url = url
        self._source = source
        self._delivery = delivery
        clock = delivery.clock
        self._answer = Policy(
            name=f"flags from {source.place}",
            timeout=timeout,
            # A connection that was kept may be closed by the server in the moment in which it is asked again: a
            # rollback that was just named must not wait for the next round because of that.
            retry=Retry(on=_CUT, attempts=2, base=0.01, budget=RetryBudget(clock=clock)),
            idempotent=True,
            clock=clock,
        )
        self._sign = Policy(name=f"flag stream of {source.place}", timeout=silence, clock=clock)
        self._tag = ""
        self._tagged = ""  # SHA-256 of the document that has this tag
        self._refused: InvalidInput | None = None  # because of which that document does not answer
        self.is_open = False
        self.streamed = False
        """Whether the stream has given a sign of life since the last round began."""

    async def ask(self) -> None:
        """Takes in the present document, if it is another. Raises FairleadError."""
        known = self._refused is not None or self._tagged == self._delivery.flags.digest
        headers = {"accept": "application/json"}
        if self._tag and known:
            headers["if-none-match"] = self._tag
        self.is_open = False
        try:
            answer = await self._answer.call(self._get, headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer is None:
            self._say()
            return
        data, tag = answer
        # In a thread: a document of a megabyte takes longer to check than a request may wait.
        refused = await asyncio.to_thread(self._delivery.receive, data, self._source)
        self._tag, self._tagged, self._refused = tag, hashlib.sha256(data).hexdigest(), refused

    async def listen(self) -> bool:
        """Follows the stream until it ends; False at once where there is none. Raises FairleadError."""
        headers = {"accept": "text/event-stream", "cache-control": "no-cache"}
        if self._tag:
            headers["last-event-id"] = self._tag
        request = self._client.build_request("GET", self._url, headers=headers)
        try:
            response = await self._answer.call(self._client.send, request, stream=True)
            try:
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if response.status_code != 200 or kind != "text/event-stream":
                    return False
                self.is_open = True
                await self._follow(_Lines(response))
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return True

    async def _follow(self, lines: _Lines) -> None:
        tag, fields = "", False
        while (line := await self._sign.call(lines.next)) is not None:
            self.streamed = True
            name, _, value = line.partition(b":")
            if line and name:
                fields = True
                if name == b"id":
                    tag = value.removeprefix(b" ").decode("utf-8", "replace")
            elif fields and not line and not (tag and tag == self._tag):
                await self.ask()
            else:
                self._say()  # a heartbeat, or the version that is known
            if not line:
                tag, fields = "", False

    async def _get(self, headers: dict[str, str]) -> tuple[bytes, str] | None:
        async with self._client.stream("GET", self._url, headers=headers) as response:
            status = response.status_code
            if status == 304 and "if-none-match" in headers:
                return None
            if status != 200:
                raise self._failed(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FailedStatus(f"{self._source.place}: its answer is compressed, unasked", status=status)
            length = declared_length(response.headers.get("content-length"))
            data = bytearray()
            if length is None or length <= MAX_BYTES:
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        break
                else:
                    return bytes(data), _tag_of(response)
            raise FailedStatus(
                f"{self._source.place}: its answer is larger than {MAX_BYTES} bytes; name the flag document",
                status=status,
            )

    def _say(self) -> None:
        if self._refused is not None:
            self._delivery.report(self._refused)
        else:
            self._delivery.confirm(self._tagged)

    def _failed(self, response: httpx.Response) -> FailedStatus:
        status = response.status_code
        what = f"{self._source.place}: answered {status}"
        if 300 <= status < 400:
            what += "; redirects are not followed: write the address that it leads to"
        elif status in (401, 403):
            what += "; check the token"
        headers = response.headers
        wait = parse_retry_after(headers.get("retry-after"), headers.get("date"), self._delivery.clock.utc())
        return FailedStatus(what, status=status, retry_after=wait)

    def _unreachable(self, error: httpx.HTTPError) -> FailedStatus:
        # Its text may quote a header.
        return FailedStatus(f"{self._source.place}: {type(error).__name__}")


class _Lines:
    """The lines of a stream of events, each within a bound."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()
        self._place = str(response.url.host)
        self._buffer = b""

    async def next(self) -> bytes | None:
        """A line without its end; None when the stream has ended, with or without one."""
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                return line.removesuffix(b"\r")
            if len(self._buffer) > _LONGEST_LINE:
                raise FailedStatus(
                    f"{self._place}: a line of its stream is longer than {_LONGEST_LINE} bytes"
                )
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                return None


def _tag_of(response: httpx.Response) -> str:
    tag = str(response.headers.get("etag", ""))
    return tag if len(tag) <= _LONGEST_TAG and tag.isascii() and tag.isprintable() else ""
