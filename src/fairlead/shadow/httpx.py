"""A candidate behind HTTP: a new version of the service, in processes of its own.

Sends through httpx's transport and not through its client: a client would keep the cookies that the candidate sets and
send them with the next user's request, follow redirects, and read proxies from the environment.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.shadow.asgi import MirroredRequest
from fairlead.shadow.capture import is_encoded
from fairlead.shadow.comparison import Answer

try:
    import httpx
except ImportError as missing:
    raise MissingExtra(missing.name or "httpx", "http") from missing

__all__ = ["HttpxCandidate"]

_FORWARDED = b"x-forwarded-host"


class HttpxCandidate:
    """Asks `url` what the service was asked: same method, path, query, headers and body.

    url: scheme, host and port, and a path if the candidate lies below one. `Host` is the candidate's own, the original
        travels as `x-forwarded-host`: a proxy in front of the candidate would not know the other.
    connections: at most, 1 to 10,000. As many as the mirror's concurrency.
    transport: what sends; None: httpx's own, which `close` closes.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_whole("HttpxCandidate.connections", connections, low=1, high=10_000)
        try:
            base = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidInput(
                f"HttpxCandidate: {url!r:.100} cannot be read; write http://host:port"
            ) from error
        if base.userinfo:
            raise InvalidInput(
                f"HttpxCandidate: the address of {base.host!r:.100} holds a password; leave it out and "
                "pass a transport that signs in"
            )
        if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
            raise InvalidInput(f"HttpxCandidate: {url!r:.100} is no http://host:port or https://host:port")
        self._base = base
        self._path = base.raw_path.rstrip(b"/")
        if transport is None:
            # httpx's own loads it with its first connection, and would hold the loop for it: 0.1 to 0.2 s.
            with suppress(ImportError):
                import_module("anyio._backends._asyncio")
        self._transport = transport or httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        )

    async def __call__(self, request: MirroredRequest) -> Answer:
        """Its answer; raises httpx.TransportError.

        Not whole if it is larger than the bound, or compressed although that was not asked for: what unpacks to
        gigabytes would hold the loop. Nor where HTTP/1.1 cannot carry the question, which is not the candidate's fault.
        """
        headers = [(name, value) for name, value in request.headers if name != b"host"]
        headers.append((b"host", self._base.netloc))
        if not any(name == _FORWARDED for name, _ in headers):
            headers += [(_FORWARDED, value) for name, value in request.headers if name == b"host"]
        sent = httpx.Request(
            request.method,
            self._base,
            headers=headers,
            stream=httpx.ByteStream(request.body),
            # As it came: an httpx.URL would resolve `..` and encode anew, and ask another question.
            extensions={"target": self._path + request.target.encode("latin-1")},
        )
        try:
            response = await self._transport.handle_async_request(sent)
        except httpx.LocalProtocolError:
            return Answer(whole=False)
        try:
            if is_encoded(response.headers.raw):
                return Answer(whole=False)
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > request.body_bytes:
                    return Answer(whole=False)
        finally:
            await response.aclose()
        return request.answer(response.status_code, response.headers.raw, bytes(body))

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()
