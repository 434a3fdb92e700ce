"""The options that several commands of `fairlead rollout` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "By",
    "Change",
    "Events",
    "Flags",
    "Haproxy",
    "HaproxyLogAddress",
    "Json",
    "Map",
    "Prometheus",
    "WebhookUrl",
]

Change = Annotated[Path, typer.Argument(metavar="CHANGE", help="A change file in TOML.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
By = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Who does it, for the journal.", show_default="you", envvar="FAIRLEAD_USER"
    ),
]
Flags = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The flag file whose flag is moved.", show_default=False)
]
Haproxy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOCKET",
        help="Runtime API of an HAProxy: a path or HOST:PORT; once for each.",
        show_default=False,
    ),
]
Map = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="With --haproxy: the map file that it reads.", show_default=False),
]
Events = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder that services write their events into.", show_default=False),
]
HaproxyLogAddress = Annotated[
    str | None,
    typer.Option(
        "--haproxy-log",
        metavar="HOST:PORT",
        help="Where HAProxy sends its log, by UDP; with --events: the folder that its requests are kept in.",
        show_default=False,
    ),
]
Prometheus = Annotated[
    str | None,
    typer.Option(metavar="URL", help="A Prometheus, for guardrails that have a query.", show_default=False),
]
WebhookUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Where notices are posted to.", show_default=False, envvar="FAIRLEAD_WEBHOOK"
    ),
]
