"""`fairlead rollout`: let a change out by stages, see where it stands, stop it, take it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from fairlead.change import freeze_change, parse_change, read_change
from fairlead.change.incident import add_rollback
from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line
from fairlead.cli.rollout_leading import ask_in_time, lead, practise, take_back, user_name, withdraw
from fairlead.cli.rollout_options import (
    By,
    Change,
    Events,
    Flags,
    Haproxy,
    HaproxyLogAddress,
    Json,
    Map,
    Prometheus,
    WebhookUrl,
)
from fairlead.cli.rollout_running import CHANGE_PLACE, plan_from, plan_of, running
from fairlead.cli.rollout_setting import Setting, places_of, with_places
from fairlead.cli.rollout_shadow import say_shadow
from fairlead.cli.rollout_view import (
    print_blast_radius,
    print_history,
    print_simulated,
    print_status,
    where,
)
from fairlead.cli.schemas_option import SchemasOption, import_schemas
from fairlead.cli.store_option import DEFAULT_STORE, StoreOption
from fairlead.errors import DatabaseUnavailable, FairleadError, InvalidInput, NoSpace
from fairlead.ledger import Ledger
from fairlead.metrics import parse_duration
from fairlead.rollout import (
    Journal,
    RolloutPlan,
    RolloutState,
)
from fairlead.rollout.drill import drill_plan
from fairlead.rollout.entry import Asked
from fairlead.rollout.journal import plan_sha256
from fairlead.rollout.simulate import Harm, simulate_rollout
from fairlead.store import Database
from fairlead.telemetry import ReadReport, read_events

__all__ = ["SIMULATE_SCHEMA", "STATUS_SCHEMA", "app"]

STATUS_SCHEMA = "fairlead.rollout.status/1"
SIMULATE_SCHEMA = "fairlead.rollout.simulate/1"

app = typer.Typer(
    help="Lets a change out by stages behind guardrails, and takes it back by itself.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def start(
    change: Change,
    flags: Flags = None,
    haproxy: Haproxy = None,
    map: Map = None,
    events: Events = None,
    haproxy_log: HaproxyLogAddress = None,
    prometheus: Prometheus = None,
    schemas: SchemasOption = None,
    webhook: WebhookUrl = None,
    slack: Annotated[
        bool, typer.Option("--slack", help="The webhook is Slack's, or takes its form.")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the blast radius, and start nothing.")
    ] = False,
    by: By = "",
    store: StoreOption = DEFAULT_STORE,
) -> int:
    """Leads a rollout to its end: a new one, after saying whom it reaches, or the one that has not ended.

    The change file is frozen first. Ends with 0 when everybody is served, 3 when it was rolled back. Ctrl-C leaves
    traffic as it is, without a guard: start again to go on.
    """
    content = read_change(change)
    plan = plan_from(content, change)
    import_schemas(schemas)
    if plan_only:
        print_blast_radius(plan)
        return ExitCode.OK
    with Database(store) as database, ExitStack() as stack:
        database.migrate()
        journal = Journal.last(database, plan.name)
        state = journal.state() if journal is not None else None
        goes_on = state is not None and not state.ended
        given = places_of(
            plan,
            flags=flags,
            haproxy=haproxy,
            map=map,
            events=events,
            prometheus=prometheus,
            haproxy_log=haproxy_log,
        )
        places = with_places(state.places if goes_on and state else {}, given)
        setting = Setting(plan, places)
        setting.traffic()
        facts = stack.enter_context(setting.facts())  # both refused before anything is written
        if goes_on and state is not None:
            _check_traffic(state, places)
        if goes_on and journal is not None and state is not None:
            if state.plan_sha256 != plan_sha256(plan):
                raise InvalidInput(
                    f"{change}: rollout {journal.rollout} runs with another version of it; go on with that one "
                    f"(fairlead change show {change} --diff), or: fairlead rollout rollback {change}"
                )
            typer.echo(
                f"going on with {journal.rollout}: stage {plan.stages[state.stage].name}, {state.phase}"
            )
        else:
            say_shadow(parse_change(content, str(change)).rollout, plan.flag, places.get("events"), change)
            ledger = Ledger(database)
            frozen = freeze_change(content, ledger, name=str(change))
            print_blast_radius(plan)
            places[CHANGE_PLACE] = str(change.absolute())
            journal = Journal.start(database, plan, by=by or user_name(), places=places)
            typer.echo(f"started {journal.rollout} (change file version {frozen.version})")
        assert journal is not None  # noqa: S101 - one of both
        final, by_us = asyncio.run(lead(setting, facts, journal, database, webhook, slack))
    typer.echo(f"{final.rollout}: {final.phase.replace('_', ' ')}: {one_line(final.reason)}")
    if final.phase == "rolled_back" and by_us:
        _write_incident(change, plan, final)
    return ExitCode.OK if final.phase == "completed" else ExitCode.BREACHED


@app.command()
def status(
    change: Change,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for its end.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="With --watch: how long, at most.")
    ] = "10m",
    history: Annotated[bool, typer.Option("--history", help="Print every decision and step.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> int:
    """Says where the rollout stands and what every guardrail said last.

    With --watch it ends with 0 when everybody is served, 3 when it was rolled back, 7 when the time ran out.
    """
    end = time.monotonic() + parse_duration(timeout)
    shown = ""
    with Database(store) as database:
        found = running(change, database)
        plan, journal, state = found.plan, found.journal, found.state
        while watch and not state.ended and time.monotonic() < end:
            stands = f"{state.phase} {state.stage} {state.reason}"
            if not json and stands != shown:
                typer.echo(f"{state.rollout}: {where(plan, state)}: {one_line(state.reason)}")
                shown = stands
            time.sleep(0.5)
            state = journal.state(after=state)
        if json:
            typer.echo(msgspec.json.format(msgspec.json.encode(_record(plan, state)), indent=2).decode())
        else:
            print_status(plan, state)
            if history:
                print_history(plan, journal.read())
    if watch and not state.ended:
        return ExitCode.TIMED_OUT
    return ExitCode.BREACHED if state.phase == "rolled_back" and watch else ExitCode.OK


@app.command()
def pause(
    change: Change,
    why: Annotated[str, typer.Option(metavar="TEXT", help="For whoever reads the journal.")] = "",
    by: By = "",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Stops the rollout where it is; guardrails stay live."""
    _wish(change, store, "pause", by, why)


@app.command()
def resume(change: Change, by: By = "", store: StoreOption = DEFAULT_STORE) -> None:
    """Goes on with a rollout that was paused."""
    _wish(change, store, "resume", by, "")


@app.command()
def advance(change: Change, by: By = "", store: StoreOption = DEFAULT_STORE) -> None:
    """Opens the gate of the stage: it ends as soon as its guardrails let it."""
    _wish(change, store, "advance", by, "")


@app.command()
def rollback(
    change: Change,
    flags: Flags = None,
    haproxy: Haproxy = None,
    map: Map = None,
    why: Annotated[
        str, typer.Option(metavar="TEXT", help="For whoever reads the journal.")
    ] = "asked for by hand",
    by: By = "",
    json: Json = False,
    store: StoreOption = DEFAULT_STORE,
) -> int:
    """Takes treatment away at once, for good, whether or not a controller runs.

    Where the store does not answer, name the traffic: treatment goes all the same, and again writes it down later.
    """
    with Database(store) as database:
        given = partial(places_of, flags=flags, haproxy=haproxy, map=map)
        try:
            found = running(change, database)
        except DatabaseUnavailable as error:
            plan = plan_of(change)
            raise _withdrawn(Setting(plan, given(plan)), plan.name, error) from error
        plan, journal, state = found.plan, found.journal, found.state
        if state.ended:
            typer.echo(f"{state.rollout}: {state.phase.replace('_', ' ')} already")
            return ExitCode.OK if state.phase == "rolled_back" else ExitCode.USAGE
        began = time.monotonic()
        setting = Setting(plan, with_places(state.places, given(plan)))
        wish = Asked(what="rollback", by=by or user_name(), why=why)
        try:
            ask_in_time(journal, wish, lambda: asyncio.run(withdraw(setting, plan.name, state)))
            final, withdrawn_at = asyncio.run(
                take_back(setting, journal, database, f"{wish.by} asked for it: {why}")
            )
        except (DatabaseUnavailable, NoSpace) as error:
            raise _withdrawn(setting, plan.name, error, state) from error
    by_us = withdrawn_at is not None
    seconds = (withdrawn_at or time.monotonic()) - began
    if json:
        record = {**_record(plan, final), "rollback_seconds": round(seconds, 3)}
        typer.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
    else:
        typer.echo(f"{final.rollout}: rolled back in {seconds:.2f} s: {one_line(final.reason)}")
    if by_us:  # else by its controller, which writes it as well
        _write_incident(change, plan, final, err=json)
    return ExitCode.OK


@app.command()
def drill(
    change: Change,
    flags: Flags = None,
    haproxy: Haproxy = None,
    map: Map = None,
    share: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO", help="Of the units; default: the first share of the plan.", show_default=False
        ),
    ] = None,
    any_time: Annotated[
        bool, typer.Option("--any-time", help="Also outside working hours (Mon–Fri, 9 to 17).")
    ] = False,
    by: By = "",
    json: Json = False,
    store: StoreOption = DEFAULT_STORE,
) -> int:
    """Practises a rollback: serves a little, takes it back, and records how long that took."""
    now = time.localtime()  # the working hours are those of whoever practises
    if not any_time and not (now.tm_wday < 5 and 9 <= now.tm_hour < 17):
        raise InvalidInput(
            "drill: it is outside working hours (Mon–Fri, 9 to 17); add --any-time to practise all the same"
        )
    plan = plan_of(change)
    practised = drill_plan(plan, share)
    with Database(store) as database:
        database.migrate()
        last = Journal.last(database, plan.name)
        before = last.state().places if last is not None else {}
        places = with_places(before, places_of(plan, flags=flags, haproxy=haproxy, map=map))
        setting = Setting(practised, places)
        traffic = setting.traffic()
        journal = Journal.start(database, practised, by=by or user_name(), places=places)
        found = asyncio.run(practise(practised, journal, traffic, database))
    if json:
        record = {"schema": "fairlead.rollout.drill/1", **msgspec.to_builtins(found)}
        typer.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
    else:
        typer.echo(
            f"{found.rollout}: {found.share:.2%} served after {found.served_seconds:.2f} s, "
            f"taken back after {found.rollback_seconds:.2f} s"
        )
    return ExitCode.OK


@app.command()
def simulate(
    change: Change,
    events: Annotated[Path, typer.Option(metavar="DIR", help="A folder of recorded events.")],
    errors: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATIO",
            help="Plant so many failing units more (0.01: 1 pp); may be repeated.",
            show_default=False,
        ),
    ] = None,
    slower: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATIO", help="Plant latencies longer by this share; may be repeated.", show_default=False
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rollouts that are played for each line.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
    schemas: SchemasOption = None,
    json: Json = False,
) -> None:
    """Plays the plan over recorded events: how often it is rolled back by mistake, and how soon for a reason."""
    plan = plan_of(change)
    import_schemas(schemas)
    recorded = [
        (str(event.__struct_config__.tag), msgspec.structs.asdict(event))
        for event in read_events(events, report=ReadReport())
    ]
    harms = [
        Harm(),
        *(Harm(errors=each) for each in errors or ()),
        *(Harm(slower=each) for each in slower or ()),
    ]
    found = [simulate_rollout(plan, recorded, harm=harm, repeats=repeats, seed=seed) for harm in harms]
    if json:
        document = {
            "schema": SIMULATE_SCHEMA,
            "alpha": plan.alpha,
            "seed": seed,
            "lines": msgspec.to_builtins(found),
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print_simulated(plan, found)


def _record(plan: RolloutPlan, state: RolloutState) -> dict[str, object]:
    stage = plan.stages[state.stage] if state.stage < len(plan.stages) else None
    return {
        "schema": STATUS_SCHEMA,
        "rollout": state.rollout,
        "state": state.phase,
        "stage": {"index": state.stage, "name": stage.name if stage else "?"},
        "want": msgspec.to_builtins(state.want),
        "have": msgspec.to_builtins(state.have),
        "guarded_seconds": state.guarded_seconds,
        "looked_utc_seconds": state.looked_utc_seconds,
        "epoch": state.epoch,
        "leader": state.leader,
        "reason": state.reason,
        "units": dict(state.units),
        "guardrails": msgspec.to_builtins(state.evaluations),
    }


def _withdrawn(
    setting: Setting, change: str, error: FairleadError, state: RolloutState | None = None
) -> DatabaseUnavailable:
    """What to say when treatment was taken away, and that cannot be written down. Raises where it was not."""
    try:
        asyncio.run(withdraw(setting, change, state))
    except InvalidInput as missing:
        if setting.places.get("flags") or setting.places.get("haproxy"):
            raise
        raise DatabaseUnavailable(
            f"{error}. To take treatment away all the same, name the traffic: --flags FILE, or --haproxy SOCKET "
            "--map FILE"
        ) from missing
    return DatabaseUnavailable(
        f"nobody is served treatment any more, and that is not written down: {error}. Its controller does it; where "
        "none runs, roll back again then"
    )


def _check_traffic(state: RolloutState, places: Mapping[str, str]) -> None:
    before, now = (each.get("flags") or each.get("map") for each in (state.places, places))
    if before and before != now:
        raise InvalidInput(
            f"rollout {state.rollout} moves {before}, which would be left without a guard; go on without naming the "
            "traffic, or roll it back and start anew"
        )


def _write_incident(change: Path, plan: RolloutPlan, final: RolloutState, *, err: bool = False) -> None:
    """A person adds cause, fix and learning; what happened stands there already."""
    try:
        add_rollback(change, plan, final)
    except (FairleadError, OSError) as error:
        typer.echo(f"{change}: the incident could not be written: {error}", err=True)
    else:
        typer.echo(f"{change}: the incident stands at its end; add cause, fix and learning", err=err)


def _wish(change: Path, store: str, what: Literal["pause", "resume", "advance"], by: str, why: str) -> None:
    with Database(store) as database:
        found = running(change, database)
        journal, state = found.journal, found.state
        if state.ended or state.withdrawn:
            raise InvalidInput(
                f"rollout {state.rollout} is {state.phase.replace('_', ' ')}; there is nothing to {what}"
            )
        if what == "resume" and not state.paused:
            raise InvalidInput(f"rollout {state.rollout} is not paused; it is {state.phase}")
        journal.ask(Asked(what=what, by=by or user_name(), why=why))
    typer.echo(f"{state.rollout}: {what} is asked for; its controller does it within seconds")
