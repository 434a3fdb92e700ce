"""What may be configured: every setting with its type and its default, declared in code.

A configuration that takes anything is a second, untested program. Here a name that is not declared is refused, and so
is a value that is not of the declared type, before it is written. What is read is checked again: the table may have
been written by older code or by hand. A row that does not fit is left out, and the setting's default stands.

Invariant: a document holds every declared setting, each with a value of its type, whatever the table holds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fairlead.errors import InvalidInput

__all__ = ["PAGE", "SEGMENT", "Banner", "Schema", "Setting", "check_name", "check_segment", "check_user"]

LONGEST_VALUE = 4_096
"""Characters of a value as JSON: a setting is a switch, not a document store."""
SEGMENT = "segment"
"""The entry that says which segment a user is in; only a user has it, and it is no part of `values`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", re.ASCII)
_SEGMENT = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One thing that may be configured."""

    name: str
    """Lower-case words joined by dots, up to 64 characters."""
    type: Any
    """Any type that msgspec checks: `Annotated[int, Meta(ge=1)]`, a Literal, a frozen Struct."""
    default: object
    """What stands where no entry does; of that type."""


class Banner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A notice above the page."""

    text: Annotated[str, Meta(min_length=1, max_length=120)]
    level: Literal["info", "warning"] = "info"


class Schema:
    """The declared settings.

    >>> schema = Schema([Setting(name="page.size", type=Annotated[int, Meta(ge=1, le=100)], default=20)])
    >>> schema.encode("page.size", 50)
    '50'
    >>> schema.encode("page.size", 500)
    Traceback (most recent call last):
        ...
    fairlead.errors.InvalidInput: page.size: Expected `int` <= 100; it stays as it was
    """

    def __init__(self, settings: Iterable[Setting]) -> None:
        self._settings = {SEGMENT: Setting(name=SEGMENT, type=str, default="")}
        for setting in settings:
            if check_name(setting.name) in self._settings:
                raise InvalidInput(f"setting {setting.name} is declared twice, or is the name of the segment")
            self._settings[setting.name] = setting
            self.encode(setting.name, msgspec.to_builtins(setting.default))
        self.defaults: Mapping[str, object] = {
            setting.name: setting.default for setting in self._settings.values() if setting.name != SEGMENT
        }
        """In the order of their declaration, which is that of every document."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.defaults)

    def encode(self, name: str, value: object) -> str:
        """`value` as the table keeps it. Raises InvalidInput, in one line, for what the schema does not allow."""
        setting = self._setting(name)
        try:
            text = msgspec.json.encode(msgspec.convert(value, setting.type)).decode()
            msgspec.json.decode(text, type=setting.type)  # NaN and infinity are numbers, but not in JSON
        except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError) as error:
            raise InvalidInput(f"{name}: {_without_root(error)}; it stays as it was") from error
        if name == SEGMENT:
            check_segment(str(value))
        if len(text) > LONGEST_VALUE:
            raise InvalidInput(
                f"{name}: {len(text)} characters, at most {LONGEST_VALUE} are kept; it stays as it was"
            )
        return text

    def decode(self, name: str, text: str) -> object:
        """The value that `encode` wrote. Raises InvalidInput for what the schema, as it is now, does not allow."""
        setting = self._setting(name)
        try:
            return msgspec.json.decode(text, type=setting.type)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidInput(f"{name}: {_without_root(error)}; the default stands") from error

    def _setting(self, name: str) -> Setting:
        found = self._settings.get(name)
        if found is not None:
            return found
        close = difflib.get_close_matches(name[:64], self._settings, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(self)}"
        raise InvalidInput(f"no setting {name[:64]!r} is declared; {hint}")


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise InvalidInput(
            f"setting {name[:80]!r} is not lower-case words joined by dots, up to 64 characters"
        )
    return name


def check_segment(segment: str) -> str:
    if not _SEGMENT.fullmatch(segment):
        raise InvalidInput(
            f"segment {segment[:64]!r} is not a lower-case letter and up to 31 letters, digits or -"
        )
    return segment


def check_user(user: str) -> str:
    if not _USER.fullmatch(user):
        raise InvalidInput(f"user {user[:80]!r} is not 1 to 64 letters, digits, _, ., @ or -")
    return user


def _without_root(error: BaseException) -> str:
    """msgspec's message without the path where that is the value itself."""
    return str(error).removesuffix(" - at `$`")


PAGE = Schema(
    (
        Setting(
            name="checkout.label", type=Annotated[str, Meta(min_length=1, max_length=40)], default="Buy now"
        ),
        Setting(name="checkout.express", type=bool, default=False),
        Setting(name="feed.page_size", type=Annotated[int, Meta(ge=1, le=100)], default=20),
        Setting(name="feed.layout", type=Literal["list", "grid", "cards"], default="list"),
        Setting(name="feed.autoplay", type=bool, default=False),
        Setting(name="search.suggestions", type=Annotated[int, Meta(ge=0, le=20)], default=8),
        Setting(name="theme", type=Literal["light", "dark", "system"], default="system"),
        Setting(name="banner", type=Banner | None, default=None),
        Setting(
            name="support.url",
            type=Annotated[str, Meta(pattern=r"^https://[^\s]{1,200}$")],
            default="https://example.com/help",
        ),
        Setting(name="upload.limit_megabytes", type=Annotated[float, Meta(gt=0, le=1000)], default=25.0),
        Setting(name="trial.days", type=Annotated[int, Meta(ge=0, le=90)], default=14),
        Setting(name="beta.features", type=tuple[Literal["editor", "insights", "live"], ...], default=()),
    )
)
"""What the page of this system reads."""
