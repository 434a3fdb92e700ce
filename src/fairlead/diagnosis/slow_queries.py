"""The slowest statements of a database, each once, without what people wrote into them.

A log of slow queries grows without bound, repeats one statement a thousand times, and holds names and addresses for as
long as it is kept. Here a statement is kept as its text with every value taken out: literals become `$1`, `$2`, …,
comments go, a list of fifty ids becomes one. So two calls with other values are one statement, which can still be
explained. Only a query slower than `slower_than` is looked at; the others cost one comparison.

What cannot be told from a name stays: SQLite reads "Smith" in double quotes as text when there is no such column.
"""

from __future__ import annotations

import re
import threading
from typing import NamedTuple

import msgspec

from fairlead.errors import InvalidInput
from fairlead.telemetry.bounds import check_number, check_whole

__all__ = ["SlowQueries", "SlowQuery", "normalised_statement"]

_LONGEST = 10_000  # characters kept of a statement, and looked at
_MARK = "\0"  # stands for a value until all are numbered

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<value>\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)
        | [eE]'(?:[^'\\]|''|\\.)*(?:'|\Z)
        | (?:[uU]&|[bBxXnN])?'(?:[^']|'')*(?:'|\Z))
    | (?P<quoted>"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z))
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
    | (?P<other>::|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PLACEHOLDERS = {
    "qmark": re.compile(r"\?\d*"),
    "format": re.compile(r"%s"),
    "pyformat": re.compile(r"%\([^)]*\)s|%s"),
    "named": re.compile(r"(?<!:):[A-Za-z_]\w*"),
    "numeric": re.compile(r"(?<!:):\d+"),
    "numeric_dollar": re.compile(r"\$\d+"),
}
_IDENTIFIER = re.compile(r'"[^\W\d][\w$ ]{0,62}"|`[^`]{1,63}`')
_TYPE_LITERALS = frozenset({"date", "time", "timestamp", "timestamptz", "interval"})
_SIZED_TYPES = frozenset(
    {"numeric", "decimal", "varchar", "char", "varying", "character", "bit", "float", "timestamp", "time"}
)
_ENDS_A_LIST = frozenset(
    {"limit", "offset", "fetch", "for", "having", "window", "union", "except", "intersect"}
)
_BEHIND_A_POSITION = _ENDS_A_LIST | {",", ")", "", ";", "asc", "desc", "nulls", "order"}
_SIGN_BEHIND = frozenset(
    {"=", "<", ">", "(", ",", "and", "or", "between", "select", "limit", "offset", "then", "else"}
)
_ELEMENT = r"\0(?:::[\w ]+(?:\(\d+\))?)?"
_LONG_LIST = re.compile(rf"\b(in ?)\(({_ELEMENT})(?:, ?{_ELEMENT})+\)", re.IGNORECASE)
_MANY_ROWS = re.compile(r"\b(values ?\([^()]*\))(?:, ?\([^()]*\))+", re.IGNORECASE)
_COMMENT_SIGN = re.compile(r"/\*|\*/")
_OURS = re.compile(r"\s*(?:explain|prepare|deallocate|set|show|pragma)\b", re.IGNORECASE)


class SlowQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, and how slow it was. Of this process, since the start or the last `clear`."""

    statement: str
    """Without values: they are `$1`, `$2`, …"""
    slow_runs: int
    """Runs that were slower than the bound; the others are not counted."""
    slow_seconds: float
    """Of those runs together."""
    slowest_seconds: float


class SlowQueries:
    """Keeps the slowest distinct statements: `export_engine(engine, registry, on_query=slow.add)`.

    Per process; safe from any thread. A statement leaves when the bound is reached and its slowest run is the least.

    slower_than: seconds from which a run is looked at, above 0. 0.1: what a person notices.
    capacity: statements kept, 1 to 10,000. 100: a megabyte at most.
    """

    def __init__(self, *, slower_than: float = 0.1, capacity: int = 100) -> None:
        check_number("SlowQueries.slower_than", slower_than, above=0.0)
        check_whole("SlowQueries.capacity", capacity, low=1, high=10_000)
        self._slower_than = slower_than
        self._capacity = capacity
        self._kept: dict[str, SlowQuery] = {}
        self._lock = threading.Lock()

    def add(self, statement: str, seconds: float, paramstyle: str = "qmark") -> None:
        """Takes note of a run. paramstyle: how the statement marks its parameters, as in PEP 249 or SQLAlchemy."""
        # A NaN is not above the bound either.
        if not seconds >= self._slower_than or _OURS.match(statement):
            return
        text = normalised_statement(statement, paramstyle)
        with self._lock:
            known = self._kept.pop(
                text, SlowQuery(statement=text, slow_runs=0, slow_seconds=0.0, slowest_seconds=0.0)
            )
            if len(self._kept) >= self._capacity:
                least = min(self._kept.values(), key=lambda query: query.slowest_seconds)
                if least.slowest_seconds > max(seconds, known.slowest_seconds):
                    return
                del self._kept[least.statement]
            self._kept[text] = SlowQuery(
                statement=text,
                slow_runs=known.slow_runs + 1,
                slow_seconds=known.slow_seconds + seconds,
                slowest_seconds=max(known.slowest_seconds, seconds),
            )

    def slowest(self) -> list[SlowQuery]:
        """Those kept, the one with the slowest run first."""
        with self._lock:
            return sorted(self._kept.values(), key=lambda query: -query.slowest_seconds)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def normalised_statement(statement: str, paramstyle: str = "qmark") -> str:
    """The statement without values, comments and surplus space; parameters and literals are `$1`, `$2`, … in order.

    Positions in ORDER BY and GROUP BY and the sizes of types stay, since they are no values. A statement of more than
    10,000 characters is cut, and cannot be explained. Raises InvalidInput for a paramstyle that is none.

    >>> normalised_statement("SELECT * FROM t -- for Ann\\nWHERE mail = 'ann@x.org' AND id IN (?, ?, ?) LIMIT 5")
    'SELECT * FROM t WHERE mail = $1 AND id IN ($2) LIMIT $3'
    """
    if paramstyle not in _PLACEHOLDERS:
        raise InvalidInput(f"paramstyle {paramstyle!r} is not one of {', '.join(_PLACEHOLDERS)}")
    tokens = _tokens(statement[:_LONGEST].replace(_MARK, " "), _PLACEHOLDERS[paramstyle])
    text = _without_values(tokens).rstrip("; ")
    text = _LONG_LIST.sub(r"\1(\2)", text)
    text = _MANY_ROWS.sub(r"\1", text)
    parts = text.split(_MARK)
    numbered = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
    if paramstyle in ("format", "pyformat"):
        numbered = numbered.replace("%%", "%")  # doubled for the driver, not for the database
    return numbered if len(statement) <= _LONGEST else f"{numbered} …"


class _Token(NamedTuple):
    kind: str
    """space, value, parameter, quoted, word, number or other."""
    text: str
    spaced: bool
    """There was space or a comment in front of it."""


def _tokens(statement: str, placeholder: re.Pattern[str]) -> list[_Token]:
    found: list[_Token] = []
    at, spaced = 0, False
    while at < len(statement):
        match = placeholder.match(statement, at)
        kind = "parameter"
        if match is None:
            match = _TOKEN.match(statement, at)
            assert match is not None  # noqa: S101  # its last alternative matches anything
            kind = match.lastgroup or "other"
        at = match.end()
        if match[0].startswith("/*"):
            at = _behind_comment(statement, match.start())
        if kind == "quoted" and not _IDENTIFIER.fullmatch(match[0]):
            kind = "value"
        if kind != "space":
            found.append(_Token(kind, match[0], spaced))
        spaced = kind == "space"
    return found


def _behind_comment(statement: str, at: int) -> int:
    """Where a comment ends. PostgreSQL's nest; what SQLite makes of one that does is not to be shown either."""
    depth = 0
    for sign in _COMMENT_SIGN.finditer(statement, at):
        depth += 1 if sign[0] == "/*" else -1
        if depth == 0:
            return sign.end()
    return len(statement)


def _without_values(tokens: list[_Token]) -> str:
    """The text, with a mark for each value."""
    out: list[str] = []
    opened_by, in_list = "", False
    for place, token in enumerate(tokens):
        before = tokens[place - 1].text.lower() if place else ""
        gap = " " if token.spaced and place else ""
        word = token.text.lower()
        if token.kind in ("value", "parameter", "number"):
            behind = tokens[place + 1].text.lower() if place + 1 < len(tokens) else ""
            if token.kind == "number" and _stays(token.text, before, behind, opened_by, in_list):
                out.append(gap + token.text)
            elif token.kind == "value" and before in _TYPE_LITERALS:
                # `date '2020-01-01'` holds a type in front of its value, which in front of a parameter is an error.
                out[-1] = out[-1].replace(tokens[place - 1].text, f"{_MARK}::{tokens[place - 1].text}")
            else:
                if before == "-" and (place < 2 or tokens[place - 2].text.lower() in _SIGN_BEHIND):
                    gap = " " if out.pop().startswith(" ") else ""
                out.append(gap + _MARK)
            continue
        if word == "(":
            opened_by = before
        elif word == ")":
            opened_by = ""
        elif word == "by":
            in_list = True
        elif word in _ENDS_A_LIST:
            in_list = False
        out.append(gap + token.text)
    return "".join(out)


def _stays(number: str, before: str, behind: str, opened_by: str, in_list: bool) -> bool:
    """Whether a number is a position or a size, and no value."""
    if len(number) > 2 or not number.isdecimal() or before not in ("by", "(", ","):
        return False
    if opened_by in _SIZED_TYPES:
        return True
    return in_list and before != "(" and behind in _BEHIND_A_POSITION
