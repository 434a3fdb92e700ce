"""The feature service: what is known of a video. gRPC with finite capacity, and a small HTTP port for
health and the lab.

`Get` serves one item a call, `Batch` many items a call over one open stream. Both take one worker per call:
a batch of twelve costs little more than a single item, which is what makes N+1 expensive.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import msgspec
from starlette.applications import Starlette

from fairlead.telemetry import MetricRegistry
from fairlead_systems.home_feed.capacity import Capacity, Full, ServiceTime
from fairlead_systems.home_feed.feature_protocol import SERVICE, BatchReply, BatchRequest, Features, encode
from fairlead_systems.home_feed.serving import lab_routes
from fairlead_systems.home_feed.world import World
from fairlead_systems.serving import application, argument_parser, main

SERVICE_TIME = ServiceTime(median=0.005, sigma=0.5, per_item=0.0002, stall_chance=0.002, stall=0.300)
WORKERS = 24
QUEUE = 256
MAX_ITEMS = 512

_decode_item = msgspec.msgpack.Decoder(int).decode
_decode_batch = msgspec.msgpack.Decoder(BatchRequest).decode


class FeatureService:
    def __init__(self, seed: int) -> None:
        self._world = World(seed)
        self.capacity = Capacity(workers=WORKERS, queue=QUEUE, service_time=SERVICE_TIME, seed=seed)

    async def get(self, item: int, context: grpc.aio.ServicerContext) -> Features:
        try:
            values = self._world.features(item)
        except IndexError:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no item {item}")
        as_of = time.monotonic()
        try:
            await self.capacity.serve("get")
        except Full:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        return Features(item, values, as_of)

    async def batch(
        self, requests: AsyncIterator[BatchRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[BatchReply]:
        replies: asyncio.Queue[BatchReply | None] = asyncio.Queue()
        answering: set[asyncio.Task[None]] = set()

        async def answer(request: BatchRequest) -> None:
            replies.put_nowait(await self._answer(request))

        async def read() -> None:
            try:
                async for request in requests:
                    task = asyncio.create_task(answer(request))
                    answering.add(task)
                    task.add_done_callback(answering.discard)
                await asyncio.gather(*answering)
            finally:
                replies.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                yield reply
        finally:
            for task in (reader, *answering):
                task.cancel()
            await asyncio.gather(reader, *answering, return_exceptions=True)

    async def _answer(self, request: BatchRequest) -> BatchReply:
        if len(request.items) > MAX_ITEMS:
            return BatchReply(request.id, error=f"{len(request.items)} items: at most {MAX_ITEMS} a batch")
        as_of = time.monotonic()
        try:
            features = [Features(item, self._world.features(item), as_of) for item in request.items]
        except IndexError as error:
            return BatchReply(request.id, error=f"no item {error}")
        try:
            await self.capacity.serve("batch", len(request.items))
        except Full:
            return BatchReply(request.id, error="queue full")
        return BatchReply(request.id, features)


def build(arguments: argparse.Namespace) -> Starlette:
    service = FeatureService(arguments.seed)
    address = ""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        nonlocal address
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "Get": grpc.unary_unary_rpc_method_handler(
                            service.get, request_deserializer=_decode_item, response_serializer=encode
                        ),
                        "Batch": grpc.stream_stream_rpc_method_handler(
                            service.batch, request_deserializer=_decode_batch, response_serializer=encode
                        ),
                    },
                ),
            )
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=0.5)

    registry = MetricRegistry()
    service.capacity.export(registry, "features")
    return application(registry, lab_routes(service.capacity, grpc=lambda: address), lifespan)


if __name__ == "__main__":
    main(argument_parser("The home feed's feature service."), build)
