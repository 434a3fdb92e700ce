"""Stands before a Redis that is not ours, so that a trial can hang it or take it away without touching it.

`--redis URL` is the real one. `/healthz` tells the URL under which it is reached through here; `POST /lab/hang` and
`/lab/refuse` set a fault of `seconds`, which ends by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.errors import InvalidInput
from fairlead.lab import TcpProxy
from fairlead.telemetry import MetricRegistry
from fairlead_systems.serving import application, argument_parser, main

__all__ = ["check_redis_url"]


def check_redis_url(url: str) -> None:
    """Raises InvalidInput for a URL that cannot be reached through a proxy of plain TCP."""
    try:
        parts = urlsplit(url)
        known = parts.scheme == "redis" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise InvalidInput(
            f"--redis {url[:64]!r}: give a URL such as redis://127.0.0.1:6379/0; TLS does not pass the proxy"
        )


def build(arguments: argparse.Namespace) -> Starlette:
    check_redis_url(arguments.redis)
    parts = urlsplit(arguments.redis)
    proxy = TcpProxy(parts.hostname or "", parts.port or 6379)

    def fault(begin: Callable[[float], None]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def set_fault(request: Request) -> Response:
            try:
                begin(float(request.query_params.get("seconds", "")))
            except (ValueError, InvalidInput) as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            return JSONResponse({"set": True})

        return set_fault

    async def healthz(request: Request) -> Response:
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        through = parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}").geturl()
        return JSONResponse({"status": "ok", "redis": through})

    routes = [
        Route("/lab/hang", fault(proxy.hang), methods=["POST"]),
        Route("/lab/refuse", fault(proxy.refuse), methods=["POST"]),
        Route("/healthz", healthz),
    ]
    return application(MetricRegistry(), routes, lambda: proxy)


def parser() -> argparse.ArgumentParser:
    arguments = argument_parser("A proxy before a Redis.")
    arguments.add_argument("--redis", required=True, help="URL of the Redis behind it")
    return arguments


if __name__ == "__main__":
    main(parser(), build)
