"""`fairlead diagnose RUN`: a run of `fairlead try` walked through, from what happened to what to try next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.errors import InvalidInput

__all__ = ["command"]


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder that `fairlead try` made.", show_default=False)
    ],
    arm: Annotated[
        str | None,
        typer.Option(
            help="The arm to look into; the second, which is the treatment, if not given.", show_default=False
        ),
    ] = None,
    slow: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="An answer slower than this counts as slow; the arm's own p95 if not given.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> int:
    """Says where a run went wrong, whom it hit, why that may be, and what to run next."""
    if slow is not None and not 0 < slow < 3600:
        raise InvalidInput(f"--slow {slow}: expected seconds above 0 and below an hour")
    result = _result(run)
    import msgspec

    from fairlead.cli.diagnose_view import as_text
    from fairlead.diagnosis.ladder import diagnose_run
    from fairlead.diagnosis.run_events import read_run_events
    from fairlead.diagnosis.run_facts import RunFacts
    from fairlead.diagnosis.run_folder import read_folder
    from fairlead.trial.pages import read_pages

    events = read_run_events(run)
    folder, traces = read_folder(run)
    diagnosis = diagnose_run(
        msgspec.convert(result, RunFacts, from_attributes=True),
        events,
        read_pages(run),
        folder,
        traces,
        arm=arm,
        slow=slow,
        mechanisms=_mechanisms(str(getattr(result, "system", ""))),
    )
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(diagnosis)))
    else:
        typer.echo(as_text(diagnosis, run))
    return ExitCode.OK if diagnosis.valid else ExitCode.INCONCLUSIVE


def _result(run: Path) -> object:
    """The run's result; an error that says which of the ways to be no run this is."""
    from fairlead.trial.result import read_result

    if not run.is_dir():
        what = "is a file" if run.exists() else "there is no such folder"
        raise InvalidInput(f"{run}: {what}; name the folder of a run, as `fairlead try` printed it (runs/…)")
    path = run / "result.json"
    if not path.exists():
        if (run / "events").is_dir():
            raise InvalidInput(
                f"{run}: has events and no result.json, so the run is still going on or was killed: wait for it, or "
                f"look at what it recorded with fairlead events check {run / 'events'}/*"
            )
        runs = sorted(each.name for each in run.iterdir() if (each / "result.json").is_file())
        hint = (
            f"did you mean {run / runs[-1]}?"
            if runs
            else "name the folder that `fairlead try` printed (runs/…)"
        )
        raise InvalidInput(f"{run}: no result.json, so this is no run; {hint}")
    return read_result(path)


def _mechanisms(system: str) -> tuple[str, ...]:
    """What the system can switch off; nothing for one that is not installed here."""
    from fairlead.trial.system import load_system

    try:
        return tuple(each.name for each in load_system(system).mechanisms)
    except Exception:  # a system of somebody else's, gone or broken: the run is there all the same
        return ()
