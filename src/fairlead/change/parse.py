"""From TOML to a change file, with errors that name the line and the nearest key that exists.

The file is read as bytes that may come from anyone: bounded in size, depth and number of tables, no control
characters that would hide text in a terminal or a diff, and no number that is not finite. Reading and checking take
time in proportion to the file, whatever is in it.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fairlead.change.sections import ChangeFile
from fairlead.errors import BrokenDocument

__all__ = ["MAX_BYTES", "line_numbers", "parse_change", "read_change", "where"]

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 8
_MAX_ITEMS = 1000
_LONGEST = 10_000
_LONGEST_KEY = 100
_MOST_DOTS = 400
"""On one line. The parser of the standard library takes quadratic time for a key of many parts."""
_HEADER = re.compile(r"\s*(\[\[?)([^\[\],=#]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]{1,200})`(?: - at `(?P<path>[^`]{1,300})`)?")
_AT = re.compile(r" - at `(?P<path>[^`]{1,300})`")


def read_change(path: Path) -> bytes:
    """The bytes of a change file. Raises BrokenDocument for what is no regular file, or too large."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BrokenDocument(f"{path}: not a regular file; name a change file in TOML")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenDocument(
            f"{path}: cannot be read ({error.strerror}); fairlead change new makes one"
        ) from error
    if len(content) > MAX_BYTES:
        raise BrokenDocument(f"{path}: larger than {MAX_BYTES:,} bytes; a change file has a few thousand")
    return content


def parse_change(content: bytes, name: str = "change file") -> ChangeFile:
    """The change file that these bytes are. Raises BrokenDocument: the name, the line, the key, and what to write.

    A file that parses may still lack most of what `check` asks for.
    """
    text = _text(content, name)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BrokenDocument(f"{name}: {error}") from error
    except RecursionError as error:
        raise BrokenDocument(f"{name}: nested too deep") from error
    _bounded(document, name, "", _MAX_DEPTH)
    try:
        return msgspec.convert(document, ChangeFile)
    except msgspec.ValidationError as error:
        raise BrokenDocument(f"{name}{_explained(str(error), text)}") from error


def where(lines: Mapping[str, int], path: str) -> int | None:
    """The line, from 1, on which a key such as ``metrics.feed_p99.q`` or ``options[1].because`` stands; its table's
    where the key itself is missing; None where neither is there. lines: of `line_numbers`.
    """
    while path:
        if path in lines:
            return lines[path]
        path = re.sub(r"\[\d+\]$", "", path) if path.endswith("]") else path.rpartition(".")[0]
    return None


def _text(content: bytes, name: str) -> str:
    if len(content) > MAX_BYTES:
        raise BrokenDocument(f"{name}: larger than {MAX_BYTES:,} bytes; a change file has a few thousand")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenDocument(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    text = text.replace("\r\n", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        if hidden := _hidden(line):
            raise BrokenDocument(f"{name}: line {number} holds the hidden character {hidden}; take it out")
        if line.count(".") > _MOST_DOTS:
            raise BrokenDocument(f"{name}: line {number} has more than {_MOST_DOTS} dots; break it up")
    return text


def _hidden(text: str) -> str:
    """The first mark that reverses or hides what a reader of a diff or a terminal believes to see; empty: none."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\t\n":
            return f"U+{ord(character):04X}"
    return ""


def _bounded(value: Any, name: str, path: str, depth: int) -> None:
    if depth == 0:
        raise BrokenDocument(f"{name}: {path} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict | list) and len(value) > _MAX_ITEMS:
        raise BrokenDocument(f"{name}: {path or 'the file'} has more than {_MAX_ITEMS} parts")
    if isinstance(value, dict):
        for key, part in value.items():
            if len(key) > _LONGEST_KEY or not key.isprintable():
                raise BrokenDocument(
                    f"{name}: {path or 'the file'} has the key {key[:40]!r}; up to {_LONGEST_KEY} visible characters"
                )
            _bounded(part, name, f"{path}.{key}" if path else key, depth - 1)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _bounded(part, name, f"{path}[{index}]", depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BrokenDocument(f"{name}: {path} is {value}; write a finite number, or leave the key out")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        raise BrokenDocument(f"{name}: {path} is a whole number beyond 2**53")
    elif isinstance(value, str) and len(value) > _LONGEST:
        raise BrokenDocument(
            f"{name}: {path} has {len(value):,} characters; {_LONGEST:,} are enough for anyone's patience"
        )
    elif isinstance(value, str) and (hidden := _hidden(value)):  # written as an escape
        raise BrokenDocument(f"{name}: {path} holds the hidden character {hidden}; take it out")


def _explained(said: str, text: str) -> str:
    unknown = _UNKNOWN.search(said)
    at = _AT.search(said)
    path = (at["path"].removeprefix("$").removeprefix(".") if at else "").replace("[...]", "")
    if unknown:
        key = unknown["key"]
        whole = f"{path}.{key}" if path else key
        line = _first_with(text, whole)
        close = difflib.get_close_matches(key, _known(path), n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(_known(path)) or 'nothing'}"
        )
        return f"{_line(line)}: {whole} is no key of a change file; {hint}"
    problem = _AT.sub("", said).replace("Object", "table").replace("`", "'")
    return f"{_line(_first_with(text, path))}: {path or 'the file'}: {problem[:1].lower()}{problem[1:]}"


def _line(number: int | None) -> str:
    return f", line {number}" if number else ""


def _first_with(text: str, path: str) -> int | None:
    """`where`, for a path whose array index msgspec did not say."""
    found = line_numbers(text)
    loose = {re.sub(r"\[\d+\]", "", key): line for key, line in reversed(found.items())}
    return where(found, path) if path in found else loose.get(path, where(found, path))


def _known(path: str) -> list[str]:
    """Keys of the table at a path, as they are written."""
    kind: Any = msgspec.inspect.type_info(ChangeFile)
    for part in filter(None, re.split(r"[.\[\]]+", path)):
        kind = _inner(kind)
        if isinstance(kind, msgspec.inspect.StructType):
            kind = next((each.type for each in kind.fields if each.encode_name == part), None)
        elif isinstance(kind, msgspec.inspect.DictType):
            kind = kind.value_type
    kind = _inner(kind)
    return [each.encode_name for each in kind.fields] if isinstance(kind, msgspec.inspect.StructType) else []


def _inner(kind: Any) -> Any:
    while True:
        if isinstance(kind, msgspec.inspect.UnionType):
            kind = next((each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType)), None)
        elif isinstance(kind, msgspec.inspect.VarTupleType):
            kind = kind.item_type
        else:
            return kind


def line_numbers(text: str) -> dict[str, int]:
    """Line of each table and key. A scan, no parser: the file was parsed before, this only finds things again."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    closing = ""
    for number, line in enumerate(text.split("\n"), 1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if header := _HEADER.match(line):
            table = header[2].replace(" ", "").replace('"', "").replace("'", "")
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, number)
                table = f"{table}[{counts[table]}]"
            else:
                parent = table.partition(".")[0]
                if parent in counts and table != parent:
                    table = f"{parent}[{counts[parent]}]{table[len(parent) :]}"
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault(f"{table}.{key[1]}" if table else key[1], number)
        for quotes in ('"""', "'''"):
            if line.count(quotes) == 1:
                closing = quotes
    return found
