"""The lines of a HAProxy configuration that split traffic as the flags do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from fairlead.errors import InvalidInput
from fairlead.flags.bucketing import salt_prefix
from fairlead.rollout.runtime_api import word_of

__all__ = ["address_of", "haproxy_config"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_TEXT = """frontend {name}
    bind {bind}
    # Who may say x-audience: nobody else, and x-variant is ours alone.
    http-request del-header x-audience{unless}
    # The slot, 0 to 9999, as flags draw it; none without a key.
    http-request set-var(txn.{name}_key) {key}
    acl {name}_known var(txn.{name}_key),length gt 0
    http-request set-var(txn.{name}_slot) str({salt}:),concat(,txn.{name}_key),xxh32(0),mod(10000) if {name}_known
    # What is served: the map, which a rollout changes while HAProxy runs.
    http-request set-var(txn.{name}_slots) str(slots),map_str({map_file})
    http-request set-var(txn.{name}_audience) str(audience),map_str({map_file})
    acl {name}_drawn var(txn.{name}_slot),sub(txn.{name}_slots) lt 0
    acl {name}_invited req.fhdr(x-audience),strcmp(txn.{name}_audience) eq 0
    http-request set-var(txn.{name}_variant) str(control)
    http-request set-var(txn.{name}_variant) str(treatment) if {name}_drawn or {name}_invited
    # For the service behind, and for the log.
    log global{log}
    http-request set-header x-variant %[var(txn.{name}_variant)]
    log-format "{line}%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %{{+Q}}r variant=%[var(txn.{name}_variant)]"
    use_backend {name}_treatment if {{ var(txn.{name}_variant) -m str treatment }}
    default_backend {name}_control
"""
_LOG = """
    # For guardrails beside control: which unit, by a keyed hash, which arm, and how it ended.
    log {log} len 400 format raw local0
    .if streq("$FAIRLEAD_LOG_KEY",)
    .alert "FAIRLEAD_LOG_KEY is not in the environment: without it anybody can try keys against the log"
    .endif
    http-request set-var(proc.{name}_began) date(0,us) if !{{ var(proc.{name}_began) -m found }}
    http-request set-var(txn.{name}_unit) var(txn.{name}_key),{digest} if {name}_known
    http-request set-var(txn.{name}_by) str(draw) if {name}_known
    http-request set-var(txn.{name}_by) str(audience) if {name}_invited"""
_DIGEST = 'hmac(sha256,"${FAIRLEAD_LOG_KEY}"),bytes(0,16),hex'
_LINE = (
    "fairlead/1 time=%[date(0,ms)] from=%H/%pid/%[var(proc.{name}_began)] line=%lc request=%rt "
    "unit=%[var(txn.{name}_unit)] arm=%[var(txn.{name}_arm)] by=%[var(txn.{name}_by)] "
    "status=%ST timers=%Tw/%Tc/%Tr/%Ta end=%tsc | "
)
"""What `HaproxyLog` reads; first, so that a line cut at its length has it whole."""


def haproxy_config(
    name: str,
    *,
    bind: str,
    map_file: str,
    control: Sequence[str],
    treatment: Sequence[str],
    salt: str | None = None,
    header: str = "x-user-id",
    cookie: str | None = None,
    insiders: Sequence[str] = (),
    log: str | None = None,
) -> str:
    """A frontend and two backends, `NAME_control` and `NAME_treatment`; to run as it is, or to copy lines from.

    name: of the frontend; lower case, digits and _. bind, control, treatment: addresses, host:port.
    map_file: the map that `HaproxyTraffic` writes; has to be there when HAProxy starts, and may be empty.
    salt: that of the flag, or `name`. header, cookie: where the key is; a cookie outranks the header.
    insiders: networks that may say `x-audience`; from anybody else the header is removed. Empty: removed always.
    log: host:port that a rollout listens on (`HaproxyLog`): each line then begins with what guardrails beside control
    count, and goes there too. The unit in it is the key's HMAC, by the secret in HAProxy's environment,
    FAIRLEAD_LOG_KEY (base64), without which HAProxy does not start.
    Needs HAProxy 2.4, with OpenSSL for `log`. Raises InvalidInput.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"name {name!r:.80}: write up to 40 of a-z, 0-9 and _, a letter first")
    for what, token in (("header", header), ("cookie", cookie)):
        if token is not None and not _TOKEN.fullmatch(token):
            raise InvalidInput(f"{what} {token!r:.80}: write letters, digits, _ and -")
    salt_prefix(salt if salt is not None else name)
    for network in insiders:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise InvalidInput(f"insiders: {error}; write for example 10.0.0.0/8") from error
    if "," in map_file:
        raise InvalidInput(
            f"map_file {map_file!r:.100}: HAProxy would read a comma as the end of it; rename it"
        )
    if log is not None:
        address_of(log)
    text = _TEXT.format(
        name=name,
        log=_LOG.format(name=name, log=log, digest=_DIGEST) if log is not None else "",
        line=_LINE.format(name=name) if log is not None else "",
        bind=word_of("bind", bind),
        map_file=word_of("map_file", map_file),
        salt=salt if salt is not None else name,
        key=f"req.cook({cookie})" if cookie else f"req.fhdr({header})",
        unless=f" unless {{ src {' '.join(insiders)} }}" if insiders else "",
    )
    for arm, addresses in (("control", control), ("treatment", treatment)):
        text += f"\nbackend {name}_{arm}\n"
        if log is not None:
            text += f"    http-request set-var(txn.{name}_arm) str({arm})\n"
        for number, address in enumerate(addresses, 1):
            text += f"    server {arm}{number} {word_of(f'{arm} address', address)}\n"
    return text


def address_of(text: str) -> tuple[str, int]:
    """Host and port that a log is sent to. Raises InvalidInput for what HAProxy would read otherwise."""
    host, _, port = text.rpartition(":")
    try:
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
        if not 0 < number < 65_536:
            raise ValueError(f"port {port[:20]!r} is not one of 1 to 65535")
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{address} is no address of one interface, and whoever reaches it is believed")
        return str(address), number
    except ValueError as error:
        raise InvalidInput(
            f"log {text!r:.80}: {error}; write an IP address and a UDP port, for example 127.0.0.1:5140"
        ) from error
