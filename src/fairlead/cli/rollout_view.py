"""What `fairlead rollout` shows in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import typer

from fairlead.cli.outcome import one_line
from fairlead.errors import MissingExtra
from fairlead.rollout import Evaluation, Guardrail, RolloutPlan, RolloutState
from fairlead.rollout.blast_radius import blast_radius
from fairlead.rollout.entry import (
    Asked,
    Claimed,
    Decided,
    Ended,
    Had,
    Looked,
    Paged,
    Started,
    Wanted,
    Written,
)
from fairlead.rollout.simulate import Simulated
from fairlead.rollout.wording import evaluation_row, span

try:
    from rich.console import Console
    from rich.table import Table
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["print_blast_radius", "print_history", "print_simulated", "print_status", "where"]


def where(plan: RolloutPlan, state: RolloutState) -> str:
    """ "stage 5 % (3 of 5), baking, 12m under guard (bakes 6h, at most 18h)" """
    if state.ended:
        return state.phase.replace("_", " ")
    stage = plan.stages[min(state.stage, len(plan.stages) - 1)]
    said = f"stage {stage.name} ({state.stage + 1} of {len(plan.stages)}), {state.phase.replace('_', ' ')}"
    if state.phase in ("baking", "gate", "paused", "frozen"):
        said += f", {span(state.guarded_seconds)} under guard (bakes {span(stage.bake)}, at most {span(stage.most)})"
    return said


def print_blast_radius(plan: RolloutPlan) -> None:
    """Whom each stage reaches, and how long it takes to see anything."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "who", "units", "bakes", "at most", "until harm of twice the limit is seen"):
        table.add_column(heading)
    found = blast_radius(plan)
    for reach in found:
        needed = "; ".join(
            f"{name}: {span(seconds) if seconds is not None else 'not known'}"
            for name, seconds in reach.needed_seconds.items()
        )
        table.add_row(
            reach.stage + (" (gate)" if reach.gate == "manual" else ""),
            reach.who,
            "?" if reach.units is None else f"{reach.units:,.0f}",
            span(reach.bake_seconds),
            span(reach.longest_seconds),
            needed or "compares nothing",
        )
    Console(highlight=False, soft_wrap=True).print(table)
    for reach in found:
        for name, seconds in reach.blind.items():
            typer.echo(
                f"note: stage {reach.stage} ends after {span(reach.longest_seconds)} at most, and {name} sees harm of "
                f"twice its limit after {span(seconds)}: bake longer, or with a larger share"
            )
    feels = ", ".join(map(one_line, plan.dependencies)) or "not said ([rollout] dependencies)"
    typer.echo(f"also feels it: {feels}")
    if plan.expected_rate is None:
        typer.echo("units are not known: say units_per_day in [experiment]")


def print_status(plan: RolloutPlan, state: RolloutState) -> None:
    """Where it stands, and what each guardrail said last."""
    typer.echo(f"{state.rollout}: {where(plan, state)}")
    if state.reason:
        typer.echo(f"  {one_line(state.reason)}")
    if state.have is not None:
        served = f"{state.have.share:.2%} of units"
        typer.echo(
            f"  served: {served}" + (f" and audience {state.have.audience}" if state.have.audience else "")
        )
    if not state.ended and state.looked_utc_seconds is not None:
        age = max(0.0, time.time() - state.looked_utc_seconds)
        alone = (
            "; no controller looks: fairlead rollout start goes on" if age > 6 * plan.look_every + 30 else ""
        )
        typer.echo(f"  last look {span(age)} ago by {one_line(state.leader)}{alone}")
    if not state.evaluations:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("guardrail", "verdict", plan.control, plan.treatment, "worse by", "at most", "n"):
        table.add_column(heading, min_width=len("INCONCLUSIVE") if heading == "verdict" else None)
    known = {guardrail.name: guardrail for guardrail in plan.guardrails}
    for found in state.evaluations:
        table.add_row(*_row(found, known.get(found.guardrail)))
    Console(highlight=False, soft_wrap=True).print(table)


def print_history(plan: RolloutPlan, entries: Sequence[Written]) -> None:
    """Every step and decision; looks that changed nothing are left out."""
    for written in entries:
        said = _said(plan, written)
        if said:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(written.at_utc_seconds))
            typer.echo(f"{written.number:>6}  {at}  {one_line(said)}")


def print_simulated(plan: RolloutPlan, lines: Sequence[Simulated]) -> None:
    """How often, where and how soon rollouts were rolled back, a line for each planted harm."""
    from fairlead.statistics import proportion_interval  # the other commands need not wait for it

    table = Table(box=None, pad_edge=False)
    for heading in (
        "planted",
        "rolled back",
        "95 % interval",
        "at",
        "half of them after",
        "units exposed by then",
    ):
        table.add_column(heading)
    for found in lines:
        share = proportion_interval(found.rolled_back, found.repeats)
        at = ", ".join(f"{stage}: {count}" for stage, count in found.by_stage.items())
        table.add_row(
            found.harm,
            f"{found.rolled_back} of {found.repeats} ({found.rolled_back / found.repeats:.1%})",
            f"{share.low:.1%} to {share.high:.1%}",
            at or "–",
            span(median(found.seconds)) if found.seconds else "–",
            f"{median(found.exposed):,.0f}" if found.exposed else "–",
        )
    Console(highlight=False, soft_wrap=True).print(table)
    typer.echo(f"A/A: at most {plan.alpha:.0%} may be rolled back by mistake")
    for caveat in dict.fromkeys(caveat for found in lines for caveat in found.caveats):
        typer.echo(f"note: {caveat}")


def _row(found: Evaluation, guardrail: Guardrail | None) -> tuple[str, ...]:
    unit = guardrail.metric.unit if guardrail else ""
    beside = guardrail is not None and guardrail.is_relative
    row = evaluation_row(found, unit, beside_control=beside, relative=guardrail is None or guardrail.relative)
    return found.guardrail, *row


def _said(plan: RolloutPlan, written: Written) -> str:
    entry = written.entry
    match entry:
        case Started():
            return f"started by {entry.by}"
        case Claimed():
            return f"led by {entry.by} (epoch {written.epoch})"
        case Wanted():
            return "treatment is to be taken away" if entry.latched else f"to be served: {_served(entry)}"
        case Had():
            return "nobody is served treatment" if entry.latched else f"served: {_served(entry)}"
        case Decided():
            ground = f" [{entry.ground}]" if entry.ground else ""
            return f"{entry.verdict}{ground}: {entry.reason}"
        case Asked():
            return f"{entry.by} asks: {entry.what}" + (f" ({entry.why})" if entry.why else "")
        case Paged():
            return f"page: {entry.what}"
        case Ended():
            return entry.outcome.replace("_", " ")
        case Looked():
            return ""


def _served(entry: Wanted | Had) -> str:
    share = f"{entry.share:.2%} of units"
    return f"{share} and audience {entry.audience}" if entry.audience else share
