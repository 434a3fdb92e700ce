"""The feed itself: one code base, two ways to make a page, and a flag that chooses per request.

The flag document is followed while it runs.

`GET /feed?user=U&topic=N` answers `{"items", "model", "degraded", "missing", "next"}`; `next`, unless it is null, is
the `cursor` of the page below. Headers tell how the answer came about: `x-degraded` (0 or 1), `x-staleness-seconds`,
`x-age-seconds`, `x-cache` (hit or miss), `x-variant`. `/metrics` is Prometheus text, `/healthz` for probes. Only with
`--lab`: `POST /lab/clear` empties the caches, `POST /lab/events` tells how many events could not be kept,
`POST /lab/staleness` how stale each field was; `POST /lab/shadow?share=S` sets that share and answers with what was
compared so far; and the variant `regressed` is the treatment with a planted defect.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path

import aiohttp
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.cache import Codec, SecondTier
from fairlead.deadline import TIMEOUT_HEADER, Deadline
from fairlead.errors import InvalidInput
from fairlead.flags import EvaluationContext, ExposureLog, FlagDelivery, FlagFile, FlagSet
from fairlead.shadow import ShadowReport
from fairlead.telemetry import (
    BufferedSink,
    EventSink,
    HistogramSnapshot,
    ItemsShown,
    JsonLinesSegments,
    MetricRegistry,
    NullSink,
    RequestFinished,
)
from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import CandidateClient, Candidates, FeatureClient, Label, LabelClient
from fairlead_systems.home_feed.control import Control
from fairlead_systems.home_feed.cursor import decode_cursor, encode_cursor
from fairlead_systems.home_feed.feature_protocol import Features
from fairlead_systems.home_feed.mechanisms import FLAG_PREFIX, Mechanisms
from fairlead_systems.home_feed.paths import FLAG, Asked, Paths
from fairlead_systems.home_feed.ranking import InlineRanking, ScheduledRanking
from fairlead_systems.home_feed.seen import Seen
from fairlead_systems.home_feed.selection import SOURCES
from fairlead_systems.home_feed.treatment import Treatment
from fairlead_systems.home_feed.world import World
from fairlead_systems.serving import application, argument_parser, main

_SERVICE = "home_feed"
_LONGEST_ID = 64
LEASE = 0.5
"""Seconds for which one process may load for the others: above the p99 of a load, below the caller's patience."""


class Feed:
    """State of one feed process; everything in it is per process."""

    def __init__(
        self, flags: FlagSet, instance: str, seed: int, sink: EventSink, *, regressed: bool = False
    ) -> None:
        """regressed: whether the variant with the planted defect is served."""
        self._flags = flags
        self._regressed = random.Random(seed) if regressed else None
        self._instance = instance
        self._seed = seed
        self._sink = sink
        self._numbers = itertools.count(1)
        self._seen = Seen()
        self.registry = MetricRegistry()
        self._latency = self.registry.histogram(
            "feed_request_latency_seconds", "Time to answer, at the server.", labels=("variant", "status")
        )
        self._degraded = self.registry.counter(
            "feed_degraded_answers_total", "Answers by a fallback.", labels=("variant",)
        )
        for field in fields(Mechanisms):
            if FLAG_PREFIX + field.name in flags.document.flags:
                flags.require(FLAG_PREFIX + field.name, "boolean")
        self.uses = Mechanisms(
            **{
                field.name: flags.boolean(
                    FLAG_PREFIX + field.name, EvaluationContext(attributes={"instance": instance}), True
                )
                for field in fields(Mechanisms)
            }
        )

        # Here and not when the port is served: a model that is refused must be one line, not a failed start-up.
        self._inline = InlineRanking()
        self._scheduled = ScheduledRanking() if self.uses.int8_ranking else None

    def connect(
        self,
        session: aiohttp.ClientSession,
        sources: Mapping[str, str],
        labels_url: str,
        features_address: str,
        second: SecondTier | None = None,
    ) -> None:
        self.feature_client = FeatureClient(features_address)
        clients = {source: CandidateClient(session, url, source) for source, url in sources.items()}
        labels = LabelClient(session, labels_url)
        self._control = Control(clients, labels, self.feature_client, self._inline)
        self._treatment = Treatment(
            clients,
            labels,
            self.feature_client,
            self._scheduled or self._inline,
            World(self._seed).reviewed(),
            self.uses,
            self._sink.emit,
            registry=self.registry,
            second=second,
        )
        self._paths = Paths(self._control, self._treatment, sink=self._sink, regressed=self._regressed)

    async def warm(self) -> None:
        """Loads what will be asked for first, before the port is served."""
        await self._treatment.warm()

    async def close(self) -> None:
        await self._paths.close()
        await self._treatment.close()
        await self.feature_client.close()
        if self._scheduled is not None:
            self._scheduled.close()

    def shadow(self, share: float) -> ShadowReport:
        """Compares this share of control's pages from now on; what was compared until now. Raises InvalidInput."""
        self._paths.mirror.set_share(share)
        return self._paths.mirror.report()

    def staleness(self) -> dict[str, HistogramSnapshot]:
        """Of each field that the treatment has handed out, since the start."""
        return {
            field: histogram.snapshot() for field, histogram in self._treatment.labelling.staleness.items()
        }

    async def clear(self) -> None:
        self._control.clear()
        await self._treatment.clear()

    async def answer(self, request: Request) -> Response:
        began = time.monotonic()
        request_id = f"{self._instance}-{next(self._numbers)}"
        try:
            user, topic, shown, deadline = _read(request)
        except InvalidInput as error:
            self._finish(request_id, "", "", 400, began, None, error)
            return JSONResponse({"error": str(error)}, status_code=400)
        variant = self._flags.string(
            FLAG, EvaluationContext(targeting_key=user, attributes={"instance": self._instance}), "control"
        )
        asked = Asked(
            user=user,
            topic=topic,
            deadline=deadline,
            request_id=request_id,
            shown=shown,
            seen=self._seen.of(user),
        )
        try:
            answer = await self._paths.page(variant, asked)
        except NoAnswer as error:
            self._finish(request_id, user, variant, error.status, began, None, error.__cause__ or error)
            headers = {"x-variant": variant} | ({"Retry-After": "1"} if error.status == 503 else {})
            return JSONResponse({"error": error.reason}, status_code=error.status, headers=headers)
        except Exception as error:  # a defect: the server answers 500 and logs it, and the record says so too
            self._finish(request_id, user, variant, 500, began, None, error)
            raise
        self._finish(request_id, user, variant, 200, began, answer, None)
        self._show(request_id, variant, user, answer, len(shown))
        body = {
            "items": answer.items,
            "model": answer.model,
            "degraded": answer.degraded,
            "missing": answer.missing,
            "next": encode_cursor(user, (*shown, *answer.items)) if answer.more else None,
        }
        return Response(
            msgspec.json.encode(body),
            media_type="application/json",
            headers=_headers(variant, answer),
        )

    def _show(self, request_id: str, variant: str, user: str, answer: Answer, above: int) -> None:
        if not answer.items:
            return
        self._seen.add(user, answer.items)
        self._sink.emit(
            ItemsShown(
                at_utc_seconds=time.time(),
                request_id=request_id,
                surface=_SERVICE,
                targeting_key=user,
                items=[str(item) for item in answer.items],
                first_position=above + 1,
                model=answer.model,
                degraded=answer.degraded,
                variant=variant,
            )
        )

    def _finish(
        self,
        request_id: str,
        user: str,
        variant: str,
        status: int,
        began: float,
        answer: Answer | None,
        error: BaseException | None,
    ) -> None:
        latency = time.monotonic() - began
        self._latency.labels(variant=variant, status=str(status)).observe(latency)
        if answer is not None and answer.degraded:
            self._degraded.labels(variant=variant).add()
        self._sink.emit(
            RequestFinished(
                at_utc_seconds=time.time(),
                request_id=request_id,
                service=_SERVICE,
                route="/feed",
                status=status,
                latency_seconds=latency,
                degraded=answer is not None and answer.degraded,
                stale=answer is not None and bool(answer.staleness),
                staleness_seconds=(answer.staleness or 0.0) if answer is not None else 0.0,
                age_seconds=(answer.age or 0.0) if answer is not None else 0.0,
                error=type(error).__name__ if error is not None else "",
                variant=variant,
                targeting_key=user,
                attributes={"degraded_by": answer.degraded_by, "missing": ",".join(answer.missing)}
                if answer is not None and answer.degraded
                else {},
            )
        )


def _headers(variant: str, answer: Answer) -> dict[str, str]:
    headers = {
        "x-variant": variant,
        "x-degraded": "1" if answer.degraded else "0",
        "x-cache": "hit" if answer.hit else "miss",
    }
    if answer.staleness is not None:
        headers["x-staleness-seconds"] = f"{answer.staleness:.6f}"
    if answer.age is not None:
        headers["x-age-seconds"] = f"{answer.age:.6f}"
    return headers


def _read(request: Request) -> tuple[str, int, tuple[int, ...], Deadline | None]:
    user = request.query_params.get("user", "")
    topic = request.query_params.get("topic", "")
    if not user or len(user) > _LONGEST_ID:
        raise InvalidInput(f"user: 1 to {_LONGEST_ID} characters are needed, got {len(user)}")
    if not (topic.isascii() and topic.isdigit() and len(topic) <= 9):
        raise InvalidInput(f"topic: {topic[:32]!r} is not a topic number")
    cursor = request.query_params.get("cursor")
    shown = () if cursor is None else decode_cursor(user, cursor)
    return user, int(topic), shown, Deadline.from_header(request.headers.get(TIMEOUT_HEADER))


def build(arguments: argparse.Namespace) -> Starlette:
    sink: EventSink = NullSink()
    if arguments.events is not None:
        sink = BufferedSink(JsonLinesSegments(arguments.events, prefix="feed"), capacity=50_000)
    flags = FlagSet.from_file(arguments.flags, exposures=ExposureLog(sink))
    flags.require(FLAG, "string")
    feed = Feed(flags, arguments.instance, arguments.seed, sink, regressed=arguments.lab)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            async with session.get(f"{arguments.features}/healthz") as response:
                address = (await response.json())["grpc"]
            redis = arguments.redis
            if arguments.redis_through is not None:
                async with session.get(f"{arguments.redis_through}/healthz") as response:
                    redis = (await response.json())["redis"]
            second = None if redis is None else shared_by_redis(redis, arguments.shares_as)
            sources = {source: getattr(arguments, source) for source in SOURCES}
            feed.connect(session, sources, arguments.labels, address, second)
            try:
                await feed.warm()
                async with FlagDelivery(flags, FlagFile(arguments.flags)):
                    yield
            finally:
                await feed.close()
                if isinstance(sink, BufferedSink):
                    sink.close()

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok", "instance": arguments.instance})

    async def events(request: Request) -> Response:
        if not isinstance(sink, BufferedSink):
            return JSONResponse({"missing": 0, "failure": ""})
        stats = sink.stats
        failure = sink.failure
        return JSONResponse({"missing": stats.dropped + stats.lost, "failure": str(failure or "")})

    async def staleness(request: Request) -> Response:
        return Response(msgspec.json.encode(feed.staleness()), media_type="application/json")

    async def clear(request: Request) -> Response:
        await feed.clear()
        return JSONResponse({"cleared": True})

    async def shadow(request: Request) -> Response:
        try:
            report = feed.shadow(float(request.query_params.get("share", "")))
        except ValueError:
            return JSONResponse({"error": "share: a number from 0 to 1"}, status_code=400)
        return Response(msgspec.json.encode(report), media_type="application/json")

    routes = [Route("/feed", feed.answer), Route("/healthz", healthz)]
    if arguments.lab:
        routes.append(Route("/lab/clear", clear, methods=["POST"]))
        routes.append(Route("/lab/events", events, methods=["POST"]))
        routes.append(Route("/lab/shadow", shadow, methods=["POST"]))
        routes.append(Route("/lab/staleness", staleness, methods=["POST"]))
    return application(feed.registry, routes, lifespan)


def shared_by_redis(url: str, namespace: str) -> SecondTier:
    """The tier that several feed processes share: one load for all of them, and one removal."""
    from fairlead.cache.redis import RedisBackplane, RedisStore  # its extra is needed with --redis alone

    # Callers only read what they get, so the lists in it may be shared.
    codec: Codec[Candidates | Features | Label | None] = Codec(
        Candidates | Features | Label | None, mutable_ok=True
    )
    store = RedisStore(url, codec=codec, namespace=namespace)
    return SecondTier(store, backplane=RedisBackplane(store), lease_for=LEASE, name="redis")


def parser() -> argparse.ArgumentParser:
    arguments = argument_parser("The home feed of a short-video service.")
    for source in SOURCES:
        arguments.add_argument(
            f"--{source.replace('_', '-')}", required=True, help=f"base URL of the {source} source"
        )
    arguments.add_argument("--labels", required=True, help="base URL of the label service")
    arguments.add_argument("--features", required=True, help="base URL of the feature service's HTTP port")
    arguments.add_argument("--flags", type=Path, required=True, help="flag document")
    arguments.add_argument(
        "--instance", default="feed", help="name of this process in flags, events and metrics"
    )
    arguments.add_argument(
        "--events", type=Path, default=None, help="folder for event segments; none are kept if absent"
    )
    arguments.add_argument(
        "--redis",
        default=None,
        help="URL of a Redis that feeds share as second tier of the treatment's cache",
    )
    arguments.add_argument(
        "--redis-through", default=None, help="base URL of a redis_proxy that stands before it, instead"
    )
    arguments.add_argument(
        "--shares-as", default="home_feed", help="feeds of this name share what they keep in the Redis"
    )
    arguments.add_argument("--lab", action="store_true", help="serve /lab/clear, for load tests")
    return arguments


if __name__ == "__main__":
    main(parser(), build)
