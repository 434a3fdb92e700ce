"""Keys made from a function's own arguments, and personal data kept apart by them.

A key written by hand forgets an argument, and then one user reads another's answer; or it holds one that is never
equal again, and nothing ever hits. Here every parameter is in the key unless it is named in `ignore`, as it was
bound, defaults filled in, with its type: `1`, `True`, `1.0` and `"1"` are four keys. An argument without a form that
outlives the process is refused by name.

    (name, version, (scope, its value)?, argument, ...)

Invariant: whoever declares a classified field has a scope in the key and a cap on how long the value lives. What
is classified and an argument too stands in the key as a hash: no message and no shared tier shows it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Generic, ParamSpec

from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import key_text, tagged
from fairlead.calls.bounds import check_number
from fairlead.errors import InvalidInput

__all__ = ["KeyBuilder"]

_P = ParamSpec("_P")

_AS_THEY_ARE = frozenset({str, int, bytes, type(None)})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_LONGEST = 10 * 366 * 86_400.0


class KeyBuilder(Generic[_P]):
    """Called like the function, returns its key.

    >>> async def profile(user_id: int, locale: str = "en") -> str: ...
    >>> key = KeyBuilder(profile, name="profile", version=3)
    >>> key(7) == key(locale="en", user_id=7) == ("profile", 3, 7, "en")
    True
    """

    __slots__ = (
        "_bare",
        "_count",
        "_head",
        "_hidden",
        "_keywords",
        "_places",
        "_scope",
        "_signature",
        "max_ttl",
        "name",
        "version",
    )

    def __init__(
        self,
        function: Callable[_P, Any],
        *,
        name: str,
        version: int = 1,
        scope: str | None = None,
        classified: Sequence[str] = (),
        max_ttl: float | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        """name: the first word of the key, which no other function may have; a word of its own outlives a move to
        another module. version: of what the value means; raise it when a change makes old values wrong.

        scope: the parameter that says whose the value is; never None in a call. classified: personal fields, of
        the value or of the arguments; they need a scope and a max_ttl. max_ttl: seconds after which a value may
        not be served by any window (`cap`). ignore: parameters that do not change the value, such as a
        session. Raises InvalidInput for what does not fit together.
        """
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        shown = f"KeyBuilder({name!r})"
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"KeyBuilder.name: {name!r} is no word")
        if isinstance(version, bool) or not isinstance(version, int):
            raise InvalidInput(f"{shown}.version: {version!r} is not a whole number")
        for setting, names in (("classified", classified), ("ignore", ignore)):
            if isinstance(names, str):
                raise InvalidInput(f"{shown}.{setting}: give names in a tuple, as ({names!r},)")
        for each in (*ignore, *(() if scope is None else (scope,))):
            if each not in parameters:
                raise InvalidInput(
                    f"{shown}: {each!r} is not a parameter of {function!r}; it has {list(parameters)}"
                )
        if classified and scope is None:
            raise InvalidInput(
                f"{shown}: {sorted(classified)} are classified, so the key must say whose they are: "
                "name that parameter as scope"
            )
        if classified and max_ttl is None:
            raise InvalidInput(f"{shown}: {sorted(classified)} are classified, so give a max_ttl in seconds")
        if scope is not None and scope in ignore:
            raise InvalidInput(f"{shown}: {scope!r} cannot be scope and ignored")
        if max_ttl is not None:
            check_number(f"{shown}.max_ttl", max_ttl, above=0.0, high=_LONGEST)
        self.name = name
        self.version = version
        self.max_ttl = max_ttl
        self._scope = scope
        self._hidden = frozenset(classified)
        self._head = (name, version)
        self._count = len(parameters)
        self._bare = all(each.kind in _POSITIONAL for each in parameters.values())
        self._keywords = next(
            (each.name for each in parameters.values() if each.kind is each.VAR_KEYWORD), None
        )
        # Where each part of the key lies among the arguments: the scope first, the rest as declared.
        places = [(index, each) for index, each in enumerate(parameters) if each not in ignore]
        self._places = tuple(sorted(places, key=lambda place: place[1] != scope))

    def __repr__(self) -> str:
        return f"KeyBuilder({self.name!r}, version={self.version})"

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> tuple[Hashable, ...]:
        """The key of this call. Raises InvalidInput that names the argument which cannot be part of one."""
        if not kwargs and self._bare and len(args) == self._count:
            values: tuple[object, ...] = args  # bound already: binding costs ten times the rest
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            if self._keywords is not None:
                bound.arguments[self._keywords] = tuple(sorted(bound.arguments[self._keywords].items()))
            values = tuple(bound.arguments.values())
        hidden, scope = self._hidden, self._scope
        key: list[Hashable] = []
        for index, name in self._places:
            value = values[index]
            part: Hashable = value
            if type(value) not in _AS_THEY_ARE or name in hidden:
                part = self._part(name, value)
            if name == scope:
                if value is None:
                    raise InvalidInput(
                        f"{self!r}: the scope {name!r} is None, so everybody without one would share a value; "
                        "do not cache this call"
                    )
                part = (name, part)
            key.append(part)
        return (*self._head, *key)

    def cap(self, freshness: Freshness) -> Freshness:
        """`freshness` under `max_ttl`: no window and no adaptive ttl serves a value for longer.

        `Cache.cached` applies it; who calls `get_or_load` with a key made here does.
        """
        if self.max_ttl is None:
            return freshness
        return replace(
            freshness, ttl=min(freshness.ttl, self.max_ttl), max_ttl=min(freshness.max_ttl, self.max_ttl)
        )

    def _part(self, name: str, value: object) -> Hashable:
        hidden = name in self._hidden
        try:
            if hidden:
                # As text first: the hash must not depend on the process.
                return "hidden", blake2b(key_text(value).encode(), digest_size=16).hexdigest()
            return _canonical(value, 0)
        except InvalidInput as error:
            if hidden:
                raise InvalidInput(
                    f"{self!r}: argument {name!r} cannot be part of a key: its type is not one"
                ) from None
            raise InvalidInput(f"{self!r}: argument {name!r} cannot be part of a key: {error}") from error


def _canonical(value: object, depth: int) -> Hashable:
    """Equal only for equal values of equal types, as a plain tuple."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, bool):
        return "bool", value
    if depth > 32:
        raise InvalidInput("it nests deeper than 32")
    tag, parts = tagged(value)
    if tag == "float":
        return tag, parts[0]
    if tag == "frozenset":
        parts = tuple(sorted(parts, key=key_text))
    return tag, *(_canonical(part, depth + 1) for part in parts)
