"""`fairlead` itself: which commands exist, and how one is found without importing the others."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from fairlead import __version__
from fairlead.cli.exit_codes import MEANINGS, ExitCode
from fairlead.errors import InvalidInput

if TYPE_CHECKING:
    # What TyperGroup's methods take has no public name; it is needed for their signatures alone.
    from typer._click import Command, Context, HelpFormatter

__all__ = ["COMMANDS", "Commands", "parse", "run"]

COMMANDS: dict[str, tuple[str, str]] = {
    "try": ("try_", "Plays a reference system: the same load on control and treatment, with faults."),
    "diagnose": (
        "diagnose",
        "Says where a run went wrong, whom it hit, why that may be, and what to run next.",
    ),
    "change": (
        "change",
        "Writes, checks and freezes the file of a change: what is promised before it is measured.",
    ),
    "experiment": (
        "experiment",
        "Analyses an experiment, sizes one from history, and tries the analysis on splits without an effect.",
    ),
    "flags": (
        "flags",
        "Checks flag documents, asks them, explains an answer, counts whom a change moves, imports flagd's.",
    ),
    "rollout": ("rollout", "Lets a change out by stages behind guardrails, and takes it back by itself."),
    "slo": ("slo", "Checks objectives, shows their error budgets, and writes a Prometheus' rules for them."),
    "audit": ("audit", "Verifies the ledger, and shows what was recorded and decided."),
    "events": ("events", "Checks events, shows them as they come, and prints their schemas."),
    "doctor": ("doctor", "Tells what is installed, reachable and missing here, each with its fix."),
}
"""Name: module in this folder, first line of its help. Typer reads the module's function `command`, or its group
`app` where there are commands within it.
"""


class Commands(TyperGroup):
    """The group of all commands; importing one waits until it is called for."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}"
            raise InvalidInput(f"no command named {cmd_name[:64]!r}; {hint}")
        module = importlib.import_module(f"fairlead.cli.{COMMANDS[cmd_name][0]}")
        if hasattr(module, "app"):
            group = typer.main.get_group(module.app)
            group.name = cmd_name
            return group
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(module.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANINGS.items()])


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback", help="Show the whole traceback of a failure (also: FAIRLEAD_TRACEBACK=1)."
        ),
    ] = False,
) -> None:
    """Takes a change to a live service from problem to proof."""


def run(arguments: Sequence[str]) -> object:
    """Parses and runs one command; returns what it returned.

    Raises InvalidInput for a command line that does not parse, naming the help that would have told.
    """
    group = _group()
    # Not group.main(): it makes a broken pipe of any socket a silent exit, and prints errors its own way.
    with _usage_errors():
        try:
            with group.make_context("fairlead", list(arguments) or ["--help"]) as context:
                return group.invoke(context)
        except typer.Exit as ending:
            return ending.exit_code
        except typer.Abort:
            return ExitCode.INTERRUPTED


def parse(arguments: Sequence[str]) -> None:
    """Raises InvalidInput where `run` would for the same reason; runs nothing."""
    group = _group()
    # The options in front of a command take no value, so the first plain word is the command.
    start = next((index for index, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    with _usage_errors(), suppress(typer.Exit), group.make_context("fairlead", list(arguments)) as context:
        for name in arguments[start : start + 1]:
            command = group.get_command(context, name)
            if command is not None:
                rest = list(arguments[start + 1 :])
                inner = command.make_context(name, rest, parent=context)
                if isinstance(command, TyperGroup) and rest:
                    within = command.get_command(inner, rest[0])
                    if within is not None:
                        within.make_context(rest[0], rest[1:], parent=inner).close()
                inner.close()


def _group() -> TyperGroup:
    app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None)
    app.callback()(_root)
    return typer.main.get_group(app)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except typer.TyperException as error:
        where = getattr(error, "ctx", None)
        path = where.command_path if where is not None else "fairlead"
        raise InvalidInput(f"{error.format_message().rstrip('.')} (see {path} --help)") from error
