"""Personal data and secrets taken out of what leaves the service, without losing who is who.

Blanked-out logs are safe and useless: "the user [removed] got the feed of [removed]". Hashes look safe, and a
list of all telephone numbers undoes them in an hour. Here a value becomes a token keyed by a secret that stays
on this machine: the same person has the same token in every line, so joins and counts work, and without the
key nobody can try values. With a `TokenVault` the token can be turned back, here and nowhere else, until its
row is deleted.

    classified fields   replaced whole, because their kind says they are personal
    free text           searched for typed patterns; what has a checksum must pass it, or an order number would
                        be taken for a credit card
    secrets             replaced by [secret]: never a token, never in the vault

A value that fits no pattern in a field that nobody classified passes. This is a net, not a proof.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fairlead.errors import InvalidInput
from fairlead.telemetry.classification import classifications
from fairlead.telemetry.event import Event
from fairlead.telemetry.token_vault import TokenVault

__all__ = ["PATTERNS", "Pattern", "Redactor", "load_key"]

_LONGEST_TEXT = 65_536
_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """One kind of value that is looked for in free text."""

    name: str
    """What a token is labelled with: `email`."""
    regex: re.Pattern[str]
    """Finds candidates. Bound its repetitions: it runs on hostile text."""
    hint: re.Pattern[str] | None = None
    """Cheap to search, and present in every text that has a candidate; None looks always."""
    check: Callable[[str], bool] = lambda _: True
    """Whether a candidate is one: a checksum, a range."""
    secret: bool = False
    """A credential: replaced by [secret], and never to be had back."""


def _digits(text: str) -> str:
    return "".join([character for character in text if character in "0123456789"])


def _luhn(text: str) -> bool:
    """The Luhn formula (ISO/IEC 7812-1): every second digit from the right is doubled, the digits' sum ends in 0."""
    digits = [int(digit) for digit in _digits(text)]
    # The first digit is the issuer's industry: 2 to 6 for what people pay with. A time in milliseconds begins with 1.
    if not 13 <= len(digits) <= 19 or not 2 <= digits[0] <= 6:
        return False
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, leave 1 when divided by 97."""
    plain = text.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join([str(int(character, 36)) for character in plain[4:] + plain[:4]])) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15  # ITU-T E.164: at most fifteen digits


def _social_security(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _web_token(text: str) -> bool:
    head = text.split(".", 1)[0]
    try:
        return isinstance(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))), dict)
    except (ValueError, binascii.Error):
        return False


_PLAIN_TYPES = (int, float, bytes, bytearray)

# Digits of other scripts, full-width signs, and the spaces and dashes of typesetters: read as what they look like.
_LOOKALIKES = re.compile(
    r"(?![0-9])\d|[\u00a0\u00ad\u2000-\u200d\u2010-\u2015\u202f\u2060\u2212\u3000\ufeff\uff0b\uff0d\uff0e\uff1a\uff20]"
)
_SIGNS = {
    "\uff0b": "+",
    "\uff0e": ".",
    "\uff1a": ":",
    "\uff20": "@",
    "\uff0d": "-",
    "\u2212": "-",
    "\u00ad": "-",
}


def _plain(found: re.Match[str]) -> str:
    """The ASCII character that one looks like."""
    character = found[0]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return _SIGNS.get(character) or ("-" if "\u2010" <= character <= "\u2015" else " ")


def _tag(value: msgspec.Struct) -> dict[str, Any]:
    config = value.__struct_config__
    return {} if config.tag_field is None else {config.tag_field: config.tag}


_DIGIT = re.compile(r"\d", re.ASCII)

PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        name="web_token",
        regex=re.compile(r"\beyJ[\w-]{8,4096}\.[\w-]{2,16384}\.[\w-]{0,2048}", re.ASCII),
        hint=re.compile("eyJ"),
        check=_web_token,
        secret=True,
    ),
    Pattern(
        name="bearer",
        regex=re.compile(r"(?i:(?<=bearer )) ?[\w.~+/=-]{8,4096}", re.ASCII),
        hint=re.compile("(?i:bearer )"),
        secret=True,
    ),
    Pattern(
        name="password_in_url",
        regex=re.compile(r"(?<=://)[^\s/:@]{0,256}:[^\s/]{1,256}(?=@)"),
        hint=re.compile("://"),
        secret=True,
    ),
    Pattern(
        name="email",
        regex=re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
        hint=re.compile("@"),
    ),
    Pattern(
        name="iban",
        regex=re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII),
        hint=re.compile(r"[A-Z]{2}\d\d", re.ASCII),
        check=_iban,
    ),
    Pattern(
        name="card",
        regex=re.compile(r"(?<![A-Za-z0-9.-])\d(?:[ -]{0,2}\d){12,18}(?![\w-])", re.ASCII),
        hint=_DIGIT,
        check=_luhn,
    ),
    Pattern(
        name="us_ssn",
        regex=re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII),
        hint=re.compile(r"\d-\d\d-\d", re.ASCII),
        check=_social_security,
    ),
    Pattern(
        name="phone",
        regex=re.compile(r"(?<![\w+])\+\d[\d ().-]{6,18}\d(?!\w)", re.ASCII),
        hint=re.compile(r"\+\d", re.ASCII),
        check=_phone,
    ),
    Pattern(
        name="ip",
        regex=re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)", re.ASCII),
        hint=re.compile(r"\d\.\d", re.ASCII),
        check=_address,
    ),
    Pattern(
        name="ip",
        regex=re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII),
        hint=re.compile(r":[0-9A-Fa-f]{0,4}:"),
        check=_address,
    ),
)
"""What is looked for in free text, in this order. Add yours: `patterns=(*PATTERNS, Pattern(…))`."""


def load_key(path: str | os.PathLike[str]) -> bytes:
    """The key in the file, made on first use: 32 random bytes, mode 0600.

    Processes that share tokens share the file. Whoever has it can try values against tokens; whoever loses it
    has tokens that mean nothing any more. Raises InvalidInput for a file that is no key.
    """
    file = Path(path)
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written whole under another name and then linked: two processes that start together agree on one key.
        with tempfile.NamedTemporaryFile(dir=file.parent) as draft, contextlib.suppress(FileExistsError):
            draft.write(os.urandom(_KEY_BYTES))
            draft.flush()
            os.fsync(draft.fileno())
            os.link(draft.name, file)
    key = file.read_bytes()
    if len(key) != _KEY_BYTES:
        raise InvalidInput(
            f"{file}: a key has {_KEY_BYTES} bytes, this has {len(key)}: delete it to begin with new tokens"
        )
    return key


class Redactor:
    """Replaces personal values by tokens, in events, mappings and text.

    >>> redactor = Redactor(b"k" * 32)
    >>> redactor.text("mail to ann@example.com bounced, card 4111 1111 1111 1111, order 4111 1111 1111 1112")
    'mail to [email:klwnpadcgfssyhyt] bounced, card [card:evtcyhonfe3l3xnc], order 4111 1111 1111 1112'
    """

    def __init__(
        self, key: bytes, *, patterns: Iterable[Pattern] = PATTERNS, vault: TokenVault | None = None
    ) -> None:
        """key: at least 16 secret bytes, from `load_key`. vault: keeps what tokens stand for; None keeps nothing.

        The same value has the same token wherever the key is the same. Raises InvalidInput for a shorter key.
        """
        if not isinstance(key, bytes) or len(key) < 16:
            raise InvalidInput("a redaction key has 16 bytes or more: take one from load_key(path)")
        self._key = key
        self._patterns = tuple(patterns)
        self._vault = vault
        self._plans: dict[type[Event], _Plan] = {}

    def token(self, value: str, label: str = "personal") -> str:
        """The token of one value, such as `[personal:a2…]`: 80 bits of HMAC-SHA-256, the label for the reader."""
        digest = hmac.new(self._key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()[:10]
        token = f"[{label}:{base64.b32encode(digest).decode().lower()}]"
        if self._vault is not None:
            self._vault.put(token, value)
        return token

    def text(self, text: str) -> str:
        """The text with every value that fits a pattern replaced.

        Beyond 65,536 characters it is cut, and says so: what was not searched is not shown.
        """
        cut = text[:_LONGEST_TEXT]
        for pattern in self._patterns:
            plain = cut if cut.isascii() else _LOOKALIKES.sub(_plain, cut)
            if pattern.hint is None or pattern.hint.search(plain):
                cut = self._without(pattern, cut, plain)
        return cut if len(text) <= _LONGEST_TEXT else f"{cut}… [{len(text) - _LONGEST_TEXT} more characters]"

    def event(self, event: Event) -> Event:
        """The event with its personal fields replaced, and its other strings searched.

        A personal string becomes its token; any other personal value its field's default. None stays None.
        """
        plan = self._plans.get(type(event))
        if plan is None:
            plan = self._plans[type(event)] = _plan(type(event))
        changes: dict[str, Any] = {}
        for name, default in plan.personal:
            value = getattr(event, name)
            if isinstance(value, str):
                if value:
                    changes[name] = self.token(value)
            elif value is not None:
                changes[name] = default
        for name in plan.others:
            value = getattr(event, name)
            replaced = self.value(value)
            if replaced is not value:
                changes[name] = replaced
        return msgspec.structs.replace(event, **changes) if changes else event

    def value(self, value: Any, depth: int = 8) -> Any:
        """A JSON-like value with every string in it searched; the same object where nothing was found.

        Deeper than `depth` levels it becomes [too deep].
        """
        if isinstance(value, str):
            replaced = self.text(value)
            return value if replaced == value else replaced
        if isinstance(value, dict | list | tuple) and not depth:
            return "[too deep]"
        if isinstance(value, dict):
            pairs = {self.value(key, depth - 1): self.value(item, depth - 1) for key, item in value.items()}
            return value if pairs == value else pairs
        if isinstance(value, list | tuple):
            items = [self.value(item, depth - 1) for item in value]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        if value is None or isinstance(value, _PLAIN_TYPES):
            return value
        return self._of_other_type(value, depth)

    def _of_other_type(self, value: Any, depth: int) -> Any:
        """A struct, a data class, a set: as JSON will show it, its own personal fields replaced."""
        if isinstance(value, msgspec.Struct):
            said = classifications(type(value))
            shown = {
                field.encode_name: self._personal(getattr(value, field.name))
                if said[field.name] == "personal"
                else self.value(getattr(value, field.name), max(0, depth - 1))
                for field in msgspec.structs.fields(value)
            }
            return (
                [*_tag(value).values(), *shown.values()]
                if value.__struct_config__.array_like
                else _tag(value) | shown
            )
        try:
            plain = msgspec.to_builtins(value)
        except TypeError:  # JSON will not show it at all
            return value
        return value if isinstance(plain, _PLAIN_TYPES) else self.value(plain, depth)

    def _personal(self, value: Any) -> Any:
        if value is None or value == "":
            return value
        return self.token(value if isinstance(value, str) else str(value))

    def _without(self, pattern: Pattern, text: str, plain: str) -> str:
        """The text without what the pattern finds in `plain`, which says the same, character for character."""
        if plain is text:
            return pattern.regex.sub(partial(self._replaced, pattern), text)
        parts, end = [], 0
        for found in pattern.regex.finditer(plain):
            shown = self._replaced(pattern, found)
            if shown != found[0]:
                parts += [text[end : found.start()], shown]
                end = found.end()
        return "".join([*parts, text[end:]])

    def _replaced(self, pattern: Pattern, found: re.Match[str]) -> str:
        if not pattern.check(found[0]):
            return found[0]
        return "[secret]" if pattern.secret else self.token(found[0], pattern.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    personal: tuple[tuple[str, object], ...]
    others: tuple[str, ...]


# What correlates lines is no one's name, and would cost a search in each.
_NEVER_SEARCHED = frozenset({"request_id", "at_utc_seconds", "schema_version", "inclusion_probability"})


def _plan(kind: type[Event]) -> _Plan:
    classes = classifications(kind)
    defaults = {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(kind)
    }
    return _Plan(
        personal=tuple((name, defaults[name]) for name, said in classes.items() if said == "personal"),
        others=tuple(
            name for name, said in classes.items() if said != "personal" and name not in _NEVER_SEARCHED
        ),
    )
