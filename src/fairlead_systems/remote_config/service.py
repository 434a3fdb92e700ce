"""The treatment, whole: one process, one table, one cached response.

`GET /config?user=U` (front.py), with an ETag and 304 for who has it already. With `--writers FILE` also the entries
themselves (writing.py). Starts without its database, from the last-known-good file.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from fairlead.errors import FairleadError, InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead_systems.remote_config.configuration import Configuration
from fairlead_systems.remote_config.front import Answer, Front, NoAnswer
from fairlead_systems.remote_config.instrument import Instrument
from fairlead_systems.remote_config.mechanisms import MECHANISMS, Mechanisms
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import ConfigTable, TableUnavailable
from fairlead_systems.remote_config.writing import entry_routes, read_writers
from fairlead_systems.serving import application, argument_parser, main


def build(arguments: argparse.Namespace) -> Starlette:
    registry = MetricRegistry()
    table = ConfigTable(arguments.database, PAGE)
    if arguments.create:
        try:
            table.create()
        except TableUnavailable as error:
            raise InvalidInput(f"--create: {error}") from error
    instrument = Instrument(table.engine, registry)
    configuration = Configuration(
        table,
        PAGE,
        last_known_good=arguments.last_known_good,
        poll_every=arguments.poll_every,
        uses=replace(Mechanisms(), **dict.fromkeys(arguments.without, False)),
    )

    async def find(user: str) -> Answer:
        try:
            served = await configuration.document(user)
        except (FairleadError, TableUnavailable, TimeoutError) as error:
            raise NoAnswer(503, f"no configuration: {error}") from error
        return Answer(
            served.document,
            degraded_by=served.degraded_by,
            staleness=served.staleness,
            age=served.age,
            hit=served.hit,
            version=served.version,
        )

    front = Front(
        find,
        instance=arguments.instance,
        variant="treatment",
        instrument=instrument,
        registry=registry,
        events=arguments.events,
    )
    configuration.export(registry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await configuration.start()
        try:
            yield
        finally:
            await configuration.close()
            table.close()
            front.close()

    routes = front.routes()
    if arguments.writers is not None:
        routes += entry_routes(configuration, read_writers(arguments.writers))
    if arguments.lab:
        routes += instrument.routes()
    return application(registry, routes, lifespan)


def _poll_every(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: 0.01 to 3600 seconds")
    return seconds


def parser() -> argparse.ArgumentParser:
    arguments = argument_parser("Remote configuration: one table and a cached response.")
    arguments.add_argument(
        "--database", required=True, help="sqlite:///path or postgresql://user@host/database"
    )
    arguments.add_argument("--create", action="store_true", help="make the table first where there is none")
    arguments.add_argument(
        "--last-known-good", type=Path, default=None, help="file to start from when the database is down"
    )
    arguments.add_argument(
        "--poll-every", type=_poll_every, default=None, help="seconds between two looks for changes"
    )
    arguments.add_argument("--writers", type=Path, default=None, help="who may write; see writing.py")
    arguments.add_argument("--instance", default="config", help="name of this process in events and metrics")
    arguments.add_argument("--events", type=Path, default=None, help="folder for event segments")
    arguments.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[each.name for each in MECHANISMS],
        help="switch one mechanism off",
    )
    arguments.add_argument("--lab", action="store_true", help="let a load test count and set faults")
    return arguments


if __name__ == "__main__":
    main(parser(), build)
