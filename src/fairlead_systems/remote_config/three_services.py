"""The control: personalisation as it was proposed, three services in a chain, each with a database of its own.

    client -> assembly -> rules -> profile          settings for all | rules per segment | who is in which segment

Written as a competent team writes it: pooled connections, a timeout and one retry a call, indexed look-ups, settings
and rules kept for a second. A user's profile is asked for each time, since the profile service alone knows when it
changes. What it lacks is not skill but a place to put a cache: an answer is made of three services' data, and no one of
them hears when another's changes.

`python -m fairlead_systems.remote_config.three_services ROLE` is one process of the three.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

import aiohttp
import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead_systems.remote_config.database import make_database, open_engine
from fairlead_systems.remote_config.documents import make_document
from fairlead_systems.remote_config.front import Answer, Front, NoAnswer
from fairlead_systems.remote_config.instrument import Instrument
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.world import World
from fairlead_systems.serving import application, argument_parser, main

__all__ = ["ROLES", "make_databases"]

ROLES = ("profile", "rules", "assembly")
TTL = 1.0
"""Seconds for which rules and settings are kept."""
TIMEOUT = 0.5
ATTEMPTS = 2

_V = TypeVar("_V")
METADATA = sa.MetaData()
PROFILES = sa.Table(
    "profiles",
    METADATA,
    sa.Column("user", sa.String(64), primary_key=True),
    sa.Column("segment", sa.String(32), nullable=False),
    sa.Column("own", sa.Text, nullable=False),
)
RULES = sa.Table(
    "rules",
    METADATA,
    sa.Column("segment", sa.String(32), primary_key=True),
    sa.Column("settings", sa.Text, nullable=False),
)
SETTINGS = sa.Table(
    "settings",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_TABLES = {"profile": PROFILES, "rules": RULES, "assembly": SETTINGS}


class Profile(msgspec.Struct, frozen=True):
    segment: str = ""
    own: dict[str, msgspec.Raw] = {}


class Ruled(msgspec.Struct, frozen=True):
    """What the rules service answers: a user's segment, and all that differs for him."""

    segment: str
    settings: dict[str, msgspec.Raw]
    age_seconds: float


class Broken(Exception):
    """A service behind this one did not answer, or not well."""


def make_databases(directory: Path, world: World) -> dict[str, str]:
    """The three databases, filled; their URLs by role."""
    rows: dict[str, list[dict[str, object]]] = {
        "profile": [
            {"user": user, "segment": segment, "own": _json(own)} for user, segment, own in world.users()
        ],
        "rules": [
            {"segment": segment, "settings": _json(values)} for segment, values in world.segments().items()
        ],
        "assembly": [{"name": name, "value": _json(value)} for name, value in world.everybody().items()],
    }
    urls = {}
    for role, table in _TABLES.items():
        urls[role] = f"sqlite:///{directory / role}.db"
        engine = open_engine(urls[role])
        make_database(engine)
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(sa.insert(table), rows[role])
        engine.dispose()
    return urls


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Kept(Generic[_V]):
    """A value read at most once a second, or by everyone who finds it too old at the same time."""

    def __init__(self, read: Callable[[], _V]) -> None:
        self._read = read
        self._value: tuple[float, _V] | None = None

    async def get(self) -> tuple[_V, float]:
        """The value, and its age in seconds."""
        now = time.monotonic()
        if self._value is None or now - self._value[0] > TTL:
            self._value = (now, await asyncio.to_thread(self._read))
        return self._value[1], time.monotonic() - self._value[0]


async def ask(session: aiohttp.ClientSession, url: str, user: str) -> bytes:
    """The body of the service's answer: two attempts, half a second each. Raises Broken."""
    why: Exception | str = ""
    for _ in range(ATTEMPTS):
        try:
            async with asyncio.timeout(TIMEOUT), session.get(url, params={"user": user}) as response:
                if response.status == 200:
                    return await response.read()
                why = f"status {response.status}"
        except (TimeoutError, aiohttp.ClientError) as error:
            why = error
    raise Broken(f"{url}: {why!r}")


class Profiles:
    """GET /profile?user=U: who the user is."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    async def answer(self, user: str, session: aiohttp.ClientSession) -> bytes:
        return await asyncio.to_thread(self._read, user)

    def _read(self, user: str) -> bytes:
        query = sa.select(PROFILES.c.segment, PROFILES.c.own).where(PROFILES.c.user == user)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return msgspec.json.encode(Profile())
        return msgspec.json.encode(
            Profile(row.segment, msgspec.json.decode(row.own, type=dict[str, msgspec.Raw]))
        )


class Rules:
    """GET /rules?user=U: what differs for the user, by his segment and by himself."""

    def __init__(self, engine: sa.Engine, profile_url: str) -> None:
        self._engine = engine
        self._profile_url = f"{profile_url}/profile"
        self._rules: Kept[dict[str, dict[str, msgspec.Raw]]] = Kept(self._read)

    async def answer(self, user: str, session: aiohttp.ClientSession) -> bytes:
        profile = msgspec.json.decode(await ask(session, self._profile_url, user), type=Profile)
        rules, age = await self._rules.get()
        settings = rules.get(profile.segment, {}) | profile.own
        return msgspec.json.encode(Ruled(profile.segment, settings, age))

    def _read(self) -> dict[str, dict[str, msgspec.Raw]]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(RULES.c.segment, RULES.c.settings)).all()
        return {row.segment: msgspec.json.decode(row.settings, type=dict[str, msgspec.Raw]) for row in rows}


class Assembly:
    """GET /config?user=U: settings for all, and what differs for the user on top."""

    def __init__(self, engine: sa.Engine, rules_url: str) -> None:
        self._engine = engine
        self._rules_url = f"{rules_url}/rules"
        self._settings: Kept[dict[str, object]] = Kept(self._read)
        self.session: aiohttp.ClientSession | None = None

    async def find(self, user: str) -> Answer:
        assert self.session is not None  # noqa: S101 - the server's start has opened it
        try:
            ruled = msgspec.json.decode(await ask(self.session, self._rules_url, user), type=Ruled)
            settings, age = await self._settings.get()
        except (Broken, SQLAlchemyError, msgspec.MsgspecError) as error:
            raise NoAnswer(502, f"no configuration: {error}") from error
        values = dict(settings)
        for name, raw in ruled.settings.items():
            values[name] = PAGE.decode(name, bytes(raw).decode())
        return Answer(make_document(ruled.segment, values), age=max(age, ruled.age_seconds))

    def _read(self) -> dict[str, object]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
        return dict(PAGE.defaults) | {row.name: PAGE.decode(row.name, row.value) for row in rows}


def build(arguments: argparse.Namespace) -> Starlette:
    role, behind = arguments.role, arguments.behind
    if (role == "profile") == (behind is not None):
        raise InvalidInput(
            f"--behind: rules and assembly need the service behind them, profile has none; got {behind!r}"
        )
    engine = open_engine(arguments.database)
    registry = MetricRegistry()
    instrument = Instrument(engine, registry)
    opened: list[aiohttp.ClientSession] = []
    front: Front | None = None
    if role == "assembly":
        assembly = Assembly(engine, behind)
        front = Front(
            assembly.find,
            instance=arguments.instance,
            variant="control",
            instrument=instrument,
            registry=registry,
            events=arguments.events,
        )
        routes = front.routes()
    else:
        inner = Profiles(engine) if role == "profile" else Rules(engine, behind)

        async def answer(request: Request) -> Response:
            instrument.requests += 1
            try:
                body = await inner.answer(request.query_params.get("user", ""), opened[0])
            except (Broken, SQLAlchemyError) as error:
                return JSONResponse({"error": str(error)}, status_code=502)
            return Response(body, media_type="application/json")

        async def healthz(request: Request) -> Response:
            return JSONResponse({"status": "ok", "role": role})

        routes = [Route(f"/{role}", answer), Route("/healthz", healthz)]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        # At most 100 connections, which is aiohttp's own bound.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            opened.append(session)
            if role == "assembly":
                assembly.session = session
            try:
                yield
            finally:
                engine.dispose()
                if front is not None:
                    front.close()

    if arguments.lab:
        routes += instrument.routes()
    return application(registry, routes, lifespan)


def parser() -> argparse.ArgumentParser:
    arguments = argument_parser("Personalisation in three services.")
    arguments.add_argument("role", choices=ROLES)
    arguments.add_argument("--database", required=True, help="URL of this service's database")
    arguments.add_argument("--behind", default=None, help="base URL of the service behind this one")
    arguments.add_argument(
        "--instance", default="assembly", help="name of this process in events and metrics"
    )
    arguments.add_argument("--events", type=Path, default=None, help="folder for event segments")
    arguments.add_argument("--lab", action="store_true", help="let a load test count and set faults")
    return arguments


if __name__ == "__main__":
    main(parser(), build)
