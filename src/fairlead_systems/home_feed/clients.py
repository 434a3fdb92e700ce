"""How the feed reaches its downstreams. Nothing here retries, times out or caches: that is what the two
arms differ in.
"""

from __future__ import annotations

import asyncio
import itertools

import aiohttp
import grpc
import msgspec

from fairlead.context import current
from fairlead.deadline import TIMEOUT_HEADER
from fairlead_systems.home_feed.feature_protocol import BATCH, GET, BatchReply, BatchRequest, Features, encode

__all__ = ["CandidateClient", "Candidates", "DownstreamError", "FeatureClient", "UnknownTopic"]


class DownstreamError(Exception):
    """A downstream answered with a failure, refused, or could not be reached."""


class UnknownTopic(Exception):
    """The candidate source does not have this topic: the caller's mistake, and no failure of anybody."""


class Candidates(msgspec.Struct, frozen=True):
    topic: int
    items: list[int]
    as_of_seconds: float
    """Monotonic moment at which the source began to answer."""


_decode_candidates = msgspec.json.Decoder(Candidates).decode
_decode_features = msgspec.msgpack.Decoder(Features).decode
_decode_reply = msgspec.msgpack.Decoder(BatchReply).decode


class CandidateClient:
    """HTTP client of the candidate source."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base_url = base_url

    async def fetch(self, topic: int) -> Candidates:
        remaining = current().deadline.to_header()
        headers = {} if remaining is None else {TIMEOUT_HEADER: remaining}
        try:
            async with self._session.get(
                f"{self._base_url}/candidates?topic={topic}", headers=headers
            ) as response:
                body = await response.read()
        except aiohttp.ClientError as error:
            raise DownstreamError(f"candidate source: {error!r}") from error
        if response.status == 404:
            raise UnknownTopic(f"no topic {topic}")
        if response.status != 200:
            raise DownstreamError(f"candidate source: HTTP {response.status}")
        try:
            return _decode_candidates(body)
        except msgspec.MsgspecError as error:
            raise DownstreamError(f"candidate source: unreadable answer: {error}") from error


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
