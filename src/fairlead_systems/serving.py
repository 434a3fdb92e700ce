"""How each process of a reference system is measured, opens its port and serves until it is told to stop.

The parent that starts a whole topology binds the port itself and passes the socket, so no other program can
take the port in between; started by hand, a process binds `--port` on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import errno
import socket
import sys
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError, InvalidInput, PortInUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette
    from starlette.routing import BaseRoute

    from fairlead.telemetry import MetricRegistry

__all__ = ["application", "argument_parser", "main"]


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fd", type=int, default=None, help="serve on this inherited listening socket")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--seed", type=int, default=1, help="decides the world and the service times")
    return parser


def application(
    registry: MetricRegistry,
    routes: Sequence[BaseRoute],
    lifespan: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
) -> Starlette:
    """The application of one process. `GET /metrics` shows `registry`, and in it its routes, its loop and itself."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from fairlead.diagnosis import WaitSampler
    from fairlead.telemetry import LoopLag, export_process
    from fairlead.telemetry.asgi import MetricsEndpoint, MetricsMiddleware

    export_process(registry)
    lag = LoopLag(registry)
    waits: AbstractAsyncContextManager[object] = nullcontext()
    with suppress(InvalidInput):  # a kernel that does not tell what threads wait for
        waits = WaitSampler(registry)

    @asynccontextmanager
    async def alive(app: Starlette) -> AsyncIterator[None]:
        async with lifespan(), lag, waits:
            yield

    return Starlette(
        lifespan=alive,
        routes=[*routes, Route("/metrics", MetricsEndpoint(registry))],
        middleware=[Middleware(MetricsMiddleware, registry=registry, count_queries=True)],
    )


def main(parser: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Starlette]) -> None:
    """Parses the arguments, builds the application and serves it; errors are one line and exit 1 or 2."""
    arguments = parser.parse_args()
    try:
        listening = _listen(arguments)
        _serve(build(arguments), listening)
    except InvalidInput as error:
        sys.exit(_fail(error, 2))
    except FairleadError as error:
        sys.exit(_fail(error, 1))


def _fail(error: FairleadError, code: int) -> int:
    print(f"{error}", file=sys.stderr, flush=True)
    return code


def _listen(arguments: argparse.Namespace) -> socket.socket:
    if arguments.fd is not None:
        try:
            return socket.socket(fileno=arguments.fd)
        except OSError as error:
            raise InvalidInput(f"--fd {arguments.fd} is not a listening socket: {error.strerror}") from error
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", arguments.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {arguments.port} on 127.0.0.1 is taken by another process: stop it, or choose another --port"
            ) from error
        raise InvalidInput(f"--port {arguments.port}: {error.strerror}") from error
    except OverflowError as error:
        raise InvalidInput(f"--port {arguments.port}: a port is a number from 0 to 65535") from error
    return listening


def _serve(app: Starlette, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    # Announced before serving: the listener already queues connections, and whoever started us by hand needs the port.
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    listening.listen(2048)
    uvicorn.Server(config).run(sockets=[listening])
