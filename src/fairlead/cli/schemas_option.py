"""Kinds of events of one's own: one option, the same words everywhere.

They are known once the module that registers them is imported: `--schemas my_service.events`, found as `python -m`
would find it, from the working directory.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from fairlead.errors import InvalidInput

__all__ = ["SchemasOption", "import_schemas"]

SchemasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--schemas",
        metavar="MODULE",
        help="Import a module that registers kinds of events; may be repeated.",
        show_default=False,
    ),
]


def import_schemas(modules: list[str] | None) -> None:
    """Imports the modules, so that their kinds are registered. Raises InvalidInput."""
    for module in modules or ():
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidInput(f"--schemas {module}: cannot be imported: {error}") from error
