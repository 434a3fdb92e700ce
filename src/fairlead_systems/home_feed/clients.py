"""How the feed reaches its downstreams. Nothing here retries, times out or caches: that is what the two
arms differ in.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from urllib.parse import quote

import aiohttp
import grpc
import msgspec

from fairlead.context import current
from fairlead.deadline import TIMEOUT_HEADER
from fairlead_systems.home_feed.feature_protocol import BATCH, GET, BatchReply, BatchRequest, Features, encode

__all__ = ["CandidateClient", "Candidates", "DownstreamError", "FeatureClient", "Label", "LabelClient"]


class DownstreamError(Exception):
    """A downstream answered with a failure, refused, or could not be reached."""


class Candidates(msgspec.Struct, frozen=True, tag=True):
    """What a source offers for a topic or a user."""

    key: str
    items: list[int]
    as_of_seconds: float
    """Monotonic moment at which the source began to answer."""


class Label(msgspec.Struct, frozen=True, tag=True):
    """One field of one item, and when the service read it."""

    value: float
    as_of_seconds: float


class _Labels(msgspec.Struct):
    values: dict[str, float]
    as_of_seconds: float


class _SafetyLabels(msgspec.Struct):
    values: dict[str, bool]
    as_of_seconds: float


_decode_candidates = msgspec.json.Decoder(Candidates).decode
_decode_labels = msgspec.json.Decoder(_Labels).decode
_decode_safety = msgspec.json.Decoder(_SafetyLabels).decode
_decode_features = msgspec.msgpack.Decoder(Features).decode
_decode_reply = msgspec.msgpack.Decoder(BatchReply).decode


class _HttpClient:
    def __init__(self, session: aiohttp.ClientSession, base_url: str, name: str) -> None:
        self._session = session
        self._base_url = base_url
        self.name = name

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body; raises DownstreamError for any status but 200 and 404."""
        remaining = current().deadline.to_header()
        headers = {} if remaining is None else {TIMEOUT_HEADER: remaining}
        try:
            async with self._session.get(self._base_url + path, headers=headers) as response:
                body = await response.read()
        except aiohttp.ClientError as error:
            raise DownstreamError(f"{self.name}: {error!r}") from error
        if response.status not in (200, 404):
            raise DownstreamError(f"{self.name}: HTTP {response.status}")
        return response.status, body


class CandidateClient(_HttpClient):
    """HTTP client of one candidate source."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, source: str) -> None:
        super().__init__(session, base_url, f"{source} source")
        self._parameter = "topic" if source == "trending" else "user"

    async def fetch(self, key: str) -> Candidates | None:
        """What the source offers for a topic or user; None for one that it does not have, which is an answer."""
        status, body = await self._get(f"/candidates?{self._parameter}={quote(key)}")
        if status == 404:
            return None
        try:
            return _decode_candidates(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DownstreamError(f"{self.name}: unreadable answer: {error}") from error


class LabelClient(_HttpClient):
    """HTTP client of the label service. Both calls answer in the order of `items`, None for one it does not have."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        super().__init__(session, base_url, "label service")

    async def safety(self, items: list[int]) -> list[Label | None]:
        return await self._labels("safety", items, _decode_safety)

    async def popularity(self, items: list[int]) -> list[Label | None]:
        return await self._labels("popularity", items, _decode_labels)

    async def _labels(
        self, field: str, items: list[int], decode: Callable[[bytes], _Labels | _SafetyLabels]
    ) -> list[Label | None]:
        status, body = await self._get(f"/{field}?items={','.join(map(str, items))}")
        if status != 200:
            raise DownstreamError(f"{self.name}: HTTP {status}")
        try:
            found = decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DownstreamError(f"{self.name}: unreadable answer: {error}") from error
        values = (found.values.get(str(item)) for item in items)
        return [None if value is None else Label(value, found.as_of_seconds) for value in values]


class FeatureClient:
    """gRPC client of the feature service: unary calls, and batches over one stream that is reopened when it
    breaks.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._get = self._channel.unary_unary(
            GET, request_serializer=encode, response_deserializer=_decode_features
        )
        self._batch = self._channel.stream_stream(
            BATCH, request_serializer=encode, response_deserializer=_decode_reply
        )
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[list[Features]]] = {}
        self._outgoing: asyncio.Queue[BatchRequest] = asyncio.Queue()
        self._stream: asyncio.Task[None] | None = None

    async def get(self, item: int) -> Features:
        try:
            features: Features = await self._get(item)
            return features
        except grpc.aio.AioRpcError as error:
            raise DownstreamError(f"feature service: {error.code().name} {error.details()}") from error

    async def batch(self, items: list[int]) -> list[Features]:
        """Features in the order of `items`."""
        if self._stream is None:
            self._stream = asyncio.create_task(self._run_stream())
        request = BatchRequest(next(self._ids), items)
        reply: asyncio.Future[list[Features]] = asyncio.get_running_loop().create_future()
        self._pending[request.id] = reply
        self._outgoing.put_nowait(request)
        try:
            return await reply
        finally:
            self._pending.pop(request.id, None)

    async def _run_stream(self) -> None:
        why = "the stream ended"
        call = self._batch()
        writer = asyncio.create_task(self._write(call))
        try:
            async for reply in call:
                waiting = self._pending.get(reply.id)
                if waiting is None or waiting.done():
                    continue  # its caller gave up
                if reply.error:
                    waiting.set_exception(DownstreamError(f"feature service: {reply.error}"))
                else:
                    waiting.set_result(reply.features)
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name} {error.details()}"
        except Exception as error:  # the edge of the task: told to everybody who waits
            why = repr(error)
        finally:
            # First of all, and without a wait: from here on a request opens a stream of its own.
            self._stream = None
            self._outgoing = asyncio.Queue()
            for waiting in list(self._pending.values()):
                if not waiting.done():
                    waiting.set_exception(DownstreamError(f"feature service: {why}"))
            writer.cancel()
            call.cancel()
            await asyncio.gather(writer, return_exceptions=True)  # a broken stream breaks its writer too

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        outgoing = self._outgoing
        while True:
            await call.write(await outgoing.get())

    async def close(self) -> None:
        if (stream := self._stream) is not None:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
        await self._channel.close()
