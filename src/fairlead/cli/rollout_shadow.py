"""What treatment did unseen, said before its rollout begins; without it, what was promised is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from fairlead.change.sections import RolloutTable
from fairlead.cli.outcome import one_line
from fairlead.errors import InvalidInput
from fairlead.shadow import ShadowReport, ShadowTally
from fairlead.statistics import discordant_pairs
from fairlead.telemetry import ShadowCompared
from fairlead.telemetry.jsonl import read_events

__all__ = ["say_shadow"]


def say_shadow(rollout: RolloutTable | None, flag: str, events: str | None, change: Path) -> None:
    """Prints what the comparisons of the mirror named like the flag came to. Does nothing where none was promised.

    Raises InvalidInput where the file says `shadow = true` and `events` holds no comparison.
    """
    if rollout is None or not rollout.shadow:
        return
    where = f"{change}: it says shadow = true, that treatment answers unseen first"
    if events is None:
        raise InvalidInput(
            f"{where}: name the folder with its comparisons, --events DIR, or write shadow = false"
        )
    others: set[str] = set()
    try:
        report = ShadowTally.of(_comparisons(Path(events), flag, others))
    except InvalidInput as none:
        if not others:
            raise InvalidInput(
                f"{where}, and {events} has no comparison of a mirror named {flag} that has a sink "
                "(docs/guides/shadow.md); compare first, or write shadow = false"
            ) from none
        named = ", ".join(one_line(each) for each in sorted(others)[:4])
        raise InvalidInput(
            f"{where}, and {events} has comparisons of {named} only; name the mirror like the flag, {flag}"
        ) from none
    typer.echo(_in_words(report))


def _comparisons(events: Path, flag: str, others: set[str]) -> Iterator[ShadowCompared]:
    for event in read_events(events):
        if isinstance(event, ShadowCompared):
            if event.mirror == flag:
                yield event
            else:
                others.add(event.mirror)


def _in_words(report: ShadowReport) -> str:
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(report.outcomes.items()))
    said = f"unseen so far: {sum(report.outcomes.values()):,} requests compared ({outcomes})"
    discordant = report.discordant()
    verdicts = discordant_pairs(discordant) if discordant else {}
    more = [one_line(path) for path, found in verdicts.items() if found.verdict == "more"]
    if not report.compared_twice:
        return f"{said}; control was never asked twice, so no difference can be told from noise"
    if more:
        return f"{said}; beyond control's own noise differ: {', '.join(more[:10])}"
    return f"{said}; no field differs beyond control's own noise"
