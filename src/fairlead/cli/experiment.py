"""`fairlead experiment`: did it work, could it have been seen, and would this analysis tell the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fairlead.change import parse_change, read_change
from fairlead.change.experiment import experiment_plan
from fairlead.change.sections import ChangeFile
from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.experiment_options import (
    Alpha,
    Caps,
    Change,
    Covariates,
    Data,
    Json,
    Metrics,
    Power,
    Seed,
    Unit,
    fairness_of,
    grouped,
    metrics_of,
    number_of,
    pairs_of,
)
from fairlead.cli.experiment_period import Looked, looked_by_hand, looked_by_journal
from fairlead.cli.experiment_view import print_analysis, print_design, print_simulated
from fairlead.cli.output_file import write_output
from fairlead.cli.schemas_option import SchemasOption, import_schemas
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.experiment import CalendarEntry, ExperimentPlan, ExperimentResult, read_calendar

if TYPE_CHECKING:
    from fairlead.experiment import Units

__all__ = ["app"]

app = typer.Typer(
    help="Analyses an experiment, sizes one from history, and tries the analysis on splits without an effect.",
    add_completion=False,
    rich_markup_mode=None,
)

_OF_TABLES = dict.fromkeys(
    ("unit", "variant", "control", "metric", "covariate", "cap", "segment", "fairness", "time", "share",
     "alpha", "power", "sequential", "planned_units"),
    "is for --data: with a change file, [experiment] says it",
)  # fmt: skip
_OF_EVENTS = dict.fromkeys(
    ("events", "about", "schemas", "store", "since", "until"),
    "is for a change file: --data has all in one table",
)


@app.command()
def analyze(
    context: typer.Context,
    change: Change = None,
    events: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With CHANGE: the folder of a sink, with exposures.", show_default=False
        ),
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With CHANGE: columns known of each `unit` before exposure.",
            show_default=False,
        ),
    ] = None,
    schemas: SchemasOption = None,
    data: Data = None,
    unit: Unit = None,
    variant: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with the variant.", show_default=False)
    ] = None,
    control: Annotated[
        str, typer.Option(metavar="NAME", help="The variant that others are compared with.")
    ] = "control",
    metric: Metrics = None,
    covariate: Covariates = None,
    cap: Caps = None,
    segment: Annotated[
        list[str] | None,
        typer.Option(
            "--segment", metavar="COL", help="Show effects by its values, exploratory.", show_default=False
        ),
    ] = None,
    fairness: Annotated[
        list[str] | None,
        typer.Option(
            "--fairness",
            metavar="METRIC:COL[:LIMIT]",
            help="Guard the ratio of effects between groups.",
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="COL", help="When a unit entered; shows the course over time.", show_default=False
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            metavar="VARIANT=S",
            help="Planned share of an arm; default: equal.",
            show_default=False,
        ),
    ] = None,
    calendar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What else happened: promotions, deploys, incidents.", show_default=False
        ),
    ] = None,
    alpha: Alpha = 0.05,
    power: Power = 0.8,
    sequential: Annotated[
        bool,
        typer.Option("--sequential", help="It is looked at before its end: verdicts hold at every look."),
    ] = False,
    planned_units: Annotated[
        int | None, typer.Option(metavar="N", help="Units it was planned for.", show_default=False)
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL",
            # No environment variable: an analysis writes where it is told to, and nowhere else.
            help="With CHANGE: record every figure in this ledger, in which the change file lies frozen as it is. The "
            "stages of its rollout are taken from the journal there.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With CHANGE: only who was drawn from then on, where the shares stood still: "
            "2026-11-27T14:00+01:00; without a zone UTC. --share says the shares, if not the change file's.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With CHANGE: only who was drawn, and what came of it, before.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page for people who were not there.", show_default=False),
    ] = None,
) -> int:
    """Is the experiment sound, what changed, and how sure is that. From a change file and events, or from a table."""
    import_schemas(schemas)
    entries = read_calendar(calendar) if calendar is not None else ()
    if (change is None) == (not data):
        raise InvalidInput(
            "give a change file with --events DIR, or --data FILE with --variant and --metric; not both"
        )
    by_hand = change is not None and (since is not None or until is not None)
    _refuse(
        context,
        _OF_EVENTS
        if change is None
        else {name: why for name, why in _OF_TABLES.items() if not (by_hand and name == "share")},
    )
    shares = {name: number_of(text, f"share of {name}") for name, text in pairs_of(share, "--share")}
    if change is not None:
        if events is None:
            raise InvalidInput("--events is missing: the folder in which the exposures of this change lie")
        result = _of_change(
            change, events, about, entries, store, (since, until, shares) if by_hand else None
        )
    else:
        if variant is None or not metric:
            raise InvalidInput("--data needs --variant COL and at least one --metric")
        plan = ExperimentPlan(
            name=Path(data[0]).stem if data else "experiment",
            metrics=metrics_of(metric),
            control=control,
            shares=shares,
            alpha=alpha,
            power=power,
            sequential=sequential,
            planned_units=planned_units,
            covariates=grouped(pairs_of(covariate, "--covariate")),
            caps={name: number_of(text, f"cap of {name}") for name, text in pairs_of(cap, "--cap")},
            segments=tuple(segment or ()),
            fairness=tuple(fairness_of(text) for text in fairness or ()),
        )
        result = _of_table(plan, data or [], variant, unit, time, entries)
    if html is not None:
        from fairlead.experiment import render_report

        write_output(html, render_report(result), option="--html")
    if json:
        typer.echo(result.to_json().decode(), nl=False)
    else:
        print_analysis(result, html)
    if result.is_void:
        return ExitCode.INCONCLUSIVE
    harmed = any(found.role == "guardrail" and found.verdict == "worse" for found in result.metrics)
    unfair = any(found.verdict == "exceeded" for found in result.fairness)
    return ExitCode.BREACHED if harmed or unfair else ExitCode.OK


@app.command()
def design(
    context: typer.Context,
    change: Change = None,
    data: Data = None,
    unit: Unit = None,
    metric: Metrics = None,
    covariate: Covariates = None,
    cap: Caps = None,
    units_per_day: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="New units a day, all arms together; default: the change file's.",
            show_default=False,
        ),
    ] = None,
    mde: Annotated[
        float | None, typer.Option(help="Relative effect worth finding: 0.02 is 2 %.", show_default=False)
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(
            "--share", metavar="S", help="Treatment's share, 0–1; may be given again.", show_default=False
        ),
    ] = None,
    days: Annotated[
        float | None, typer.Option(metavar="D", help="How long each share would be kept.", show_default=False)
    ] = None,
    alpha: Alpha = 0.05,
    power: Power = 0.8,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="It will be looked at before its end.")
    ] = False,
    json: Json = False,
) -> None:
    """What can be found at each stage, and how long it takes, from one's own history (--data) or the change file."""
    from fairlead.experiment.design import Spread, design_experiment, spreads_of

    if change is None and not (data and metric):
        raise InvalidInput("give a change file, or history by --data with at least one --metric")
    file = _read(change) if change is not None else None
    if file is not None:
        _refuse(context, {name: _OF_TABLES[name] for name in ("alpha", "power", "sequential")})
        plan = experiment_plan(file)
        if metric:
            plan = replace(plan, metrics=metrics_of(metric), covariates={}, caps={}, margins={}, fairness=())
    else:
        plan = ExperimentPlan(
            name=Path((data or [Path("history")])[0]).stem,
            metrics=metrics_of(metric),
            alpha=alpha,
            power=power,
            sequential=sequential,
        )
    if data:
        plan = replace(
            plan,
            covariates=grouped(pairs_of(covariate, "--covariate")) or plan.covariates,
            caps={name: number_of(text, f"cap of {name}") for name, text in pairs_of(cap, "--cap")}
            or plan.caps,
            segments=(),
            fairness=(),
            mde=mde if mde is not None else plan.mde,
        )
        from fairlead.experiment import units_of_files

        spreads: dict[str, Spread | str] = spreads_of(units_of_files(data, plan, variant=None, unit=unit))
    else:
        if file is None or covariate or cap:
            raise InvalidInput("--covariate and --cap need history: --data FILE")
        plan = replace(plan, mde=mde if mde is not None else plan.mde)
        from fairlead.change.experiment import written_spreads

        spreads = dict(written_spreads(file))
    per_day = units_per_day or (file.experiment.units_per_day if file and file.experiment else None)
    if per_day is None:
        raise InvalidInput("--units-per-day is missing: how many new units come each day, all arms together")
    stages = _stages(file, share, days)
    print_design(design_experiment(plan, spreads, units_per_day=per_day, stages=stages), as_json=json)


@app.command()
def simulate(
    data: Data = None,
    unit: Unit = None,
    metric: Metrics = None,
    covariate: Covariates = None,
    cap: Caps = None,
    planted: Annotated[
        float, typer.Option(metavar="E", help="Relative effect to plant: 0.02 is 2 %; 0: none (A/A).")
    ] = 0.0,
    runs: Annotated[int, typer.Option(help="Random splits, 20 to 100,000.")] = 1000,
    share: Annotated[float, typer.Option(help="Treatment's share of the units, 0–1.")] = 0.5,
    alpha: Alpha = 0.05,
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Splits one's own data at random, plants an effect, and counts how often the analysis tells the truth."""
    from fairlead.experiment import simulate_experiment, units_of_files

    if not data or not metric:
        raise InvalidInput("--data FILE and at least one --metric are needed: the units to be split")
    plan = ExperimentPlan(
        name=Path(data[0]).stem,
        metrics=metrics_of(metric),
        alpha=alpha,
        covariates=grouped(pairs_of(covariate, "--covariate")),
        caps={name: number_of(text, f"cap of {name}") for name, text in pairs_of(cap, "--cap")},
    )
    units = units_of_files(data, plan, variant=None, unit=unit)
    found = simulate_experiment(plan, units, planted=planted, runs=runs, seed=seed, treatment_share=share)
    print_simulated(found, seed=seed, as_json=json)
    return ExitCode.OK if all(one.is_calibrated for one in found) else ExitCode.BREACHED


def _refuse(context: typer.Context, options: Mapping[str, str]) -> None:
    """Raises InvalidInput for the first of these options that was given: nothing that is asked for is passed over."""
    for name, why in options.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidInput(f"--{name.replace('_', '-')} {why}")


def _read(path: Path) -> ChangeFile:
    return parse_change(read_change(path), str(path))


def _of_change(
    path: Path,
    events: Path,
    about: Path | None,
    calendar: Sequence[CalendarEntry],
    store: str | None,
    by_hand: tuple[str | None, str | None, Mapping[str, float]] | None,
) -> ExperimentResult:
    from fairlead.experiment import analyse, units_of_events

    if not events.is_dir():
        raise BrokenDocument(f"{events}: no such folder; name the one that a sink writes events to")
    content = read_change(path)
    file = parse_change(content, str(path))
    plan = experiment_plan(file)
    if about is None:
        plan = replace(plan, covariates={}) if plan.pre_period is not None else plan
        if plan.covariates or plan.group_columns:
            wanted = ", ".join(
                dict.fromkeys([*plan.group_columns, *(c for cs in plan.covariates.values() for c in cs)])
            )
            raise InvalidInput(
                f"--about is missing: a file with a column `unit`, and {wanted}, as the change file asks"
            )
    looked = Looked(plan=plan) if by_hand is None else looked_by_hand(plan, *by_hand)

    def analysed(looked: Looked, data_sha256: str | None = None) -> tuple[ExperimentResult, Units]:
        units = units_of_events(
            events, looked.plan, about_units=about, since=looked.since, until=looked.until
        )
        found = analyse(looked.plan, units, calendar=calendar, data_sha256=data_sha256)
        return msgspec.structs.replace(found, caveats=(*looked.caveats, *found.caveats)), units

    if store is None:
        return analysed(looked)[0]
    from fairlead.cli.experiment_record import Record

    with Record(store, plan, content, path) as record:
        if by_hand is None:
            looked = looked_by_journal(plan, file, record.database)
        files = [*sorted(each for each in events.rglob("*") if each.is_file()), *filter(None, (about,))]
        return record.recorded(*analysed(looked, _hash(files)))


def _of_table(
    plan: ExperimentPlan,
    data: Sequence[Path],
    variant: str,
    unit: str | None,
    time: str | None,
    calendar: Sequence[CalendarEntry],
) -> ExperimentResult:
    from fairlead.experiment import analyse, units_of_files

    units = units_of_files(data, plan, variant=variant, unit=unit, time=time)
    return analyse(plan, units, calendar=calendar, data_sha256=_hash(data))


def _hash(paths: Sequence[Path]) -> str:
    """Of one file its own hash; of several, that of the list of theirs."""
    hashes = []
    for path in paths:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _stages(
    file: ChangeFile | None, shares: Sequence[float] | None, days: float | None
) -> list[tuple[float, float | None]]:
    """The shares asked for; those of the change file's stages; else its split."""
    if shares:
        return [(share, days) for share in shares]
    if file is not None:
        from fairlead.change.experiment import stages_of

        found = stages_of(file)
        if found:
            return [(share, days if days is not None else bake) for share, bake in found]
    return [(0.5, days)]
