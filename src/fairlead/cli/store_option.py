"""Where the commands find the database: one option, the same words everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["DEFAULT_STORE", "StoreOption"]

DEFAULT_STORE = "fairlead.db"

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="PATH|URL",
        envvar="FAIRLEAD_STORE",  # a URL with a password does not belong on a command line, where all can read it
        help="The SQLite file, or postgresql://user@host/database.",
    ),
]
