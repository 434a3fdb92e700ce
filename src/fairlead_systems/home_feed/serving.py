"""How each process of the home feed opens its port and serves until it is told to stop.

The parent that starts a whole topology binds the port itself and passes the socket, so no other program can
take the port in between; started by hand, a process binds `--port` on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import errno
import socket
import sys
from functools import reduce
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError, InvalidInput, PortInUse
from fairlead_systems.home_feed.capacity import Capacity, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

__all__ = ["argument_parser", "lab_routes", "main"]

LONGEST_STALL = 30.0


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fd", type=int, default=None, help="serve on this inherited listening socket")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--seed", type=int, default=1, help="decides the world and the service times")
    return parser


def lab_routes(*capacities: Capacity, **healthy: Callable[[], str]) -> list[Route]:
    """What a downstream answers to a load test: `/lab/stall` hangs its workers, `/lab/window` tells its counters.

    healthy: what `/healthz` says beside its status.
    """
    import msgspec
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def stall(request: Request) -> Response:
        try:
            seconds = float(request.query_params.get("seconds", ""))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_STALL:
            return JSONResponse({"error": f"seconds: 0 to {LONGEST_STALL}"}, status_code=400)
        for capacity in capacities:
            capacity.stall(seconds)
        return JSONResponse({"stalled_seconds": seconds})

    async def window(request: Request) -> Response:
        taken = reduce(Window.add, [capacity.take_window() for capacity in capacities])
        return Response(msgspec.json.encode(taken), media_type="application/json")

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"} | {name: say() for name, say in healthy.items()})

    return [
        Route("/lab/stall", stall, methods=["POST"]),
        Route("/lab/window", window, methods=["POST"]),
        Route("/healthz", healthz),
    ]


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
