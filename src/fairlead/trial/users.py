"""What users would do about what they met: made by the system, analysed like any experiment.

A load test shows what users wait for. What they then do can only be found with users; without them it can be
declared, in the open: a system says how its made users respond to the latency that each of them really met in this
run, and the run plays the experiment on them. The effect is then known, so what is tried here is not the change but
the analysis: does the interval hold the effect that was planted?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fairlead.experiment import ExperimentPlan, ExperimentResult

if TYPE_CHECKING:
    from fairlead.lab.samples import Samples
    from fairlead.telemetry import EventRegistry
    from fairlead.trial.system import Settings, System
    from fairlead.trial.walk import Recorded

__all__ = ["PlantedRecord", "Responded", "UsersRecord", "users_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Responded:
    """Made users' exposures and outcomes, as events, and how they are to be analysed."""

    events: Path
    """The folder that they were written to."""
    about_units: Path | None
    """A file with a column `unit`, and what was known of each before; None: nothing was."""
    plan: ExperimentPlan
    registry: EventRegistry
    """With the kinds of events that the plan's metrics read."""
    planted: Mapping[str, float]
    """By metric: the true effect, in its unit, averaged over the exposed users; it is known, as users are made."""


class PlantedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A planted effect beside what the experiment found."""

    metric: str
    effect: float
    """In the metric's unit."""
    relative_effect: float | None
    """Beside control's figure; None where that is not above zero."""
    inside: bool | None
    """Whether the interval of the experiment holds it; None where there is no interval."""


class UsersRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The experiment on made users."""

    experiment: ExperimentResult
    planted: tuple[PlantedRecord, ...]


def users_of(system: System, recorded: Recorded, settings: Settings, directory: Path) -> UsersRecord | None:
    """The experiment on the system's users; None for a system without, or where an arm has no complete turn. Blocks."""
    from fairlead.experiment import analyse, units_of_events
    from fairlead.trial.figures import WHOLE_RUN, of_phase

    samples: dict[str, Samples] = {}
    for arm in recorded.plan.arms[:2]:
        part = of_phase(recorded, arm, WHOLE_RUN)
        if part is None:
            return None
        samples[arm.name] = part.samples
    responded = system.respond(samples, recorded.started_at, settings, directory)
    if responded is None:
        return None
    units = units_of_events(
        responded.events, responded.plan, about_units=responded.about_units, registry=responded.registry
    )
    result = analyse(responded.plan, units)
    planted = []
    for name, effect in responded.planted.items():
        found = result.metric(name)
        low, high = found.effect_ci or (None, None)
        figure = found.control.mean if isinstance(found.control.mean, float) else found.control.value
        planted.append(
            PlantedRecord(
                metric=name,
                effect=effect,
                relative_effect=effect / figure if isinstance(figure, float) and figure > 0 else None,
                inside=None if low is None or high is None else low <= effect <= high,
            )
        )
    return UsersRecord(experiment=result, planted=tuple(planted))
