"""From a TOML file to objectives, with every number as it was written.

The file may come from anyone: bounded in size and depth, unknown keys refused with the nearest that exists. Floats
are read as decimals, so that a target of 0.999 stays 0.999.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.metrics import parse_duration
from fairlead.slo.objective import CalendarPeriod, Counters, LatencyBuckets, Objective, RollingPeriod

__all__ = ["objectives_toml", "parse_objectives", "read_objectives"]

MAX_BYTES = 256 * 1024
MOST = 200
_PERCENT = re.compile(r"\s*(?P<number>\d{1,3}(\.\d{1,10})?)\s*%\s*")
_KEYS = {
    "title",
    "target",
    "period",
    "time_zone",
    "owner",
    "runbook",
    "event",
    "good",
    "where",
    "cause",
    "side",
    "prometheus",
    "minimum_events",
    "labels",
}
_COUNTERS, _BUCKETS = {"good", "valid"}, {"histogram", "le", "where"}


def read_objectives(path: Path) -> tuple[Objective, ...]:
    """The objectives of a file. Raises BrokenDocument for what is no such file, InvalidInput for what it says."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BrokenDocument(f"{path}: not a regular file; name a file of objectives in TOML")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenDocument(
            f"{path}: cannot be read ({error.strerror}); name a file of objectives"
        ) from error
    if len(content) > MAX_BYTES:
        raise BrokenDocument(f"{path}: larger than {MAX_BYTES:,} bytes; keep a file per service")
    return parse_objectives(content, str(path))


def parse_objectives(content: bytes, name: str = "objectives") -> tuple[Objective, ...]:
    """The objectives of a file's bytes; raises as `read_objectives`.

    >>> (feed,) = parse_objectives(b'''
    ... [objectives.feed]
    ... title = "Feed answers"
    ... target = "99.9 %"
    ... period = "30d"
    ... owner = "team feed"
    ... runbook = "https://runbooks/feed"
    ... event = "request_finished"
    ... good = "status < 500"
    ... ''')
    >>> feed.target, feed.budget_minutes
    (Decimal('0.999'), 43.2)
    """
    try:
        document = tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal)
    except (
        tomllib.TOMLDecodeError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
        InvalidOperation,
    ) as error:
        raise BrokenDocument(f"{name}: no TOML: {str(error)[:200]}") from error
    _only(document, {"objectives"}, name, "a file of objectives")
    tables = document.get("objectives")
    if not isinstance(tables, dict) or not tables:
        raise BrokenDocument(f"{name}: no objective; begin with [objectives.NAME]")
    if len(tables) > MOST:
        raise BrokenDocument(f"{name}: {len(tables)} objectives, at most {MOST}; nobody answers for more")
    return tuple(_objective(key, table, name) for key, table in tables.items())


def _objective(key: str, table: object, name: str) -> Objective:
    at = f"{name}: objectives.{key[:60]}"
    if not isinstance(table, dict):
        raise BrokenDocument(f"{at}: not a table; write [objectives.{key[:60]}]")
    _only(table, _KEYS, at, "an objective")
    try:
        return Objective(
            name=key,
            title=_text(table, "title", at, key.replace("_", " ")),
            target=_target(table.get("target"), at),
            period=_period(_text(table, "period", at), _text(table, "time_zone", at, "UTC"), at),
            owner=_text(table, "owner", at),
            runbook=_text(table, "runbook", at),
            event=_text(table, "event", at, ""),
            good=_text(table, "good", at, ""),
            where=_text(table, "where", at, ""),
            cause=_text(table, "cause", at, ""),
            side=_text(table, "side", at, "server"),  # type: ignore[arg-type]  # said by Metric where it is another
            prometheus=_prometheus(table.get("prometheus"), at),
            minimum_events=_whole(table.get("minimum_events", 0), at),
            labels=_labels(table.get("labels", {}), f"{at}.labels"),
        )
    except BrokenDocument:
        raise
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def _target(value: object, at: str) -> Decimal:
    """0.999, or "99.9 %"; exact."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        return Decimal(match["number"]).scaleb(-2)
    if isinstance(value, Decimal):
        return value
    if value is None:
        raise BrokenDocument(f'{at}: target is missing: 0.999, or "99.9 %"')
    raise BrokenDocument(f'{at}: target {str(value)[:40]!r}: write 0.999, or "99.9 %"')


def _period(text: str, zone: str, at: str) -> RollingPeriod | CalendarPeriod:
    if text in ("week", "month", "quarter", "year"):
        return CalendarPeriod(unit=text, time_zone=zone)  # type: ignore[arg-type]  # one of the four
    try:
        return RollingPeriod(seconds=parse_duration(text))
    except InvalidInput as error:
        raise InvalidInput(
            f"{at}: period {text[:40]!r}: a duration such as 30d, or week, month, quarter, year ({error})"
        ) from error


def _prometheus(value: object, at: str) -> Counters | LatencyBuckets | None:
    if value is None:
        return None
    where = f"{at}.prometheus"
    table = _table(value, where)
    if "histogram" in table:
        _only(table, _BUCKETS, where, "a histogram")
        return LatencyBuckets(
            histogram=_text(table, "histogram", where),
            le=_text(table, "le", where),
            where=_text(table, "where", where, ""),
        )
    _only(table, _COUNTERS, where, "counters")
    return Counters(good=_text(table, "good", where), valid=_text(table, "valid", where))


def _labels(value: object, at: str) -> dict[str, str]:
    table = _table(value, at)
    return {label: _text(table, label, at) for label in table}


def _table(value: object, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BrokenDocument(f"{at}: not a table of keys and values")
    return value


def _text(table: Mapping[str, Any], key: str, at: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise BrokenDocument(f"{at}: {key} is missing")
    if isinstance(value, Decimal | int) and not isinstance(value, bool) and key == "le":
        if isinstance(value, int):
            return str(value)
        # Written out, a huge exponent would be a huge text.
        return f"{value:f}" if value.is_finite() and abs(value.adjusted()) <= 20 else str(value)
    if not isinstance(value, str):
        raise BrokenDocument(f"{at}: {key} is {str(value)[:40]!r}, not text in quotes")
    return value


def _whole(value: object, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BrokenDocument(f"{at}: minimum_events is {str(value)[:40]!r}, not a whole number")
    return value


def _only(table: Mapping[str, Any], known: set[str], at: str, what: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key[:60], sorted(known), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"
            raise BrokenDocument(f"{at}: {what} has no {key[:60]!r}; {hint}")


def objectives_toml(objectives: tuple[Objective, ...]) -> str:
    """The file that says these objectives; `parse_objectives` reads it back as they are.

    Raises InvalidInput for a period that no file can say: durations are written to the millisecond.
    """
    return "\n".join(_toml(objective) for objective in objectives)


def _toml(objective: Objective) -> str:
    from fairlead.slo.rules import decimal_text

    lines = [f"[objectives.{objective.name}]"]
    period = objective.period
    pairs: list[tuple[str, str]] = [
        ("title", _quoted(objective.title)),
        ("target", decimal_text(objective.target)),
        (
            "period",
            _quoted(
                _duration(objective.name, period.seconds)
                if isinstance(period, RollingPeriod)
                else period.unit
            ),
        ),
    ]
    if isinstance(period, CalendarPeriod) and period.time_zone != "UTC":
        pairs.append(("time_zone", _quoted(period.time_zone)))
    pairs += [("owner", _quoted(objective.owner)), ("runbook", _quoted(objective.runbook))]
    pairs += [
        (key, _quoted(getattr(objective, key)))
        for key in ("event", "good", "where", "cause")
        if getattr(objective, key)
    ]
    if objective.side != "server":
        pairs.append(("side", _quoted(objective.side)))
    if objective.minimum_events:
        pairs.append(("minimum_events", str(objective.minimum_events)))
    if objective.labels:
        inner = ", ".join(f"{key} = {_quoted(value)}" for key, value in objective.labels.items())
        pairs.append(("labels", f"{{ {inner} }}"))
    source = objective.prometheus
    if isinstance(source, Counters):
        pairs.append(("prometheus", f"{{ good = {_quoted(source.good)}, valid = {_quoted(source.valid)} }}"))
    elif source is not None:
        where = f", where = {_quoted(source.where)}" if source.where else ""
        pairs.append(
            ("prometheus", f"{{ histogram = {_quoted(source.histogram)}, le = {_quoted(source.le)}{where} }}")
        )
    lines += [f"{key} = {value}" for key, value in pairs]
    return "\n".join(lines) + "\n"


def _duration(name: str, seconds: float) -> str:
    from fairlead.slo.rules import duration_text

    if seconds == int(seconds):
        return duration_text(int(seconds))
    text = f"{seconds:.3f}s"
    if parse_duration(text) != seconds:
        raise InvalidInput(
            f"{name}: a period of {seconds!r} s is finer than the milliseconds that a file can say"
        )
    return text


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
