"""Log lines that a program can read, and that name no one.

    logging → JsonLogFormatter → one JSON object a line: when, how bad, who, which request, what, and the fields

The request's id comes from the running RequestContext, so every line of a request can be found without anyone
passing it along. Fields that are personal by name, because a registered event has a personal field of that
name or because you said so, become tokens; messages, other fields and tracebacks are searched for patterns.
Formatting happens where logging happens, in the caller: put a `logging.handlers.QueueHandler` in front where
that must not wait for the disk.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from fairlead.context import current
from fairlead.telemetry.classification import classifications
from fairlead.telemetry.redact import Redactor
from fairlead.telemetry.schema import EVENTS, EventRegistry

__all__ = ["JsonLogFormatter"]

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "request_id"}
_OURS = ("at_utc_seconds", "level", "logger", "message", "request_id", "error", "traceback")


class JsonLogFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    >>> formatter = JsonLogFormatter(Redactor(b"k" * 32))
    >>> record = logging.makeLogRecord({"msg": "refused %s", "args": ("ann@example.com",), "levelname": "INFO"})
    >>> msgspec.json.decode(formatter.format(record))["message"]
    'refused [email:klwnpadcgfssyhyt]'
    """

    def __init__(
        self,
        redactor: Redactor | None,
        *,
        personal: Iterable[str] = (),
        registry: EventRegistry = EVENTS,
        fixed: Mapping[str, str] | None = None,
        context: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """redactor: None only where logs may hold personal data.

        personal: names of `extra=` fields to replace whole, beside the personal fields of the registry's events.
        fixed: fields of every line, such as {"service": "feed"}. context: called for each line, gives the fields of
            where it was logged, such as `fairlead.telemetry.opentelemetry.trace_fields`.
        """
        super().__init__()
        self._redactor = redactor
        self._personal = frozenset(personal) | {
            name
            for kind in registry.kinds.values()
            for name, said in classifications(kind).items()
            if said == "personal"
        }
        self._fixed = dict(fixed or {})
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end. A value that JSON cannot hold is shown by its repr."""
        line: dict[str, Any] = {
            "at_utc_seconds": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": self._searched(record.getMessage()),
            # A queue hands the record to another thread, where the context is gone: it may bring its own.
            "request_id": getattr(record, "request_id", "") or current().request_id,
            **self._fixed,
            **self._context(),
        }
        ours = {*line, *_OURS}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = self._searched("".join(traceback.format_exception(*record.exc_info)))
        elif record.exc_text:
            line["traceback"] = self._searched(record.exc_text)
        for name, value in record.__dict__.items():
            if name not in _STANDARD:
                # A field of the caller's must not pass for one of ours.
                shown = self._searched(name)
                line[f"extra_{shown}" if shown in ours else shown] = self._field(name, value)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate somewhere, as in the name of a file that is not UTF-8
            return msgspec.json.encode(_encodable(line)).decode()

    def _field(self, name: str, value: object) -> object:
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=repr)
        except Exception:  # it holds itself, or is foreign: a line must not be lost for the repr of one field
            plain = _repr(value)
        return plain if self._redactor is None else self._redactor.value(self._hidden(name, plain))

    def _hidden(self, name: str, plain: Any, depth: int = 8) -> Any:
        """The value with what is personal by its name replaced, at any depth."""
        if self._redactor is None or plain is None or not depth:
            return plain
        if name in self._personal:
            return self._redactor.token(plain if isinstance(plain, str) else str(plain))
        if isinstance(plain, dict):
            return {key: self._hidden(str(key), item, depth - 1) for key, item in plain.items()}
        if isinstance(plain, list):
            return [self._hidden("", item, depth - 1) for item in plain]
        return plain

    def _searched(self, text: str) -> str:
        return text if self._redactor is None else self._redactor.text(text)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # foreign code
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value
