"""`fairlead try`: the arguments of a walk through a reference system."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.errors import InvalidInput

if TYPE_CHECKING:
    from fairlead.trial.system import Settings

__all__ = ["command"]


def command(
    system: Annotated[
        str | None, typer.Argument(help="The reference system to play; see --list.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the installed systems and leave.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A shorter run with wider intervals.")] = False,
    seed: Annotated[int, typer.Option(help="Decides arrivals, keys and service times.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests per second in the normal phase; the system's own if not given.", show_default=False
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM",
            help="Switch one mechanism off, in an arm of its own; may be repeated; 'all' takes each in turn.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the run's folder is made.", file_okay=False)
    ] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the tables.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the treatment's service on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Redis for the system to share its cache in; adds phases in which it hangs and is gone.",
            show_default=False,
        ),
    ] = None,
) -> int | None:
    """Plays a reference system: the same load on control and treatment, with faults."""
    if list_:
        _print_systems(json)
        return None
    if system is None:
        raise InvalidInput("which system? fairlead try --list names them")
    from fairlead.trial.system import Settings

    settings = Settings(seed=seed, quick=quick, rate=rate, ablate=tuple(ablate or ()), port=port, redis=redis)
    return _play(system, settings, out, json)


def _print_systems(as_json: bool) -> None:
    import msgspec

    from fairlead.cli.outcome import one_line
    from fairlead.trial.system import find_systems, load_system

    rows: list[dict[str, object]] = []
    for name in find_systems():
        try:
            system = load_system(name)
            mechanisms = {each.name: each.summary for each in system.mechanisms}
            rows.append({"name": name, "title": system.title, "mechanisms": mechanisms})
        except Exception as error:  # somebody else's package: a broken one must not hide the others
            rows.append({"name": name, "broken": one_line(f"{type(error).__name__}: {error}")})
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(rows)))
        return
    for row in rows:
        typer.echo(f"{row['name']}  {row.get('title') or 'broken: ' + str(row['broken'])}")
        for name, summary in cast("dict[str, str]", row.get("mechanisms", {})).items():
            typer.echo(f"  --ablate {name:<24}  {summary}")
    if not rows:
        typer.echo("no systems are installed (fairlead doctor tells why)", err=True)


def _play(name: str, settings: Settings, out: Path, as_json: bool) -> int:
    """Plays the walk, writes the run's folder and prints the tables; the exit code of the run."""
    from fairlead.trial.system import load_system

    system = load_system(name)
    system.plan(settings)  # a wrong argument must not leave a folder behind
    from fairlead.cli.try_view import LiveProgress, print_result
    from fairlead.trial.run import make_run_directory, run_trial

    directory = make_run_directory(out, name, settings.seed)
    with LiveProgress(system.title, directory) as progress:
        result = run_trial(system, settings, directory, progress)
    if as_json:
        sys.stdout.buffer.write((directory / "result.json").read_bytes() + b"\n")
    else:
        print_result(result, directory)
    return ExitCode.OK if result.validity.valid else ExitCode.INCONCLUSIVE
