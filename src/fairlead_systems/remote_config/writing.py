"""Who may change the configuration, over HTTP: a bearer token per person, so that the audit names who it was.

`PUT /entries/{layer}/{subject}/{name}?reason=R` with a JSON value writes one entry, `DELETE` removes it, `GET` tells
its history; the subject of the layer `all` is `-`. The routes exist only where a file of writers was given: an object
of names with the SHA-256 of each one's token in hexadecimal. A token itself is kept nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.errors import BrokenDocument, DeadlineExceeded, InvalidInput, Refused
from fairlead_systems.remote_config.configuration import Configuration
from fairlead_systems.remote_config.schema import LONGEST_VALUE, SEGMENT, check_segment, check_user
from fairlead_systems.remote_config.table import Change, Layer, TableUnavailable

__all__ = ["entry_routes", "read_writers"]

_NOBODY = "-"
_LARGEST_BODY = 4 * LONGEST_VALUE  # a character takes at most so many bytes


def read_writers(path: Path) -> dict[str, str]:
    """Names by the hash of their token. Raises BrokenDocument."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise BrokenDocument(f"{path}: {error}; it should map names to SHA-256 of their tokens") from error
    for name, digest in found.items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not 0 < len(name) <= 64:
            raise BrokenDocument(f"{path}: {name[:64]!r} has no SHA-256 in lower-case hexadecimal")
    return {digest: name for name, digest in found.items()}


def entry_routes(configuration: Configuration, writers: Mapping[str, str]) -> list[Route]:
    """Routes for those who may write. writers: names by the hash of their token."""

    async def entry(request: Request) -> Response:
        actor = _actor(request, writers)
        if not actor:
            return JSONResponse(
                {"error": "a bearer token of a writer is needed"},
                status_code=401,
                headers={"www-authenticate": "Bearer"},
            )
        try:
            layer, subject, name = _key(request)
            if request.method in ("GET", "HEAD"):
                return await _history(configuration, layer, subject, name)
            change = Change(layer=layer, subject=subject, name=name, removed=True)
            if request.method == "PUT":
                change = Change(layer=layer, subject=subject, name=name, value=await _value(request))
            reason = request.query_params.get("reason", "")
            version = await configuration.write([change], actor=actor, reason=reason)
        except InvalidInput as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except DeadlineExceeded as error:
            return JSONResponse(
                {"error": f"{error}; whether it was written is not known: read the history"}, status_code=504
            )
        except (TableUnavailable, Refused) as error:
            return JSONResponse({"error": str(error)}, status_code=503, headers={"retry-after": "1"})
        return JSONResponse({"version": version})

    return [Route("/entries/{layer}/{subject}/{name}", entry, methods=["GET", "PUT", "DELETE"])]


def _actor(request: Request, writers: Mapping[str, str]) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    found = ""
    for known, name in writers.items():  # all of them, so that the time tells nothing
        if hmac.compare_digest(known, digest):
            found = name
    return found if scheme.lower() == "bearer" else ""


def _key(request: Request) -> tuple[Layer, str, str]:
    layer, subject, name = (request.path_params[part] for part in ("layer", "subject", "name"))
    if layer not in get_args(Layer):
        raise InvalidInput(f"layer {layer[:32]!r}: {', '.join(get_args(Layer))} are known")
    if layer == "all":
        if subject != _NOBODY:
            raise InvalidInput(f"the layer all has no subject: write {_NOBODY} instead of {subject[:64]!r}")
        return layer, "", name
    return layer, check_segment(subject) if layer == SEGMENT else check_user(subject), name


async def _value(request: Request) -> object:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise InvalidInput(f"a value takes at most {_LARGEST_BODY} bytes")
    try:
        return msgspec.json.decode(bytes(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidInput(f"the value is no JSON: {error}") from error


async def _history(configuration: Configuration, layer: Layer, subject: str, name: str) -> Response:
    found = await configuration.history(layer, subject, name)
    return Response(msgspec.json.encode(found), media_type="application/json")
