"""Finds the pattern of the route that answered a request: `/users/{id}`, never `/users/17`.

A path as a label makes a series per user; after the bound, everything reads `_overflow` and the metric is lost.
Starlette, FastAPI and Litestar leave in the scope what they matched, in three ways. A route inside a mount knows only
the rest of its pattern, so the routes of the whole application are walked once and remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

__all__ = ["UNROUTED", "RoutePatterns"]

UNROUTED = "_unrouted"
"""No route was found: a 404, or an answer by a middleware that stands before the router."""

_MOST = 10_000


class RoutePatterns:
    """The patterns of the applications that one middleware has seen."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        # By identity, since routes compare equal by content; the object is kept so that its id stays taken.
        self._found: dict[int, tuple[object, str]] = {}

    def of(self, scope: MutableMapping[str, Any]) -> str:
        """The pattern of the request whose `scope` went through the router, or UNROUTED."""
        matched = scope.get("route")  # FastAPI, and Starlette from 1.0
        if matched is None:
            template = scope.get("path_template")  # Litestar
            if template:
                return str(template)
            matched = scope.get("endpoint")  # Starlette before
            if matched is None:
                return UNROUTED
        elif "fastapi" in scope:  # one route may be included under several prefixes, and knows none of them
            effective = scope["fastapi"].get("effective_route_context")
            if getattr(effective, "original_route", None) is matched:
                matched = effective
        found = self._found.get(id(matched))
        if found is None:
            found = self._learn(matched, scope)
        return found[1] or self._told_apart_by_parameters(matched, scope)

    def _learn(self, matched: object, scope: MutableMapping[str, Any]) -> tuple[object, str]:
        if len(self._found) > _MOST:  # routes made anew for each request
            return matched, UNROUTED
        patterns = [pattern for known, pattern, _ in _walk(scope) if known is matched]
        own = getattr(matched, "path", None)
        if not patterns and isinstance(own, str):
            router = (scope.get("fastapi") or {}).get("included_router")
            prefix = next((above for known, above, _ in _walk(scope) if known is router is not None), "/")
            patterns = [prefix.rstrip("/") + own]
        distinct = set(patterns)
        pattern = UNROUTED if not distinct else patterns[0] if len(distinct) == 1 else ""
        self._found[id(matched)] = found = (matched, pattern)
        return found

    def _told_apart_by_parameters(self, endpoint: object, scope: MutableMapping[str, Any]) -> str:
        """For an endpoint that several routes share, the first whose parameters are those of the request."""
        given = set(scope.get("path_params") or ())
        for known, pattern, parameters in _walk(scope):
            if known is endpoint and parameters == given:
                return pattern
        return UNROUTED


def _walk(scope: MutableMapping[str, Any]) -> Iterator[tuple[object, str, set[str]]]:
    """Every route and every endpoint, with its whole pattern and the names of its parameters."""
    waiting: list[tuple[object, str, set[str]]] = [(scope.get("router"), "", set())]
    seen = 0
    while waiting and seen < _MOST:
        holder, prefix, above = waiting.pop()
        for route in getattr(holder, "routes", None) or ():
            seen += 1
            convertors = getattr(route, "param_convertors", None)
            inner = bool(getattr(route, "routes", None))
            mounted = hasattr(route, "app") and not hasattr(route, "endpoint")
            parameters = above | (set(convertors) if isinstance(convertors, Mapping) else set())
            if mounted:
                parameters.discard("path")
            pattern = prefix + str(getattr(route, "path", ""))
            if inner:
                waiting.append((route, pattern, parameters))
            shown = (f"{pattern}/*" if mounted else pattern) or "/"
            yield route, shown, parameters
            yield getattr(route, "app" if mounted else "endpoint", None), shown, parameters
